"""Calls whose parameters stand between tags, typed by the tool's schema.

<tool_call>                                    Qwen3-Coder; the outer tags may be missing
<function=look>
<parameter=key>
a
</parameter>
</function>
</tool_call>

<tool_call>look                                GLM 4.5 and later; the line breaks may be missing
<arg_key>key</arg_key>
<arg_value>a</arg_value>
</tool_call>
"""

from __future__ import annotations

from weighbridge.server.styles.reading import (
    SPACE,
    CallOpening,
    Calls,
    Reading,
    ToolStyle,
    after_space,
    name_until,
    one_of,
    word_until,
)
from weighbridge.server.styles.typed import TypedArguments

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


def _function(calls: Calls) -> Reading[None]:
    """A function of Qwen3-Coder, behind its first mark."""
    name, _ = yield from name_until(calls, ">")
    mark = yield from one_of((_PARAMETER, _FUNCTION_END, _CALL_END))
    calls.begin(name)
    arguments = TypedArguments(calls, name, trims=True)
    while mark == _PARAMETER:
        key = yield from word_until(">")
        yield from arguments.parameter(key.strip(SPACE), _PARAMETER_END)
        mark = yield from one_of((_PARAMETER, _FUNCTION_END, _CALL_END))
    arguments.close()


def _functions(calls: Calls) -> Reading[None]:
    """What Qwen3-Coder writes behind `<tool_call>`."""
    yield from one_of((_FUNCTION,))
    yield from _function(calls)


def _call(calls: Calls) -> Reading[None]:
    """What GLM writes behind `<tool_call>`."""
    name, stop = yield from name_until(calls, "<\n", (yield from after_space()))
    mark = yield from one_of((_KEY, _CALL_END), "<" if stop == "<" else "")
    calls.begin(name)
    arguments = TypedArguments(calls, name)
    while mark == _KEY:
        key = yield from word_until(_KEY_END)
        yield from one_of((_VALUE,))
        yield from arguments.parameter(key.strip(SPACE), _VALUE_END)
        mark = yield from one_of((_KEY, _CALL_END))
    arguments.close()


QWEN_CODER = ToolStyle(
    "qwen3-coder",
    (
        CallOpening(_CALL, _functions, (_FUNCTION_END, _CALL_END)),
        CallOpening(_FUNCTION, _function, (_FUNCTION_END, _CALL_END)),
    ),
    (_CALL, _CALL_END),
)
GLM = ToolStyle(
    "glm",
    (CallOpening(_CALL, _call, (_CALL_END,)),),
    (_CALL, _CALL_END, _KEY, _KEY_END, _VALUE, _VALUE_END),
)
