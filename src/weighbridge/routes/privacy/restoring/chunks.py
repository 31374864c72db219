"""The chunks of a chat stream with values put back: texts, and names and arguments of tool calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from weighbridge.routes.privacy.restoring.placeholders import Placeholders, TextRestorer


@dataclass(frozen=True, slots=True)
class _Place:
    """Which text of an answer: a field of a choice, or the arguments of one of its tool calls."""

    choice: int
    field: str
    call: int = -1


class ChunkRestorer:
    """Restores the chunks of a chat stream: content, refusals, reasoning, names and arguments of tool calls."""

    _FIELDS = ("content", "refusal", "reasoning_content", "reasoning")

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = Placeholders(values)
        self._texts: dict[_Place, TextRestorer] = {}

    def chunk(self, chunk: dict[str, Any]) -> dict[str, Any]:
        choices = [self._choice(choice) for choice in chunk.get("choices") or ()]
        return {**chunk, "choices": choices}

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        index = choice.get("index", 0)
        delta = dict(choice.get("delta") or {})
        for field in self._FIELDS:
            if isinstance(delta.get(field), str):
                delta[field] = self._push(_Place(index, field), delta[field])
        if delta.get("tool_calls"):
            delta["tool_calls"] = [self._call(index, call) for call in delta["tool_calls"]]
        if isinstance(delta.get("function_call"), dict):
            delta["function_call"] = self._function(_Place(index, "function_call"), delta["function_call"])
        if choice.get("finish_reason") is not None:
            self._flush(index, delta)
        restored = {**choice, "delta": delta}
        if isinstance(choice.get("stop_reason"), str):  # a string that the client gave, as it was sent on
            restored["stop_reason"] = self._at_once(choice["stop_reason"])
        return restored

    def _call(self, index: int, call: dict[str, Any]) -> dict[str, Any]:
        place = _Place(index, "arguments", call.get("index", 0))
        restored = {**call, "function": self._function(place, call.get("function") or {})}
        if isinstance(call.get("id"), str):
            restored["id"] = self._at_once(call["id"])
        return restored

    def _function(self, place: _Place, function: Mapping[str, Any]) -> dict[str, Any]:
        restored = dict(function)
        if isinstance(restored.get("name"), str):
            restored["name"] = self._at_once(restored["name"])
        if isinstance(restored.get("arguments"), str):
            restored["arguments"] = self._push(place, restored["arguments"])
        return restored

    def _at_once(self, text: str) -> str:
        """Names come whole, and clients take them from the first chunk."""
        restorer = TextRestorer(self._values)
        return restorer.push(text) + restorer.finish()

    def _push(self, place: _Place, piece: str) -> str:
        text = self._texts.get(place)
        if text is None:
            in_json = place.field in ("arguments", "function_call")
            text = self._texts[place] = TextRestorer(self._values, in_json=in_json)
        return text.push(piece)

    def _flush(self, index: int, delta: dict[str, Any]) -> None:
        """The end of a choice: what was held back goes out with it."""
        for place, text in self._texts.items():
            rest = text.finish() if place.choice == index else ""
            if not rest:
                continue
            if place.field == "arguments":
                calls = delta.setdefault("tool_calls", [])
                calls.append({"index": place.call, "function": {"arguments": rest}})
            elif place.field == "function_call":
                call = delta.setdefault("function_call", {})
                call["arguments"] = (call.get("arguments") or "") + rest
            else:
                delta[place.field] = (delta.get(place.field) or "") + rest

    def whole(self, chunks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """All chunks of an answer that is complete, and one with what was held back."""
        restored = [self.chunk(chunk) for chunk in chunks]
        rest = [{"index": index, "delta": delta} for index, delta in self.finish().items()]
        return [*restored, {"choices": rest}]

    def finish(self) -> dict[int, dict[str, Any]]:
        """Choices that ended without saying so: their index, and a delta with what was held back."""
        deltas: dict[int, dict[str, Any]] = {}
        for index in {place.choice for place in self._texts}:
            delta: dict[str, Any] = {}
            self._flush(index, delta)
            if delta:
                deltas[index] = delta
        return deltas
