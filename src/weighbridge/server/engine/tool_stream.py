"""Tool calls in the text of an answer, read as it comes: the same pieces wherever the text is split.

Three ways of writing calls are known, those of Hermes and Qwen, of Mistral, and of Llama 3, whose calls are the
whole answer and therefore only taken as such when they name a tool that was given:

    <tool_call>{"name": "look", "arguments": {"key": "a"}}</tool_call>
    [TOOL_CALLS][{"name": "look", "arguments": {"key": "a"}}]
    {"name": "look", "parameters": {"key": "a"}}; {"name": "look", "parameters": {"key": "b"}}

A call is certain once its name is known and its arguments have begun. What turns out to be none before that is
text after all; what goes wrong after that (a bracket missing, an answer cut off) is a call whose arguments are no
JSON, which is how OpenAI's API shows it too.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TypeAlias

_HERMES, _HERMES_END, _MISTRAL = "<tool_call>", "</tool_call>", "[TOOL_CALLS]"
#: The name in what a forced call begins with, and the quotation mark behind it.
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)("?)')
_SPACE = " \t\r\n"
#: What JSON has outside of strings; anything else means that the value has broken off.
_PLAIN = frozenset(' \t\r\n:,-+.0123456789truefalsnE"{}[]')
#: What may stand between calls and is no text.
_BETWEEN = _SPACE + ",;]"


@dataclass(frozen=True, slots=True)
class CallBegun:
    """Call number `index` of the answer, so far without arguments."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call number `index`: JSON text."""

    index: int
    text: str


#: A string is text to show.
Piece: TypeAlias = str | CallBegun | CallArguments
_Reading: TypeAlias = Generator[None, str, str]


class _NoCall(Exception):
    """What was read is no call, or no longer one, since the last character."""


