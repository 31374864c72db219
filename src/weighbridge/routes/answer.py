"""Chunks of a chat stream put together to one answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class _Choice:
    content: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    finish: str | None = None


@dataclass(slots=True)
class Gathered:
    """Add the chunks in order, then ask for the whole."""

    id: str = ""
    created: int = 0
    choices: dict[int, _Choice] = field(default_factory=dict)
    usage: dict[str, Any] | None = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        self.id = self.id or chunk.get("id") or ""
        self.created = self.created or chunk.get("created") or 0
        self.usage = chunk.get("usage") or self.usage
        for part in chunk.get("choices") or ():
            choice = self.choices.setdefault(part.get("index", 0), _Choice())
            delta = part.get("delta") or {}
            choice.content.append(delta.get("content") or "")
            choice.refusal.append(delta.get("refusal") or "")
            for call in delta.get("tool_calls") or ():
                _add_call(choice.calls, call)
            choice.logprobs += (part.get("logprobs") or {}).get("content") or []
            choice.finish = part.get("finish_reason") or choice.finish

    def whole(self, model: str, with_logprobs: bool) -> dict[str, Any]:
        """A `chat.completion`."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": model,
            "choices": [_message(i, self.choices[i], with_logprobs) for i in sorted(self.choices)],
            "usage": self.usage,
        }


def _add_call(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    call = calls.setdefault(
        part.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    )
    call["id"] = call["id"] or part.get("id") or ""
    function = part.get("function") or {}
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""


def _message(index: int, choice: _Choice, with_logprobs: bool) -> dict[str, Any]:
    text = "".join(choice.content)
    calls = [choice.calls[number] for number in sorted(choice.calls)]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
    if any(choice.refusal):
        message["refusal"] = "".join(choice.refusal)
    if calls:
        message["tool_calls"] = calls
    logprobs = {"content": choice.logprobs} if with_logprobs and choice.logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}
