"""What the text of an answer gives away about it, without knowing the right one. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_REFUSALS = re.compile(
    r"(?i)^\W{0,4}(?:i(?:'|’| a)?m (?:very |really )?(?:sorry|unable|afraid)"
    r"|i (?:can(?:no|')t|am not able to|do not|don't) (?:help|assist|provide|answer|fulfill|comply|know|understand)"
    r"|i (?:do not|don't) have (?:access|enough|the ability|any information)"
    r"|i apologi[sz]e|sorry,? (?:but )?i|as an ai\b)"
)
#: An answer that says one thing this often in a row says nothing.
LOOPS = 4


def is_refusal(text: str) -> bool:
    return _REFUSALS.search(text[:200]) is not None


def repeats(text: str) -> bool:
    """Whether the end of the text goes round in circles: one unit of up to 80 characters, over and over."""
    tail = text.rstrip()[-400:]
    for size in range(1, min(80, len(tail) // LOOPS) + 1):
        unit = tail[-size:]
        times = max(LOOPS, -(-24 // size))
        if len(tail) >= size * times and tail.endswith(unit * times) and not unit.isspace():
            return True
    return False


def is_json(text: str) -> bool:
    """Whether the text is one JSON value, code fences aside."""
    inside = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def fault(text: str, body: Mapping[str, Any], finish_reason: str | None, *, complete: bool) -> str:
    """What makes an answer certainly not good; empty when nothing does. `complete`: it has ended."""
    if is_refusal(text):
        return "it refuses"
    if repeats(text):
        return "it repeats itself"
    if not complete:
        return ""
    wanted = body.get("response_format") or {}
    if finish_reason == "length" and not (body.get("max_tokens") or body.get("max_completion_tokens")):
        return "it was cut at the side's own limit"
    if finish_reason != "tool_calls" and not text.strip():
        return "it is empty"
    if wanted.get("type") in ("json_object", "json_schema") and not is_json(text):
        return "it is not the JSON that was asked for"
    return ""
