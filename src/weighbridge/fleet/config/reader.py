"""YAML with places: every complaint names file, line, the field, and what to write instead.

A `Section` hands out typed values and remembers what nobody asked for. Problems are gathered, so that one run
shows all of them.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from weighbridge.errors import BadInput
from weighbridge.fleet.config.edits import Added, Dropped, Edit, Moved
from weighbridge.knobs import Knob, Settings, knobs, settings_from
from weighbridge.secret import SHOWN, Secret

log = logging.getLogger("weighbridge.config")

#: How deep lists and mappings may stand inside each other.
DEEPEST = 64

#: Stands for a secret that is wrong or missing, until the file's problems are raised.
UNSET = Secret("unset")
#: What a parser quotes of the text before it: more than one character, and not the name of a token.
_QUOTED = re.compile(r"'[^'<][^']+'")
#: What the parser raises beside its own errors, as for a day that there is not, `!!timestamp soon` or `!!bool maybe`.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(slots=True)
class Problems:
    """What is wrong with one file, and what will be: settings that are written as they used to be."""

    file: str
    found: list[tuple[int, str]] = field(default_factory=list)  # line from 0, text
    warnings: list[tuple[int, str]] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)  # what makes the settings that are warned of new ones

    def add(self, node: yaml.Node | None, where: str, what: str) -> None:
        self.found.append(self._placed(node, where, what))

    def warn(self, node: yaml.Node | None, where: str, what: str) -> None:
        self.warnings.append(self._placed(node, where, what))

    def _placed(self, node: yaml.Node | None, where: str, what: str) -> tuple[int, str]:
        line = node.start_mark.line if node is not None else -1
        place = f"{self.file}:{line + 1}" if node is not None else self.file
        return line, f"{place}: {where + ': ' if where else ''}{what}"

    def raise_any(self) -> None:
        """Raise BadInput with one line for each problem, in the order of the file; else log the warnings."""
        if self.found:
            raise BadInput("\n".join(text for _, text in sorted(self.found, key=lambda found: found[0])))
        for _, text in sorted(self.warnings, key=lambda found: found[0]):
            log.warning("%s", text)
        self.warnings.clear()


class Section:
    """A mapping of the file. Getters return the default after noting a problem, so that reading goes on."""

    def __init__(self, node: yaml.Node | None, where: str, problems: Problems) -> None:
        self.node = node
        self.where = where
        self.problems = problems
        self._asked: set[str] = set()
        self._values: dict[str, yaml.Node] = {}
        self._sections: dict[str, Section] = {}
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
            return
        if not isinstance(node, yaml.MappingNode):
            problems.add(node, where, "must be a mapping of `name: value` lines")
            return
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problems.add(key, where, "has a name that is a list or a mapping; a name is text")
                continue
            name = str(key.value)
            if name in self._values:
                problems.add(key, self._path(name), "is given twice; keep one of them")
            self._values[name] = value

    def __contains__(self, name: str) -> bool:
        self._asked.add(name)
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        """The names that are there."""
        return iter(tuple(self._values))

    def has(self, name: str) -> bool:
        """Whether a setting that nobody should write any more is there; asking does not make it known."""
        return name in self._values

    def line_of(self, name: str) -> yaml.Node | None:
        return self._values.get(name, self.node)

    def problem(self, name: str, what: str) -> None:
        self.problems.add(self.line_of(name), self._path(name), what)

    def move(self, old: str, new: str, value: Any = None) -> None:
        """Read the old setting `old` as `new` (`name` or `section.name`) for this release, and warn of it.

        `value`: what it is read as, where that is not what is written there.
        """
        node = self._values.pop(old)
        *home, name = new.split(".")
        if isinstance(self.node, yaml.MappingNode):
            self.problems.edits.append(Moved(self.node, old, "".join(home), name, value))
        written = f"`{home[0]}: {{{name}: ...}}`" if home else f"`{name}: ...`"
        self.problems.warn(node, self._path(old), f"is read for one more release; write {written} instead")
        target = self.section(home[0]) if home else self
        if name in target._values:
            self.problems.add(node, self._path(old), f"is given beside {target._path(name)}; keep the latter")
        else:
            target._values[name] = node if value is None else _like(value, node)

    def drop(self, old: str, why: str) -> None:
        """Do without an old setting for this release, and warn of it."""
        if isinstance(self.node, yaml.MappingNode):
            self.problems.edits.append(Dropped(self.node, old))
        self.problems.warn(self._values.pop(old), self._path(old), why)

    def assume(self, name: str, value: Any, beside: str, why: str) -> None:
        """Read as if `name: value` stood beside a setting that used to mean it, and warn there."""
        node = self._values[beside]
        if isinstance(self.node, yaml.MappingNode):
            self.problems.edits.append(Added(self.node, beside, name, value))
        self.problems.warn(node, self._path(beside), why)
        self._values[name] = _like(value, node)

    def text(self, name: str, default: str = "") -> str:
        value = self.plain(name)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            self.problem(name, f"must be text, not {_shown(value)}; put it in quotes if it is meant as text")
            return default
        return value

    def number(self, name: str, default: Any, *, least: float = 0.0, above: float | None = None) -> Any:
        """A number not below `least`, or greater than `above`."""
        value = self.plain(name)
        if value is None:
            return default
        wanted = (
            f"a number greater than {above:g}" if above is not None else f"a number of at least {least:g}"
        )
        fits = isinstance(value, int | float) and not isinstance(value, bool) and value < 1e15
        if not fits or (value <= above if above is not None else value < least):
            self.problem(name, f"must be {wanted}, not {_shown(value)}")
            return default
        return value

    def count(self, name: str, default: Any, *, least: int = 1) -> Any:
        value = self.plain(name)
        if value is None:
            return default
        if type(value) is not int or value < least:
            self.problem(name, f"must be a whole number of at least {least}, not {_shown(value)}")
            return default
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.plain(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(name, f"must be true or false, not {_shown(value)}")
            return default
        return value

    def choice(self, name: str, default: str, known: Sequence[str]) -> str:
        value = self.text(name, default)
        if value not in known:
            self.problem(name, f"{value!r} is not known{_guess(value, known)}; use one of {', '.join(known)}")
            return default
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; one text stands for a list of it."""
        self._asked.add(name)
        node = self._values.get(name)
        if node is None:
            return ()
        value = _plain(node)
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
            self.problem(name, "must be a text or a list of texts")
            return ()
        return tuple(str(item) for item in items)

    def numbers(self, name: str) -> dict[str, float]:
        """A mapping of texts to numbers, such as resources."""
        section = self.section(name)
        return {key: float(section.number(key, 0.0)) for key in list(section._values)}

    def secret(self, name: str) -> Secret | None:
        """`NAME: text`, or better `NAME_env: VARIABLE`, which keeps it out of the file."""
        variable = self.text(f"{name}_env")
        if variable and name in self:
            self.problem(name, f"is given beside {name}_env; keep one of them")
        if not variable:
            return self._hidden(name, self.plain(name))
        value = os.environ.get(variable, "").strip()
        if not value:
            self.problem(
                f"{name}_env", f"the environment variable {variable} is not set; export {variable}=..."
            )
            return UNSET
        return self._hidden(f"{name}_env", value)

    def secrets(self, name: str) -> dict[str, Secret]:
        """A mapping of texts to texts of which nobody knows whether they are secret, such as headers."""
        section = self.section(name)
        found = {key: section._hidden(key, section.plain(key)) for key in list(section._values)}
        return {key: value for key, value in found.items() if value is not None}

    def _hidden(self, name: str, value: Any) -> Secret | None:
        """A text that no complaint may show."""
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            self.problem(name, f"must be text, not a {type(value).__name__}; put it in quotes")
            return UNSET
        if any(ord(one) < 0x20 or "\ud800" <= one <= "\udfff" for one in value):
            self.problem(name, "has a line break or another character that no header can carry")
            return UNSET
        return Secret(value)

    def path(self, name: str, base: Path, *, must_exist: bool) -> Path | None:
        """A path, relative to the file it is written in."""
        text = self.text(name)
        if not text:
            return None
        try:
            path = (base / Path(text).expanduser()).resolve()
        except (
            ValueError,
            OSError,
            RuntimeError,
        ) as error:  # half a letter, the home of nobody, links in a ring
            self.problem(name, f"is no path: {error}")
            return None
        if must_exist and not path.exists():
            self.problem(name, f"{path} does not exist")
        return path

    def section(self, name: str) -> Section:
        """The mapping below `name`; the same one each time it is asked for."""
        self._asked.add(name)
        found = self._sections.get(name)
        if found is None:
            found = self._sections[name] = Section(self._values.get(name), self._path(name), self.problems)
        return found

    def is_mapping(self, name: str) -> bool:
        self._asked.add(name)
        return isinstance(self._values.get(name), yaml.MappingNode)

    def settings(self, kind: type[Settings]) -> Settings:
        """A settings class whose knobs are the fields of this section; those that are missing have their defaults."""
        values: dict[str, Any] = {}
        for one in knobs(kind):
            value = self._several(one.key) if one.repeats else self._knob(one)
            if value is not None:
                values[one.key] = value
        self.done()
        try:
            return settings_from(kind, values)
        except BadInput as error:
            where = self._path(error.param) if error.param else self.where
            self.problems.add(self.line_of(error.param or ""), where, str(error))
            return kind()

    def fields(self, kind: type[Settings], base: Path) -> dict[str, Any]:
        """The fields of a settings class that are written here among others; a list goes by its field's name.

        `base` is where relative paths start. Nothing is returned where the settings do not go together.
        """
        found = {one.name: self._field(one, base) for one in knobs(kind)}
        values = {name: value for name, value in found.items() if value is not None}
        try:
            kind(**values)
        except BadInput as error:
            self.problem(error.param or "", str(error))
            return {}
        return values

    def _several(self, key: str) -> Sequence[str] | None:
        """What is written in a list; what a flag writes as NAME=VALUE may be a mapping here. None: nothing is."""
        if key not in self:
            return None
        if not self.is_mapping(key):
            return self.texts(key)
        section = self.section(key)
        return [f"{name}={section.text(name)}" for name in section._values]

    def _field(self, one: Knob, base: Path) -> Any:
        """The value of one of `fields`, as its settings hold it; None where nothing is written, or a problem."""
        if one.kind is Path:
            return self.path(one.key, base, must_exist=not one.is_made)
        if not one.repeats:
            written = self._knob(one)
            return None if written is None else one.read(written)
        texts = self._several(one.name)
        if texts is None:
            return None
        try:
            return one.read(texts)
        except BadInput as error:
            self.problem(one.name, str(error))
            return None

    def _knob(self, one: Knob) -> Any:
        """What is written for a knob, checked; None where nothing is, and after noting a problem."""
        if one.kind is bool:
            return self.flag(one.key, one.default) if one.key in self else None
        if one.kind is int:
            return self.count(one.key, None, least=int(one.min or 0))
        if one.kind is float:
            return self.number(one.key, None, least=one.min or 0.0)
        value = self.plain(one.key)
        text = value if value is None or isinstance(value, str) else str(value)
        try:
            return None if text is None or one.read(text) is None else text
        except BadInput as error:
            self.problem(one.key, str(error))
            return None

    def named(self, name: str) -> Iterator[tuple[str, Section]]:
        """The entries of a mapping of sections."""
        section = self.section(name)
        for key in section._values:
            yield key, section.section(key)

    def items(self, name: str) -> Iterator[Section]:
        """The entries of a list of sections."""
        self._asked.add(name)
        node = self._values.get(name)
        if node is None:
            return
        if not isinstance(node, yaml.SequenceNode):
            self.problem(name, "must be a list of `- ...` entries")
            return
        for index, item in enumerate(node.value):
            yield Section(item, f"{self._path(name)}[{index}]", self.problems)

    def done(self) -> None:
        """Complain about fields that nobody asked for: misspelt settings must not be silent."""
        for name, node in self._values.items():
            if name not in self._asked:
                guess = _guess(name, sorted(self._asked))
                known = "" if guess else f"; known here: {', '.join(sorted(self._asked))}"
                self.problems.add(node, self._path(name), f"is not a setting{guess}{known}")

    def plain(self, name: str) -> Any:
        """Whatever is written there, None where nothing is."""
        self._asked.add(name)
        node = self._values.get(name)
        return None if node is None else _plain(node)

    def _path(self, name: str) -> str:
        name = repr(name) if name.isdigit() else name  # or it looks like one more number of a line
        return f"{self.where}.{name}" if self.where else name


