"""Tools for chat templates that have no place for them: told in words, called in JSON, answered by the user. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Turn = dict[str, Any]


def is_about_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether turns of a chat call tools, or tell of results."""
    return any(one.get("role") == "tool" or one.get("tool_calls") for one in messages)


def in_words(
    messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None, *, has_system: bool
) -> list[Turn]:
    """Return the chat for a template that knows texts of system, user and assistant alone, or without `has_system` of
    the latter two."""
    turns: list[Turn] = []
    names: dict[Any, str] = {}
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "tool":
            called = names.get(message.get("tool_call_id")) or message.get("name")
            _add(turns, "user", f"Result of {called}:\n{content}" if called else f"Result:\n{content}")
        elif message.get("tool_calls"):
            calls = [_called(call) for call in message["tool_calls"]]
            names |= {call.get("id"): call.get("function", {}).get("name") for call in message["tool_calls"]}
            turns.append({"role": "assistant", "content": "\n".join([content] * bool(content) + calls)})
        elif role == "user":
            _add(turns, role, content)
        else:
            turns.append({**message, "content": content})
    return _with_tools(turns, tools, has_system) if tools else turns


def _add(turns: list[Turn], role: str, content: str) -> None:
    """Turns of one side that follow each other are one: many templates take no others."""
    if turns and turns[-1]["role"] == role:
        turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n\n{content}"}
    else:
        turns.append({"role": role, "content": content})


def _called(call: Mapping[str, Any]) -> str:
    function = call.get("function", {})
    return _json({"name": function.get("name"), "arguments": function.get("arguments") or {}})


def _with_tools(turns: list[Turn], tools: Sequence[Mapping[str, Any]], has_system: bool) -> list[Turn]:
    told = _told(tools)
    first = turns[0] if turns else None
    if first is not None and first["role"] in ("system", "developer"):
        return [{**first, "content": f"{first['content']}\n\n{told}"}, *turns[1:]]
    if has_system or first is None:
        return [{"role": "system", "content": told}, *turns]
    return [{**first, "content": f"{told}\n\n{first['content']}"}, *turns[1:]]


def _told(tools: Sequence[Mapping[str, Any]]) -> str:
    lines = [_json(tool.get("function", tool)) for tool in tools]
    return "\n".join(
        [
            "You can call these functions, each described by a JSON object:",
            *lines,
            'To call one, answer with nothing but a JSON object: {"name": "its name", "arguments": {...}}. '
            "You are then told the result. To answer without a call, write plain text.",
        ]
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
