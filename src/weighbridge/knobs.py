"""Settings that people can change, each declared in one place: a field of a settings dataclass.

    @dataclass(frozen=True)
    class Settings:
        itl_target: float | None = knob(None, "Gap between tokens to keep while prompts run.", unit="ms", min=1)

From the field follow the flag of every command that has these settings (`--itl-target 50`, with help and bounds), the
key in weighbridge.yaml (`itl_target: 50`), and the arguments of a child process that should run with them. The field
holds what the program computes with, seconds and bytes; people write what `unit` says.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from weighbridge.errors import BadInput

Unit = Literal["ms", "us", "bytes"]

#: How many of a unit make a second.
_PER_SECOND = {"ms": 1e3, "us": 1e6}

_METADATA = "knob"

#: Bytes.
MIB = 1 << 20


def knob(
    default: Any,
    help: str | None = None,
    *,
    flag: str | tuple[str, ...] = (),
    min: float | None = None,
    max: float | None = None,
    unit: Unit | None = None,
    choices: tuple[str, ...] = (),
    parse: Callable[[str], Any] | None = None,
    written: str | None = None,
    environment: str | None = None,
    is_made: bool = False,
) -> Any:
    """A field that people can set.

    `flag`: other spellings than the field's name with dashes, such as `("--tp", "--tensor-parallel-size")`, or
    `--json` for a switch that cannot be turned off. `min`, `max`: bounds, in the unit that people write.
    `parse` reads the text that people write, for values that are more than a number or a text; `written` is the
    default in their words. `environment`: a variable that is read where the flag is missing. `is_made`: a path that
    need not exist.
    """
    told = {
        "help": help,
        "spellings": (flag,) if isinstance(flag, str) else flag,
        "min": min,
        "max": max,
        "unit": unit,
        "choices": choices,
        "parse": parse,
        "written": written,
        "environment": environment,
        "is_made": is_made,
    }
    return field(default=default, metadata={_METADATA: told})


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A field that people can set, as the ways into it see it. `kind` is the type of what people write."""

    name: str
    kind: type
    optional: bool
    repeats: bool
    default: Any
    help: str | None
    spellings: tuple[str, ...]
    min: float | None
    max: float | None
    unit: Unit | None
    choices: tuple[str, ...]
    parse: Callable[[str], Any] | None
    written: str | None
    environment: str | None
    is_made: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """The spellings, the main one first; a switch has both its sides in one: `--cache/--no-cache`."""
        if self.spellings:
            return self.spellings
        dashed = self.name.replace("_", "-")
        return (f"--{dashed}/--no-{dashed}",) if self.kind is bool else (f"--{dashed}",)

    @property
    def flag(self) -> str:
        return self.flags[0].partition("/")[0]

    @property
    def key(self) -> str:
        """Its name in weighbridge.yaml: that of the flag."""
        return self.flag.lstrip("-").replace("-", "_")

    def read(self, value: Any) -> Any:
        """What the settings hold for what a person wrote. Raises BadInput."""
        return tuple(map(self._read, value)) if self.repeats else self._read(value)

    def write(self, value: Any) -> Any:
        """What a person would write for what the settings hold; the inverse of `read`."""
        if value is None:
            return None
        if self.written is not None and value == self.default:
            return self.written
        if self.unit == "bytes":
            return bytes_text(value)
        return value if self.unit is None else float(f"{value * _PER_SECOND[self.unit]:.12g}")

    def _read(self, value: Any) -> Any:
        if self.parse is not None:
            return self.parse(value)
        if self.unit == "bytes":
            return parse_bytes(str(value))
        return value if self.unit is None else value / _PER_SECOND[self.unit]


def knobs(settings: type) -> tuple[Knob, ...]:
    """The knobs of a settings class in the order of its fields, inherited ones first."""
    hints = get_type_hints(settings)
    found = []
    for one in fields(settings):
        told = one.metadata.get(_METADATA)
        if told is not None:
            optional, repeats, kind = _shape(hints[one.name])
            kind = str if told["parse"] is not None or told["unit"] == "bytes" else kind
            found.append(
                Knob(
                    name=one.name, kind=kind, optional=optional, repeats=repeats, default=one.default, **told
                )
            )
    return tuple(found)


Settings = TypeVar("Settings")


def settings_from(settings: type[Settings], values: dict[str, Any]) -> Settings:
    """Settings from what a person wrote, by key; what is missing or None has its default. Raises BadInput."""
    known = {one.key: one for one in knobs(settings)}
    written = {known[key]: value for key, value in values.items() if value is not None}
    return settings(**{one.name: one.read(value) for one, value in written.items()})


def arguments(settings: Any) -> list[str]:
    """The command line that makes these settings, without what is as it would be anyway."""
    words: list[str] = []
    for one in knobs(type(settings)):
        value = getattr(settings, one.name)
        if value == one.default:
            continue
        if one.kind is bool:
            on, _, off = one.flags[0].partition("/")
            words.append(on if value else off)
            continue
        for item in value if one.repeats else (value,):
            words += [one.flag, str(one.write(item))]
    return words


def check_choices(settings: Any) -> None:
    """Raise BadInput for a value that is not one of its knob's choices."""
    for one in knobs(type(settings)):
        value = getattr(settings, one.name)
        if one.choices and value not in (None, *one.choices):
            raise BadInput(
                f"{one.key} {value!r} is not known: use {_alternatives(one.choices)}", param=one.key
            )


def parse_bytes(text: str) -> int:
    """`512MB`, `2GiB`, `1.5g` or plain bytes. Decimal and binary suffixes; raises BadInput otherwise."""
    units = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    units |= {f"{letter}ib": units[letter] for letter in "kmgt"}
    units |= {f"{letter}b": 1000 ** (index + 1) for index, letter in enumerate("kmgt")}
    cleaned = text.strip().lower().replace(" ", "")
    digits = cleaned.rstrip("bikmgt")
    try:
        return int(float(digits) * units[cleaned[len(digits) :]])
    except (KeyError, OverflowError, ValueError):
        raise BadInput(f"{text!r} is not a size: write for example 512MiB or 2GB") from None


def bytes_text(size: int) -> str:
    """The shortest exact way to write a size: `2GiB`, `1500MB`, or plain bytes."""
    units = (
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (MIB, "MiB"),
        (10**12, "TB"),
        (10**9, "GB"),
        (10**6, "MB"),
    )
    for factor, unit in units:
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def mebibytes(size: int) -> str:
    """A size in words, rounded up to a whole MiB."""
    return bytes_text(-(-size // MIB) * MIB)


def _shape(hint: Any) -> tuple[bool, bool, Any]:
    """Whether a field may be None, whether it holds several values, and the type of one of them."""
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        optional, hint = len(inner) < len(get_args(hint)), inner[0]
    if get_origin(hint) is tuple:
        return optional, True, get_args(hint)[0]
    return optional, False, hint


def _alternatives(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
