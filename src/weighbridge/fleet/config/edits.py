"""Old settings rewritten where they stand: everything else in the file, comments included, keeps its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from weighbridge.errors import BadInput


@dataclass(frozen=True, slots=True)
class Moved:
    """`old` of a mapping is now `name`, or `name` in the mapping `home` beside it. `value`: what is written there now,
    None for what was."""

    mapping: yaml.MappingNode
    old: str
    home: str
    name: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """`old` of a mapping is left out."""

    mapping: yaml.MappingNode
    old: str


@dataclass(frozen=True, slots=True)
class Added:
    """`name` with `value` is written behind `beside`."""

    mapping: yaml.MappingNode
    beside: str
    name: str
    value: Any


Edit = Moved | Dropped | Added

#: What may stand between a key and its value; an alias or a tag is more than that.
_COLON = re.compile(r"\s*:(\s|#[^\n]*\n)*")


@dataclass(frozen=True, slots=True)
class _Span:
    """Characters of the text, and what stands there instead."""

    start: int
    end: int
    text: str


def rewritten(text: str, edits: Sequence[Edit]) -> str:
    """Return the text with all edits made. Raises BadInput where an edit has no place of its own (an alias)."""
    by_mapping: dict[int, list[Edit]] = {}
    for edit in _distinct(edits):
        by_mapping.setdefault(id(edit.mapping), []).append(edit)
    return _applied(text, [span for some in by_mapping.values() for span in _spans(text, some)])


def _spans(text: str, edits: Sequence[Edit]) -> Iterator[_Span]:
    """What the edits of one mapping change."""
    lines = _Lines(text, edits[0].mapping)
    homes: dict[str, list[Moved]] = {}
    gone = [edit.old for edit in edits if isinstance(edit, Dropped)]
    for edit in edits:
        if isinstance(edit, Added):
            yield lines.behind(edit.beside, f"{edit.name}: {_flow(edit.value)}")
        elif isinstance(edit, Moved) and not edit.home:
            yield from lines.renamed(edit)
        elif isinstance(edit, Moved):
            homes.setdefault(edit.home, []).append(edit)
    for home, moved in homes.items():
        inside = [f"{edit.name}: {lines.value_of(edit)}" for edit in moved]
        at_home = lines.brought_into(home, inside)
        if at_home is None:  # there is none yet: it takes the place of the first
            yield lines.replaced(moved[0].old, f"{home}: {{{', '.join(inside)}}}")
        else:
            yield at_home
        gone += [edit.old for edit in moved[at_home is None :]]
    yield from lines.without(gone)


def _distinct(edits: Sequence[Edit]) -> list[Edit]:
    """Each once: what an alias stands for is read again wherever it is used."""
    found: list[Edit] = []
    for edit in edits:
        if edit not in found:
            found.append(edit)
    return found


def _applied(text: str, spans: Iterable[_Span]) -> str:
    """The text with each span replaced; of those at one place, in the order of their coming."""
    ordered = sorted(dict.fromkeys(spans), key=lambda span: (span.start, span.end))
    parts, at = [], 0
    for span in ordered:
        if span.start < at:
            raise BadInput("two old settings stand inside each other; change one of them by hand first")
        parts += [text[at : span.start], span.text]
        at = span.end
    return "".join([*parts, text[at:]])


def _flow(value: Any) -> str:
    """A value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


