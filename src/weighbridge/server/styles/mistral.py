"""Calls as Mistral's models write them.

[TOOL_CALLS] [{"name": "look", "arguments": {"key": "a"}}]        until tokenizer 7
[TOOL_CALLS]look[ARGS]{"key": "a"}[TOOL_CALLS]weigh[ARGS]{}       since 11, some without [ARGS]
[TOOL_CALLS]look[CALL_ID]a1b2c3d4e[ARGS]{"key": "a"}              in between
"""

from __future__ import annotations

from weighbridge.server.styles.json_calls import BARE, FENCED, some_calls
from weighbridge.server.styles.reading import (
    CallOpening,
    Calls,
    NoCall,
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


def _calls(calls: Calls) -> Reading[None]:
    character = yield from after_space()
    if character in "[{":
        yield from some_calls(calls, character)
        return
    name, stop = yield from name_until(calls, "[{", character)
    call_id = ""
    if stop == "[":
        if (yield from one_of(("[ARGS]", "[CALL_ID]"), stop)) == "[CALL_ID]":
            call_id = yield from word_until("[")
            yield from literal("ARGS]")
        stop = expect((yield from after_space()), "{")
    if not call_id.isalnum() and call_id:
        raise NoCall
    calls.begin(name, call_id)
    yield from value(stop, calls.argue)
    calls.end()


MARKED = CallOpening("[TOOL_CALLS]", _calls)
MISTRAL = ToolStyle("mistral", (MARKED, FENCED, BARE), ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"))
