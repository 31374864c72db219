"""`usage` as servers write it: read once, here, and checked, because money and limits are made of it."""

from __future__ import annotations

import math
from typing import Any

from weighbridge.cost.usage import Usage

#: No request has more tokens; a server that says so is not believed.
MOST_TOKENS = 1 << 32


def read_usage(value: Any, counted: int | None = None) -> Usage | None:
    """Read the `usage` of an answer; None where there is none that can be believed.

    `counted` stands in for output tokens that the server does not give.
    """
    if not isinstance(value, dict):
        return None
    prompt, output = tokens(value.get("prompt_tokens")), tokens(value.get("completion_tokens"))
    if output is None:
        output = counted
    if prompt is None and output is None:
        return None
    details = value.get("prompt_tokens_details")
    cached = tokens(details.get("cached_tokens")) if isinstance(details, dict) else None
    prompt = prompt or 0
    return Usage(prompt, output or 0, min(cached or 0, prompt))


def tokens(value: Any) -> int | None:
    """A count of tokens from outside: whole, not negative, not absurd; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if 0 <= value <= MOST_TOKENS else None


def usage_fields(usage: Usage) -> dict[str, Any]:
    """`usage` as OpenAI's clients read it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