class _Lines:
    """One mapping of the text: where its pairs stand, and what goes between them."""

    def __init__(self, text: str, mapping: yaml.MappingNode) -> None:
        self._text = text
        self._pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {str(k.value): (k, v) for k, v in mapping.value}
        self._names = list(self._pairs)
        self._is_flow = bool(mapping.flow_style)
        self._end = mapping.end_mark.index

    def _start_of(self, name: str) -> int:
        return int(self._pairs[name][0].start_mark.index)

    def _span_of(self, name: str) -> tuple[int, int, int]:
        """Where a pair begins, where its value begins, and where it ends."""
        key, value = self._pairs[name]
        start, begins = key.start_mark.index, value.start_mark.index
        between = self._text[key.end_mark.index : begins]
        if begins < key.end_mark.index or not _COLON.fullmatch(between):
            place = f"line {key.start_mark.line + 1}"
            raise BadInput(f"{place}: {name} is an alias (`*`), or has a tag; change it by hand")
        end = begins + len(self._text[begins : value.end_mark.index].rstrip())
        return start, begins, end

    def value_of(self, edit: Moved) -> str:
        """What is written for a moved value, on one line where it has to be."""
        if edit.value is not None:
            return _flow(edit.value)
        _, begins, end = self._span_of(edit.old)
        written = self._text[begins:end]
        _, node = self._pairs[edit.old]
        if "\n" not in written and isinstance(node, yaml.ScalarNode | yaml.SequenceNode | yaml.MappingNode):
            return written
        loader = yaml.SafeLoader("")
        try:
            return _flow(loader.construct_document(node))
        finally:
            loader.dispose()

    def renamed(self, edit: Moved) -> Iterator[_Span]:
        key, _ = self._pairs[edit.old]
        yield _Span(key.start_mark.index, key.end_mark.index, edit.name)
        if edit.value is not None:
            _, begins, end = self._span_of(edit.old)
            yield _Span(begins, end, _flow(edit.value))

    def replaced(self, name: str, text: str) -> _Span:
        """Another pair in the place of one."""
        start, _, end = self._span_of(name)
        return _Span(start, end, text)

    def brought_into(self, home: str, inside: Sequence[str]) -> _Span | None:
        """Pairs at the end of a mapping below this one; None where there is none."""
        if home not in self._pairs:
            return None
        _, node = self._pairs[home]
        if not isinstance(node, yaml.MappingNode):
            raise BadInput(f"line {node.start_mark.line + 1}: {home} is no mapping; change it by hand")
        return _Lines(self._text, node).appended(inside)

    def appended(self, inside: Sequence[str]) -> _Span:
        """Pairs at the end of this mapping."""
        if not self._names:
            return _Span(self._end - 1, self._end - 1, ", ".join(inside))
        last = self._names[-1]
        if self._is_flow:
            _, _, end = self._span_of(last)
            return _Span(end, end, "".join(f", {one}" for one in inside))
        return self.behind(last, *inside)

    def behind(self, name: str, *inside: str) -> _Span:
        """Further pairs after one."""
        start, _, end = self._span_of(name)
        if self._is_flow:
            return _Span(end, end, "".join(f", {one}" for one in inside))
        end = self._line_end(end)
        indent = " " * (start - self._line_start(start))
        return _Span(end, end, "".join(f"\n{indent}{one}" for one in inside))

    def without(self, names: Sequence[str]) -> Iterator[_Span]:
        """Pairs gone, with their lines where they have some; a comment that stood behind one stays."""
        at = 0
        while at < len(self._names):
            end = at
            while end < len(self._names) and self._names[end] in names:
                end += 1
            if end > at:
                yield from self._run_gone(at, end)
            at = max(end, at + 1)

    def _run_gone(self, first: int, end: int) -> Iterator[_Span]:
        """Pairs that follow each other, up to `end`."""
        start = self._start_of(self._names[first])
        follows = self._start_of(self._names[end]) if end < len(self._names) else None
        line = self._line_start(start)
        behind_dash = bool(self._text[line:start].strip())
        if not self._is_flow and not behind_dash:
            for name in self._names[first:end]:
                yield self._line_gone(name)
            return
        _, _, last = self._span_of(self._names[end - 1])
        if self._is_flow:
            if follows is None:
                start = self._span_of(self._names[first - 1])[2] if first else start
            yield _Span(start, last if follows is None else follows, "")
            return
        comments = [comment for name in self._names[first:end] if (comment := self._comment_behind(name))]
        indent = self._text[line : line + len(self._text[line:start]) - len(self._text[line:start].lstrip())]
        yield _Span(line, line, "".join(f"{indent}{comment}\n" for comment in comments))
        yield _Span(start, last if follows is None else follows, "{}" if follows is None else "")

    def _line_gone(self, name: str) -> _Span:
        start, _, end = self._span_of(name)
        comment = self._comment_behind(name)
        if comment:
            return _Span(start, self._line_end(end), comment)
        return _Span(self._line_start(start), min(self._line_end(end) + 1, len(self._text)), "")

    def _comment_behind(self, name: str) -> str:
        _, _, end = self._span_of(name)
        behind = self._text[end : self._line_end(end)].strip()
        return behind if behind.startswith("#") else ""

    def _line_start(self, at: int) -> int:
        return self._text.rfind("\n", 0, at) + 1

    def _line_end(self, at: int) -> int:
        end = self._text.find("\n", at)
        return len(self._text) if end < 0 else end
