"""Calls between control tokens, with a section around all of them.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look     DeepSeek V3 and R1
```json
{"key": "a"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look<｜tool▁sep｜>             DeepSeek V3.1
    {"key": "a"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0          Kimi K2
<|tool_call_argument_begin|>{"key": "a"}<|tool_call_end|><|tool_calls_section_end|>
"""

from __future__ import annotations

import re

from weighbridge.server.styles.reading import (
    CallOpening,
    Calls,
    NoCall,
    Reader,
    Reading,
    ToolStyle,
    after_space,
    expect,
    literal,
    name_until,
    one_of,
    value,
    word_until,
)

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"

_SECTION, _SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_KIMI, _KIMI_END = "<|tool_call_begin|>", "<|tool_call_end|>"
_ARGUMENTS = "<|tool_call_argument_begin|>"
#: How Kimi identifies a call; the number counts the calls of a conversation.
_KIMI_ID = re.compile(r"(?:functions\.)?(?P<name>[^\s:]+)(?::\d+)?")


def _deepseek(calls: Calls) -> Reading[None]:
    """One call of DeepSeek, behind its mark."""
    kind = yield from word_until(_SEPARATOR)
    character = yield from after_space()
    is_old = kind.strip() == "function" and character != "{"
    name = kind.strip()
    if is_old:
        name, _ = yield from name_until(calls, "\n", character)
        yield from literal("```json")
        character = yield from after_space()
    if name not in calls.tools:
        raise NoCall
    expect(character, "{")
    calls.begin(name)
    yield from value(character, calls.argue)
    if is_old:
        yield from one_of(("```",))
    yield from one_of((_CALL_END,))
    calls.end()


def _kimi(calls: Calls) -> Reading[None]:
    """One call of Kimi, behind its mark. Its identifier is kept: the model counts by it."""
    call_id = (yield from word_until(_ARGUMENTS)).strip()
    found = _KIMI_ID.fullmatch(call_id)
    if found is None or found["name"] not in calls.tools:
        raise NoCall
    character = expect((yield from after_space()), "{")
    calls.begin(found["name"], call_id if ":" in call_id else "")
    yield from value(character, calls.argue)
    yield from one_of((_KIMI_END,))
    calls.end()


def _section(begin: str, one: Reader, end: str) -> Reader:
    """Reads a section of calls: each behind `begin`, by `one`, until `end`."""

    def read(calls: Calls) -> Reading[None]:
        mark = yield from one_of((begin,))
        while mark == begin:
            yield from one(calls)
            mark = yield from one_of((begin, end))
        calls.end()

    return read


DEEPSEEK = ToolStyle(
    "deepseek-v3",
    (
        CallOpening(_CALLS, _section(_CALL, _deepseek, _CALLS_END), (_CALL_END, _CALLS_END)),
        CallOpening(_CALL, _deepseek, (_CALL_END, _CALLS_END)),
    ),
    (_CALLS, _CALLS_END, _CALL, _CALL_END, _SEPARATOR),
)
KIMI = ToolStyle(
    "kimi-k2",
    (
        CallOpening(_SECTION, _section(_KIMI, _kimi, _SECTION_END), (_KIMI_END, _SECTION_END)),
        CallOpening(_KIMI, _kimi, (_KIMI_END, _SECTION_END)),
    ),
    (_SECTION, _SECTION_END, _KIMI, _KIMI_END, _ARGUMENTS),
)
