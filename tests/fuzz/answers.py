"""Fuzz target of what models say: calls, thoughts and text, in every style, and wherever it is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from random import Random

from tests.fuzz.forms import INPUT_BYTES
from tests.fuzz.target import Target
from tests.server.style_cases import CASES, TOOLS
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import REASONING_STYLES, TOOL_STYLES, Styles
from weighbridge.server.styles.pieces import CallArguments, CallBegun, Piece, Thought
from weighbridge.server.styles.tagged import GLM, QWEN_CODER

_STYLES = sorted(TOOL_STYLES)
_REASONING = (*REASONING_STYLES.values(), None)
#: The bits of the second byte of an input: the style of thoughts, and whether a call is forced, the prompt ends within
#: a thought, and no tool is offered.
_FORCED, _THINKING, _NO_TOOLS = 4, 8, 16
_HEAD = 3
_MARKS = sorted(
    {
        *(mark for style in TOOL_STYLES.values() for mark in style.marks),
        *(mark for style in TOOL_STYLES.values() for one in style.openings for mark in (one.mark, *one.ends)),
        *(mark for style in REASONING_STYLES.values() for mark in (style.begin, style.end)),
        *("<parameter=key>", "</parameter>", "<function=look>", "</function>", "<arg_key>", "</arg_value>"),
    }
    - {""}
)
_NAMES = (*TOOLS, "key", "depth", "functions.look:0", " to=functions.look", "name", "arguments")
_VALUES = (
    "null",
    "None",
    "NaN",
    "Infinity",
    "1e999",
    "1",
    "-0.5",
    "true",
    "{'a': (1,)}",
    "[NaN]",
    '"a"',
    "{}",
)
_ESCAPES = ("\\ud800", "\\udc00", "\\u00e9", "\\n", '\\"', "\\\\", "\\x")
_FRAMES = (
    *('"', "\\", "{", "}", "[", "]", ",", ":", ";", "\n", " ", "```json\n", " " * 600),
    *("<parameter=kg>", "NaN</parameter>", '{"name": "look", "arguments": {"key": "a"}}'),
    *('"name": "look"', '"arguments": {', '"arguments": "{}"'),
)
#: What answers are written in, by what it is.
_SORTS = (_MARKS, _NAMES, _VALUES, _ESCAPES, _FRAMES)
_PIECES = tuple(piece for sort in _SORTS for piece in sort)
#: Tags and marks, strings, words and numbers, space, and all else by the character.
_PART = re.compile(r"<[^<>\n]{0,60}>|\"(?:\\.|[^\"\\]){0,200}\"|[\w.+-]+|\s+|.", re.DOTALL)
#: Longer answers are slow to read, and have no more in them.
_LONGEST = min(INPUT_BYTES, 1200)
#: How many changes are made to one input.
_CHANGES = (1, 1, 1, 2, 4)

Read = tuple[str, str, list[tuple[str, str]]]


def _reading(data: bytes) -> AnswerReading:
    style, bits, _ = data[:_HEAD].ljust(_HEAD, b"\0")
    styles = Styles(TOOL_STYLES[_STYLES[style % len(_STYLES)]], _REASONING[bits % 4 % len(_REASONING)])
    tools = None if bits & _NO_TOOLS else TOOLS
    return AnswerReading(styles, tools, bool(bits & _FORCED and tools), bool(bits & _THINKING))


def _checked(pieces: Sequence[Piece], offered: bool) -> Read:
    """What the pieces come to; each is one that can be sent, and names a call that has begun."""
    said, thought, calls = "", "", list[tuple[str, str]]()
    for piece in pieces:
        match piece:
            case str():
                assert piece, "a piece of nothing"
                said += piece
            case Thought(text):
                thought += text
            case CallBegun(index, call_id, name):
                assert name in (TOOLS if offered else ()), f"{name!r} was not offered"
                assert index == len(calls), piece
                assert call_id, piece
                calls.append((name, ""))
            case CallArguments(index, text):
                assert 0 <= index < len(calls), piece
                calls[index] = (calls[index][0], calls[index][1] + text)
    for text in (said, thought, *(arguments for _, arguments in calls)):
        text.encode()
    return said, thought, calls


def _read(reading: AnswerReading, parts: Sequence[str]) -> Read:
    stream = reading.stream()
    pieces = [piece for part in parts for piece in stream.push(part)]
    return _checked([*pieces, *stream.finish()], reading.tools is not None)


def parse_styles(data: bytes) -> None:
    """An answer comes to the same wherever it is cut, and what is no call or thought is text, to the letter."""
    reading, text = _reading(data), data[_HEAD:].decode("utf-8", "replace")
    size = data[2] if len(data) >= _HEAD else 0
    parts = [text[at : at + size] for at in range(0, len(text), size)] if size else [text]
    said, thought, calls = _read(reading, parts)
    assert (said, thought, calls) == _read(reading, [text]), "where it is cut changes the answer"
    is_harmony = reading.styles.tools is TOOL_STYLES["harmony"] and not reading.forced
    if not calls and not thought and not is_harmony and not reading.forced and not reading.styles.reasoning:
        assert said == text, "something was lost, or doubled"
    if reading.styles.tools in (GLM, QWEN_CODER) and not reading.forced:
        for _, arguments in calls:
            _check_numbers(arguments)  # which are made here; elsewhere they are as the model wrote them


def _check_numbers(arguments: str) -> None:
    """Arguments that are JSON to Python are JSON to everybody: a call that is cut off is none to anybody."""
    try:
        json.loads(arguments, parse_constant=_broken, strict=False)
    except (ValueError, RecursionError):
        return


def _broken(word: str) -> None:
    raise AssertionError(f"{word} in arguments")


def _changed(data: bytes, draw: Random) -> bytes | None:
    """Return an answer with parts of it put in, taken out, moved, replaced, or changed inside."""
    head, parts = data[:_HEAD], _PART.findall(data[_HEAD:].decode("utf-8", "replace"))
    if draw.random() < 0.2:
        head = bytes((draw.randrange(len(_STYLES)), draw.randrange(32), draw.choice((0, 1, 2, 3, 7, 64))))
    for _ in range(draw.choice(_CHANGES)):
        _change_part(parts, draw)
    made = head + "".join(parts).encode()
    return made if len(made) <= _LONGEST else None


def _change_part(parts: list[str], draw: Random) -> None:
    at, change = draw.randint(0, len(parts)), draw.randrange(8)
    if change < 2 or at == len(parts):
        parts.insert(at, _piece(draw))
    elif change < 4:
        parts[at] = _piece(draw)
    elif change < 6:
        strings = [place for place, part in enumerate(parts) if part.startswith('"')]
        if strings and draw.random() < 0.7:
            [at] = draw.choices(strings, [len(parts[place]) for place in strings])
        within = draw.randint(0, len(parts[at]))
        parts[at] = parts[at][:within] + draw.choice(_ESCAPES) + parts[at][within:]
    elif change == 6:
        del parts[at : at + draw.choice((1, 1, 2, 8))]
    else:
        start = draw.randrange(len(parts))
        parts[at:at] = parts[start : start + draw.choice((1, 4, 20))]


def _piece(draw: Random) -> str:
    return draw.choice(draw.choice(_SORTS))


def _seeds() -> list[bytes]:
    """Every other of the cases that the tests of the styles have, with thoughts told apart."""
    written = [bytes((_STYLES.index(case.style), 0, 0)) + case.text.encode() for case in CASES[::2]]
    quoted = json.dumps({"name": "look", "arguments": '{"key": "a"}'})
    calls = (
        ("hermes", f"<tool_call>{quoted}</tool_call>"),
        ("hermes", f"look:\n```json\n{quoted}\n```"),
        ("llama3", quoted),
        ("llama3", f"<|python_tag|>{quoted}; {quoted}"),
        ("granite", f"<|tool_call|>[{quoted}]"),
    )
    written += [bytes((_STYLES.index(name), 2, 0)) + text.encode() for name, text in calls]
    return written


STYLES = Target("styles", parse_styles, (), _seeds, [one.encode() for one in _PIECES], _changed)
