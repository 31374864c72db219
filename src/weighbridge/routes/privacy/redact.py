"""Placeholders for values, the same one for the same value, and their return. Pure.

    alice@example.com  ->  [EMAIL_1]  ->  alice@example.com

What comes back is restored also where a placeholder is split over stream chunks, and, inside the arguments of
tool calls, as the JSON string that the value is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from weighbridge.routes.privacy import walk

#: Values this long are replaced wherever they stand; shorter ones only as whole words.
LONG = 6


class Vault:
    """The placeholders of one request. Forgotten with it."""

    def __init__(self, texts: Iterable[str]) -> None:
        """`texts`: all that the request holds, so that no placeholder looks like something already there."""
        self._all = "\x00".join(texts)
        self._tag = ""
        while re.search(rf"\[[A-Z_]+{self._tag}_\d+\]", self._all):
            self._tag += "X"
        self.placeholders: dict[str, str] = {}  # value -> placeholder
        self.values: dict[str, str] = {}  # placeholder -> value
        self.counts: Counter[str] = Counter()
        self._types: dict[str, str] = {}  # value, case folded -> type

    def add(self, value: str, type: str) -> None:
        """Keep a value secret from now on."""
        self._types.setdefault(value.casefold(), type)
        self._placeholder(value)

    def replacer(self) -> re.Pattern[str] | None:
        """Matches every value kept, longest first, whatever its case."""
        if not self._types:
            return None
        known = sorted(self._types, key=len, reverse=True)
        parts = [re.escape(v) if len(v) >= LONG else rf"(?<!\w){re.escape(v)}(?!\w)" for v in known]
        return re.compile("|".join(parts), re.IGNORECASE)

    def redact(self, value: Any) -> Any:
        """A JSON value with every secret replaced, keys and embedded JSON included."""
        expression = self.replacer()
        if expression is None:
            return value
        return walk.rewrite(
            value, lambda text: expression.sub(lambda match: self._placeholder(match[0]), text)
        )

    def leaks(self, texts: Iterable[str]) -> bool:
        """Whether any value kept can still be read in `texts`."""
        expression = self.replacer()
        return expression is not None and any(expression.search(text) for text in texts)

    def _placeholder(self, value: str) -> str:
        known = self.placeholders.get(value)
        if known is not None:
            return known
        type = self._types.get(value.casefold(), "VALUE")
        self.counts[type] += 1
        placeholder = f"[{type}{self._tag}_{self.counts[type]}]"
        self.placeholders[value] = placeholder
        self.values[placeholder] = value
        return placeholder


class TextRestorer:
    """Restores a text that comes in pieces. Holds back only what may become a placeholder."""

    def __init__(self, values: Mapping[str, str], *, in_json: bool = False) -> None:
        if in_json:
            values = {key: json.dumps(value, ensure_ascii=False)[1:-1] for key, value in values.items()}
        self._values = values
        self._longest = max(map(len, values), default=0)
        self._expression = re.compile(
            "|".join(map(re.escape, sorted(values, key=len, reverse=True))) or r"(?!)"
        )
        self._held = ""

    def push(self, piece: str) -> str:
        text = self._held + piece
        start = text.rfind("[")
        if start >= 0 and self._may_become_one(text[start:]):
            text, self._held = text[:start], text[start:]
        else:
            self._held = ""
        return self._put_back(text)

    def finish(self) -> str:
        text, self._held = self._held, ""
        return self._put_back(text)

    def _may_become_one(self, tail: str) -> bool:
        return len(tail) < self._longest and any(one.startswith(tail) for one in self._values)

    def _put_back(self, text: str) -> str:
        return self._expression.sub(lambda match: self._values[match[0]], text)


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
        self._values = values
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
        if choice.get("finish_reason") is not None:
            self._flush(index, delta)
        return {**choice, "delta": delta}

    def _call(self, index: int, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call.get("function") or {})
        number = call.get("index", 0)
        if isinstance(function.get("arguments"), str):
            function["arguments"] = self._push(_Place(index, "arguments", number), function["arguments"])
        restored = {**call, "function": function}
        if isinstance(call.get("id"), str):
            restored["id"] = TextRestorer(self._values).push(call["id"])
        return restored

    def _push(self, place: _Place, piece: str) -> str:
        text = self._texts.get(place)
        if text is None:
            in_json = place.field == "arguments"
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
            else:
                delta[place.field] = (delta.get(place.field) or "") + rest

    def finish(self) -> dict[int, dict[str, Any]]:
        """Choices that ended without saying so: their index, and a delta with what was held back."""
        deltas: dict[int, dict[str, Any]] = {}
        for index in {place.choice for place in self._texts}:
            delta: dict[str, Any] = {}
            self._flush(index, delta)
            if delta:
                deltas[index] = delta
        return deltas