class ToolStream:
    """Parses one answer. `tools`: the names that a call without a marker may have."""

    def __init__(self, tools: Iterable[str], forced: bool = False) -> None:
        """`forced`: the whole answer is a call, whatever of it comes."""
        self._tools = frozenset(tools)
        self._forced = forced
        self._pieces: list[Piece] = []
        self._held = ""  # read, and neither shown nor known to be part of a call
        self._shown = False
        self._calls = 0
        self._mark: str | None = None  # of the call being read
        self._inside = False  # a call that is certain, and has not ended
        self._open = False  # a Hermes call's end mark is still to come
        self._reading: _Reading | None = None

    def push(self, text: str) -> list[Piece]:
        """What is certain now that `text` has come."""
        for character in text:
            self._next(character)
        return self._take()

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        held, self._held, self._reading = self._held, "", None
        if self._forced and not self._calls and not self._shown:
            self._begin_cut_off(held)
            return self._take()
        rest = held.strip(_BETWEEN) if self._calls else held
        if not self._inside and not (self._open and _HERMES_END.startswith(rest)):
            self._say(held if rest else "")
        return self._take()

    def _begin_cut_off(self, held: str) -> None:
        """A call that was cut off before its arguments, where its name is plain by then; else nothing is shown."""
        found = _NAME.search(held)
        begun = found[1] if found is not None else ""
        whole = found is not None and bool(found[2])
        named = [name for name in self._tools if name == begun or (not whole and name.startswith(begun))]
        if len(named) == 1 or whole:
            self._begin(begun if whole else named[0])

    def _take(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _next(self, character: str) -> None:
        self._held += character
        if self._reading is None:
            self._look_for_a_call()
            return
        try:
            self._reading.send(character)
        except StopIteration:
            self._reading, self._held = None, ""
        except _NoCall:
            self._reading, self._held, self._inside = None, self._held[:-1], False
            if self._held.strip(_BETWEEN) or not self._calls:
                text = self._held.rstrip(_SPACE)
                self._say(text)
                self._held = self._held[len(text) :]
            self._next(character)

    # -- text ------------------------------------------------------------------------------------------

    def _look_for_a_call(self) -> None:
        """Show what no call can begin with any more. Space before a call is part of neither."""
        while (start := self._held.lstrip(_SPACE)) and not self._may_be_a_mark(start):
            if start[0] in "{[" and not self._shown and not self._calls:
                self._read(None, start)
                return
            shown = len(self._held) - len(start) + 1
            self._say(self._held[:shown])
            self._held = self._held[shown:]
        if start == _HERMES_END:
            self._open, self._held = False, ""
        elif start in (_HERMES, _MISTRAL):
            self._read(start, "")

    def _may_be_a_mark(self, start: str) -> bool:
        ends = self._open and _HERMES_END.startswith(start)
        return ends or _HERMES.startswith(start) or _MISTRAL.startswith(start)

    def _say(self, text: str) -> None:
        self._shown = self._shown or bool(text.strip())
        if text:
            _append(self._pieces, text)

    # -- calls -----------------------------------------------------------------------------------------

    def _read(self, mark: str | None, begun: str) -> None:
        """From here on a call is read; `begun` is what of it has come already, and is held."""
        self._mark = mark
        self._reading = self._calls_after(mark)
        next(self._reading)
        self._held = self._held[: len(self._held) - len(begun)]
        for character in begun:
            self._next(character)

    def _calls_after(self, mark: str | None) -> _Reading:
        """One call, or a list of them; without a mark also several with semicolons between."""
        character = yield from _after_space()
        if character == "[" and mark != _HERMES:
            while True:
                yield from self._call((yield from _after_space()))
                if _expect((yield from _after_space()), ",]") == "]":
                    return ""
        yield from self._call(character)
        while mark is None:
            if (yield from _after_space()) != ";":
                raise _NoCall
            yield from self._call((yield from _after_space()))
        return ""

    def _call(self, character: str) -> _Reading:
        """One call's object, whose first character has come."""
        _expect(character, "{")
        call = _Call(self._begin, self._argue, None if self._mark else self._tools)
        while True:
            _expect((yield from _after_space()), '"')
            key = yield from _string()
            _expect((yield from _after_space()), ":")
            after = (yield from call.value(key, (yield from _after_space()))) or (yield from _after_space())
            if _expect(after, ",}") == "}":
                break
        if not call.certain:
            raise _NoCall
        self._held, self._inside = "", False
        return ""

    def _begin(self, name: str) -> None:
        self._pieces.append(CallBegun(self._calls, f"call_{uuid.uuid4().hex[:24]}", name))
        self._calls += 1
        self._inside, self._open = True, self._mark == _HERMES

    def _argue(self, text: str) -> None:
        self._held = ""
        _append(self._pieces, CallArguments(self._calls - 1, text))


class _Call:
    """The object of one call, key by key. `begin` and `argue` are told of it as soon as it is certain."""

    def __init__(
        self, begin: Callable[[str], None], argue: Callable[[str], None], tools: frozenset[str] | None
    ) -> None:
        self._begin = begin
        self._argue = argue
        self._tools = tools
        self._name = ""
        self._arguments: list[str] = []  # come before the name
        self.certain = False
        self._have_arguments = False

    def value(self, key: str, first: str) -> _Reading:
        """The value of `key`, whose first character has come. What it returns has come after it."""
        if key == "name" and not self._name:
            _expect(first, '"')
            self._name = yield from _string()
            if not self._name or (self._tools is not None and self._name not in self._tools):
                raise _NoCall
            if self._have_arguments:
                self._add("")
        elif key in ("arguments", "parameters") and not self._have_arguments:
            _expect(first, '{"')
            self._have_arguments = True
            if first == '"':
                self._add((yield from _string()))
            else:
                yield from _value(first, self._add)
        elif first in '{["':
            yield from _value(first, lambda _: None)
        else:
            return (yield from _after_word())
        return ""

    def _add(self, text: str) -> None:
        self._arguments.append(text)
        if not self._name:
            return
        if not self.certain:
            self.certain = True
            self._begin(self._name)
        self._argue("".join(self._arguments))
        self._arguments.clear()


def _after_space() -> _Reading:
    """The next character that is no space."""
    while True:
        character = yield
        if character not in _SPACE:
            return character


def _string() -> _Reading:
    """A string, decoded; its opening quote has come."""
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
    except ValueError as error:
        raise _NoCall from error
    return text


def _value(first: str, tell: Callable[[str], None]) -> _Reading:
    """An object, a list or a string: told as it is written, by the character."""
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
            return ""
        character = yield
        if not in_string and character not in _PLAIN:
            raise _NoCall


def _after_word() -> _Reading:
    """What ends a number or a word; empty for space."""
    while True:
        character = yield
        if character not in _PLAIN or character in ',]}[{":':
            return character
        if character in _SPACE:
            return ""


def _expect(character: str, one_of: str) -> str:
    if character not in one_of:
        raise _NoCall
    return character


def _append(pieces: list[Piece], piece: str | CallArguments) -> None:
    """At the end, joined with what is of its kind."""
    last = pieces[-1] if pieces else None
    if isinstance(piece, str) and isinstance(last, str):
        pieces[-1] = last + piece
    elif isinstance(piece, CallArguments) and isinstance(last, CallArguments) and last.index == piece.index:
        pieces[-1] = CallArguments(piece.index, last.text + piece.text)
    else:
        pieces.append(piece)
