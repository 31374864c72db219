"""The contract of all styles: a reader is sent an answer character by character, and tells a sink of calls.

A reader is a generator. It raises NoCall as soon as what it is sent is no call, or no longer one; what was sent and
never told is then text. So the same comes out wherever the text is split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

SPACE = " \t\r\n"
#: Space that is held until it is known what follows; more of it is text.
MAX_SPACE = 512
#: Characters of a key or an identifier that a call may have.
MAX_WORD = 256
#: What JSON has outside of strings; anything else means that the value has broken off.
_PLAIN = frozenset(' \t\r\n:,-+.0123456789truefalsnE"{}[]')

Read = TypeVar("Read")
Reading: TypeAlias = Generator[None, str, Read]


class NoCall(Exception):
    """What was read is no call, or no longer one, since the last character."""


class Calls(Protocol):
    """Where a reader tells of the calls that it finds."""

    @property
    def tools(self) -> Mapping[str, Any]:
        """The tools that may be called, and the JSON schema of the parameters of each."""
        ...

    def begin(self, name: str, call_id: str = "") -> None:
        """A call is certain. `call_id`: the identifier that the model gave it. Raises NoCall for a tool not offered."""
        ...

    def argue(self, text: str) -> None:
        """More of its arguments, as JSON text."""
        ...

    def end(self) -> None:
        """The call is whole."""
        ...


#: Reads what stands behind a mark.
Reader: TypeAlias = Callable[[Calls], Reading[None]]


@dataclass(frozen=True, slots=True)
class CallOpening:
    """What calls begin with: a mark in the text, or no mark (an answer that begins with an object or a list)."""

    mark: str
    read: Reader
    ends: tuple[str, ...] = ()  # marks that close it, and are no text behind a call
    starts_line: bool = False  # the mark counts only where a line begins
    reads_ends: bool = False  # the reader does, behind the last of its calls


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """One way of writing calls, or several that one model uses."""

    name: str
    openings: tuple[CallOpening, ...] = ()
    marks: tuple[str, ...] = ()  # that may be control tokens, which have no text unless they are asked for


# -- parts of readers ------------------------------------------------------------------------------------


def after_space() -> Reading[str]:
    """The next character that is no space."""
    while True:
        character = yield
        if character not in SPACE:
            return character


def expect(character: str, one_of: str) -> str:
    if character not in one_of:
        raise NoCall
    return character


def literal(text: str) -> Reading[None]:
    """Exactly this text."""
    for wanted in text:
        expect((yield), wanted)


def one_of(marks: Sequence[str], begun: str = "") -> Reading[str]:
    """The mark that comes next, behind space. `begun`: what of it has come already."""
    read = begun or (yield from after_space())
    while read not in marks:
        if not any(mark.startswith(read) for mark in marks):
            raise NoCall
        read += yield
    return read


def until(end: str, tell: Callable[[str], None]) -> Reading[None]:
    """The text before `end`, told as soon as it can no longer be part of that."""
    tail = ""
    while True:
        tail += yield
        if tail.endswith(end):
            tell(tail[: -len(end)])
            return
        while not end.startswith(tail):
            tell(tail[0])
            tail = tail[1:]


def word_until(end: str) -> Reading[str]:
    """A short text before `end`. Raises NoCall for a long one."""
    read = ""
    while not read.endswith(end):
        read += yield
        if len(read) > MAX_WORD + len(end):
            raise NoCall
    return read[: -len(end)]


def name_until(calls: Calls, stops: str, begun: str = "") -> Reading[tuple[str, str]]:
    """The name of a tool that was offered, and the character of `stops` behind it."""
    read = begun
    while True:
        if not any(tool.startswith(read.rstrip(SPACE)) for tool in calls.tools):
            raise NoCall
        character = yield
        if character in stops:
            break
        read += character
    name = read.rstrip(SPACE)
    if name not in calls.tools:
        raise NoCall
    return name, character


def string() -> Reading[str]:
    """A JSON string, decoded; its opening quote has come."""
    raw = ['"']
    while True:
        character = yield
        raw.append(character)
        if character == '"':
            break
        if character == "\\":
            raw.append((yield))
    try:
        text: str = json.loads("".join(raw), strict=False)
        text.encode()  # half of a surrogate pair cannot be sent
    except (ValueError, RecursionError) as error:
        raise NoCall from error
    return text


def value(first: str, tell: Callable[[str], None]) -> Reading[None]:
    """A JSON object, list or string: told as it is written, by the character."""
    depth, in_string, character = 0, False, first
    while True:
        tell(character)
        if in_string:
            in_string = character != '"'
            if character == "\\":
                tell((yield))
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        if depth == 0 and not in_string:
            return
        character = yield
        if not in_string and character not in _PLAIN:
            raise NoCall


def word() -> Reading[str]:
    """A JSON number or word, whose first character has come: what ends it, or nothing for space."""
    while True:
        character = yield
        if character not in _PLAIN or character in ',]}[{":':
            return character
        if character in SPACE:
            return ""
