"""The corpora of requests: each protocol's fields, kinds of items and of parts, once at least."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

#: A picture of one point.
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
_URL = f"data:image/png;base64,{PICTURE}"
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
WORDS = (
    *(b'"type":"', b'"role":"', b'"content":', b'"text":', b'"name":', b'"id":', b'"input":', b'"tools":['),
    *(b'"messages":[', b'"tool_calls":[', b'"weighbridge":{', b"null", b"1e999", b"\\ud800", b"[{}]", b"{}"),
)


def _compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _part(kind: str, text: str) -> Json:
    return {"type": kind, "text": text}


#: What requests for responses have somewhere.
RESPONSES_PIECES: tuple[Any, ...] = (
    *(
        {"type": "message"},
        {"role": "developer"},
        {"role": "assistant"},
        {"type": "item_reference", "id": "m"},
    ),
    *(_part("input_text", "a"), _part("output_text", "b"), {"type": "refusal", "refusal": "c"}),
    *({"type": "input_image", "image_url": _URL}, {"type": "input_file"}, {"detail": "low"}),
    {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "1"},
    {"type": "reasoning", "summary": [_part("summary_text", "d")]},
    *({"previous_response_id": "resp_1"}, {"background": True}, {"store": True}, {"conversation": "x"}),
    *({"tool_choice": {"type": "allowed_tools", "tools": [{"name": "add"}]}}, {"tool_choice": "required"}),
    *({"include": ["message.output_text.logprobs"]}, {"top_logprobs": 3}, {"seed": 1}, {"stop": ["a"]}),
    *({"metadata": {"a": "b"}}, {str(number): "x" for number in range(20)}),
    *({"text": {"format": {"type": "json_object"}}}, {"weighbridge": {"labels": ["a"]}}, {"user": "u"}),
)


def responses() -> list[bytes]:
    """Items of every kind, tools and forms; one with text alone; one that goes on from another."""
    tool = {"type": "function", "name": "add", "description": "Adds.", "parameters": _SCHEMA, "strict": True}
    turns: list[Json] = [
        {
            "role": "user",
            "content": [_part("input_text", "7 and 8"), {"type": "input_image", "image_url": _URL}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [_part("reasoning_text", "sum")]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 7}'},
        {"type": "function_call_output", "call_id": "c", "output": [_part("input_text", "15")]},
        {"role": "assistant", "content": [_part("output_text", "15"), {"type": "refusal", "refusal": "no"}]},
        {"role": "developer", "content": "Be brief."},
    ]
    form = {"type": "json_schema", "name": "answer", "schema": _SCHEMA, "strict": True}
    wishes = {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 9, "metadata": {"k": "v"}}
    return [
        _compact({"model": "m", "input": "zello"}),
        _compact(
            {"model": "m", "instructions": "Add.", "input": turns, "tools": [tool], "stream": True, **wishes}
        ),
        _compact(
            {"input": turns[:1], "text": {"format": form}, "reasoning": {"effort": "low", "summary": "auto"}}
        ),
        _compact(
            {"model": "m", "previous_response_id": "resp_1", "input": "on", "weighbridge": {"priority": 1}}
        ),
    ]


#: What requests for messages have somewhere.
MESSAGES_PIECES: tuple[Any, ...] = (
    *({"role": "user"}, {"role": "assistant"}, {"role": "system"}, _part("text", "a")),
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
    {"type": "image", "source": {"type": "url", "url": "http://h/p.png"}},
    {"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}},
    {"type": "tool_result", "tool_use_id": "t", "content": "1", "is_error": True},
    *({"type": "thinking", "thinking": "b", "signature": ""}, {"type": "redacted_thinking", "data": "c"}),
    *(
        {"type": "document"},
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "tool", "name": "add"}},
    ),
    *({"thinking": {"type": "adaptive"}}, {"output_config": {"effort": "max"}}, {"mcp_servers": []}),
    *({"cache_control": {"type": "ephemeral"}}, {"stop_sequences": ["a"]}, {"system": [_part("text", "d")]}),
)


def messages() -> list[bytes]:
    """Blocks of every kind, tools and thoughts; one with text alone."""
    tool = {"name": "add", "description": "Adds.", "input_schema": _SCHEMA}
    turns: list[Json] = [
        {"role": "user", "content": [_part("text", "7 and 8"), MESSAGES_PIECES[4]]},
        {"role": "assistant", "content": [MESSAGES_PIECES[8], _part("text", "sum"), MESSAGES_PIECES[6]]},
        {"role": "user", "content": [MESSAGES_PIECES[7], _part("text", "and?")]},
        {"role": "user", "content": "now"},
    ]
    form = {"type": "json_schema", "schema": _SCHEMA}
    wishes = {"temperature": 0.5, "top_k": 3, "stop_sequences": ["z"], "thinking": {"type": "enabled"}}
    three = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    return [
        _compact({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "zello"}]}),
        _compact({"model": "m", "max_tokens": 9, "messages": three}),
        _compact(
            {"model": "m", "max_tokens": 9, "messages": turns, "tools": [tool], "stream": True, **wishes}
        ),
        _compact(
            {
                "model": "m",
                "max_tokens": 9,
                "system": "Add.",
                "messages": turns[:1],
                "output_config": {"effort": "low", "format": form},
                "metadata": {"user_id": "u"},
            }
        ),
    ]


#: What requests of Ollama's API have somewhere.
OLLAMA_PIECES: tuple[Any, ...] = (
    *({"role": "user"}, {"role": "tool"}, {"role": "assistant"}, {"content": "a"}, {"thinking": "b"}),
    *({"images": [PICTURE]}, {"images": [_URL]}, {"tool_name": "add"}, {"tool_call_id": "call_1_0"}),
    *({"function": {"name": "add", "arguments": {"a": 1}}}, {"tool_calls": [{"function": {"name": "add"}}]}),
    *(
        {"options": {"mirostat": 1}},
        {"num_predict": -1},
        {"top_p": 2},
        {"format": "json"},
        {"format": _SCHEMA},
    ),
    *({"think": True}, {"think": "low"}, {"raw": True}, {"suffix": "z"}, {"context": [1]}, {"keep_alive": 0}),
    *({"stream": False}, {"prompt": "a"}, {"input": ["a", "b"]}, {"weighbridge": {"tenant": "t"}}),
)


def ollama() -> list[bytes]:
    """A chat with calls and pictures, prompts, and texts to embed; the first byte says which of them it is."""
    call = {"function": {"name": "add", "arguments": {"a": 7}}}
    turns: list[Json] = [
        {"role": "user", "content": "7 and 8", "images": [PICTURE]},
        {"role": "assistant", "thinking": "sum", "tool_calls": [call, call, {"id": "c", **call}]},
        {"role": "tool", "tool_name": "add", "content": "15"},
        {"role": "tool", "content": "15"},
        {"role": "tool", "tool_call_id": "c", "content": "15"},
    ]
    nameless = [
        {"role": "assistant", "tool_calls": [call, {"function": {"name": "sub"}}]},
        {"role": "tool", "content": "15"},
        {"role": "tool", "tool_name": "sub", "content": "15"},
    ]
    tool = {"type": "function", "function": {"name": "add", "parameters": _SCHEMA}}
    options = {"temperature": 0.5, "num_predict": 9, "stop": ["z"], "repeat_penalty": 1.1}
    return [
        b"\x00" + _compact({"model": "m:latest", "messages": turns, "tools": [tool], "options": options}),
        b"\x00" + _compact({"model": "m", "messages": nameless}),
        b"\x00" + _compact({"model": "m", "messages": [], "keep_alive": 0}),
        b"\x01"
        + _compact({"model": "m", "prompt": "zello", "system": "Add.", "format": _SCHEMA, "stream": False}),
        b"\x01" + _compact({"model": "m", "prompt": "zello", "raw": True, "options": {"seed": 1}}),
        b"\x02" + _compact({"model": "m", "input": ["a", "b"], "dimensions": 8}),
        b"\x03" + _compact({"model": "m", "prompt": "a"}),
    ]
