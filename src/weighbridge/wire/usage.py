"""`usage` as servers write it: read once, here, and checked, because money and limits are made of it.

Servers agree on three names and on little else: whether thinking is inside the completion or on top of it, and cached
input inside the prompt, is told by the sums alone. `tests/wire/test_usage_shapes.py` has a row for each known shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weighbridge.cost.usage import Usage

#: No request has more tokens; a server that says so is not believed.
MOST_TOKENS = 1 << 32

#: Where servers say more about the prompt, and about the completion, than one number.
_PROMPT = ("prompt_tokens_details", "input_tokens_details")
_OUTPUT = ("completion_tokens_details", "output_tokens_details")
_CACHED = (
    "cached_tokens",
    "prompt_cache_hit_tokens",
    "cache_read_input_tokens",
    "tokens_cached",
    "cachedContentTokenCount",
    "cacheReadInputTokens",
)
_WRITTEN = (
    "cache_creation_input_tokens",
    "cache_write_tokens",
    "cache_creation_tokens",
    "cacheWriteInputTokens",
)
_THOUGHT = ("reasoning_tokens", "thoughtsTokenCount")
#: Beside `input_tokens`, or where they do not fit into the prompt, these are counted apart from it.
_APART = (
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "cacheReadInputTokens",
    "cacheWriteInputTokens",
)
#: The three counts: OpenAI's names, Anthropic's, and those of relays that pass on Gemini's and Bedrock's as they are.
_INPUT = ("prompt_tokens", "input_tokens", "promptTokens", "promptTokenCount", "inputTokens")
_COMPLETION = (
    "completion_tokens",
    "output_tokens",
    "completionTokens",
    "candidatesTokenCount",
    "outputTokens",
)
_TOTAL = ("total_tokens", "totalTokens", "totalTokenCount")
#: A count that is written as a text; some relays put all numbers into quotes.
_WRITTEN_OUT = re.compile(r"\s*([0-9]{1,12})(?:\.[0-9]{0,12})?\s*")


@dataclass(frozen=True, slots=True)
class _Told:
    """What a server says, before it is known what is a part of what. None: it does not say."""

    prompt: int | None
    output: int | None
    total: int | None
    cached: int
    written: int
    reasoning: int
    apart: bool  # what a cache has is no part of `prompt`

    @property
    def in_cache(self) -> int:
        return self.cached + self.written


def read_usage(value: Any, counted: int | None = None) -> Usage | None:
    """Read the `usage` of an answer; None where there is none that can be believed.

    `counted` stands in for output tokens that the server does not give.
    """
    if not isinstance(value, dict):
        return None
    told = _told(value)
    prompt, output = _completed(told, counted)
    if prompt is None and output is None:
        return None
    prompt, output = prompt or 0, output or 0
    if told.prompt is not None and told.output is not None:
        whole = _whole_prompt(told, prompt, output)
        prompt, output = whole, _whole_output(told, whole, output)
    cached = min(told.cached, prompt)
    written, reasoning = min(told.written, prompt - cached), min(told.reasoning, output)
    return Usage(prompt, output, cached, written, reasoning)


def _told(value: Mapping[str, Any]) -> _Told:
    prompt = _first(value, *_INPUT)
    if prompt is None and "prompt_cache_miss_tokens" in value:
        hit, miss = _first(value, "prompt_cache_hit_tokens"), _first(value, "prompt_cache_miss_tokens")
        prompt = None if miss is None else miss + (hit or 0)
    cached = _most(value, _PROMPT, _CACHED)
    written = _most(value, _PROMPT, _WRITTEN)
    is_apart = "prompt_tokens" not in value or cached + written > (prompt or 0)
    return _Told(
        prompt,
        _first(value, *_COMPLETION),
        _first(value, *_TOTAL),
        cached,
        written,
        _most(value, _OUTPUT, _THOUGHT),
        is_apart and any(name in value for name in _APART),
    )


def _completed(told: _Told, counted: int | None) -> tuple[int | None, int | None]:
    """Prompt and output, where one of them is left out or both are."""
    prompt, output, total = told.prompt, told.output, told.total
    if output is None and total is not None and prompt is not None:
        output = max(total - prompt, 0)
    elif output is None:
        output = counted
    if prompt is None and total is not None:
        prompt = max(total - (output or 0), 0)
    return prompt, output


def _is_on_top(told: _Told, prompt: int, output: int) -> bool:
    """Whether thinking comes on top of the completion: the sum says so, or it does not fit inside."""
    if not told.reasoning:
        return False
    if told.total is None:
        return told.reasoning > output
    return told.total >= prompt + output + told.reasoning


def _whole_prompt(told: _Told, prompt: int, output: int) -> int:
    """The prompt, with what a cache has of it where that is counted apart."""
    if not told.in_cache or _is_on_top(told, prompt, output):
        return prompt
    is_apart = told.apart or told.total == prompt + output + told.in_cache
    return prompt + told.in_cache if is_apart else prompt


def _whole_output(told: _Told, prompt: int, output: int) -> int:
    """All that was generated. Where nothing is said of thinking, what the sum has more is that."""
    if _is_on_top(told, prompt, output):
        return output + told.reasoning
    if told.total is None or told.reasoning:
        return output
    return max(output, told.total - prompt)


def _first(value: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a count."""
    for name in names:
        if name in value and (found := tokens(value[name])) is not None:
            return found
    return None


def _most(value: Mapping[str, Any], details: tuple[str, ...], names: tuple[str, ...]) -> int:
    """The largest count of one of these names, beside the others and in the details; 0 without one."""
    most = 0
    for place in (value, *[inner for name in details if isinstance(inner := value.get(name), dict)]):
        for name in names:
            if name in place and (found := tokens(place[name])) is not None and found > most:
                most = found
    return most


def tokens(value: Any) -> int | None:
    """A count of tokens from outside: whole, not negative, not absurd, in quotes or not; None for anything else."""
    if isinstance(value, str) and (match := _WRITTEN_OUT.fullmatch(value)):
        value = int(match[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MOST_TOKENS else None  # NaN is in no range


def usage_fields(usage: Usage) -> dict[str, Any]:
    """`usage` as OpenAI's clients read it."""
    thought = {"reasoning_tokens": usage.reasoning_tokens}
    written = {"cache_write_tokens": usage.written_tokens} if usage.written_tokens else {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, **written},
        **({"completion_tokens_details": thought} if usage.reasoning_tokens else {}),
    }