class _TooDeep(Exception):
    """Lists or mappings inside each other without end."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line


class _Bounded(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """Gives up on what is nested too deeply at once: the scanner's time grows with the square of the depth."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        self._check_depth()
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        self._check_depth()
        return bool(super().add_indent(column))

    def _check_depth(self) -> None:
        if self.flow_level + len(self.indents) >= DEEPEST:
            raise _TooDeep(self.line)


def _is_at_a_tab(error: yaml.MarkedYAMLError) -> bool:
    mark = error.problem_mark
    return mark is not None and mark.buffer is not None and mark.buffer[mark.pointer] == "\t"


def read_yaml(text: str, file: str) -> tuple[Section, Problems]:
    """The whole file as a section. Raises BadInput where it is no YAML, with the line."""
    problems = Problems(file)
    try:
        node = yaml.compose(text, Loader=_Bounded)
    except _TooDeep as error:
        raise BadInput(
            f"{file}:{error.line + 1}: it is nested too deeply: lists and mappings go {DEEPEST} deep"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        what = _QUOTED.sub(SHOWN, str(error.problem or error.context))
        if _is_at_a_tab(error):
            what = "there is a tab where YAML takes spaces only; write spaces"
        raise BadInput(f"{file}{line}: this is no YAML: {what}") from None  # the error quotes the line
    except yaml.YAMLError:
        raise BadInput(f"{file}: this is no YAML: it holds a character that no text has") from None
    return Section(node, "", problems), problems


def _plain(node: yaml.Node) -> Any:
    """The value of a node; a Python object is never made of it."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, *_UNREADABLE):
        return node.value
    finally:
        loader.dispose()


def _like(value: Any, node: yaml.Node) -> yaml.Node:
    """A value as if it were written where `node` is."""
    written: yaml.Node = yaml.SafeDumper("").represent_data(value)
    written.start_mark, written.end_mark = node.start_mark, node.end_mark
    return written


def _shown(value: Any) -> str:
    """A short value as it is; of a long one, or one that holds others (maybe a key), what it is."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value) if len(repr(value)) <= 60 else f"a {type(value).__name__}"


def _guess(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {str(close[0])!r}?)" if close else ""
