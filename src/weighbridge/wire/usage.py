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

#: Names are compared without case and underscores: relays pass on OpenAI's, Anthropic's, Gemini's and Bedrock's in the
#: spelling of their own language. First where servers say more about the prompt, and about the completion.
_PROMPT = ("prompttokensdetails", "inputtokensdetails", "prompttokendetails", "inputtokendetails")
_OUTPUT = ("completiontokensdetails", "outputtokensdetails", "completiontokendetails", "outputtokendetails")
#: These two are what a cache had and got, counted apart from the prompt where it is not called `prompt_tokens`.
_READ_APART = ("cachereadinputtokens", "cachereadinputtokenscount", "cachereadinputtokencount")
_WRITTEN_APART = (
    "cachecreationinputtokens",
    "cachewriteinputtokens",
    "cachewriteinputtokenscount",
    "cachewriteinputtokencount",
    "cachecreation",  # by how long it is kept
)
_CACHED = (
    "cachedtokens",
    "promptcachehittokens",
    "tokenscached",
    "cachedcontenttokencount",
    "cachedprompttokens",
    "cachedinputtokens",
    "cachereadtokens",
    "cacheread",
    *_READ_APART,
)
_WRITTEN = ("cachewritetokens", "cachecreationtokens", "cachewrite", *_WRITTEN_APART)
#: Gemini's thoughts are never a part of its candidates.
_THOUGHTS = "thoughtstokencount"
_THOUGHT = ("reasoningtokens", "thinkingtokens", "reasoning", _THOUGHTS)
#: The three counts.
_INPUT = ("prompttokens", "inputtokens", "prompttokencount", "inputtokencount", "promptevalcount")
_COMPLETION = (
    "completiontokens",
    "outputtokens",
    "candidatestokencount",
    "outputtokencount",
    "generatedtokens",
    "generatedtokencount",
    "evalcount",
)
_TOTAL = ("totaltokens", "totaltokencount")
#: What tools of a server's own put before the model, which is billed as prompt.
_OF_TOOLS = "tooluseprompttokencount"
#: Where the counts themselves stand one level further in: what is billed before what was there.
_WITHIN = ("billedunits", "tokens", "usage", "usagemetadata")
#: A count that is written as a text; some relays put all numbers into quotes.
_WRITTEN_OUT = re.compile(
    r"\s*([0-9]{1,12}|[0-9]{1,3}(?:,[0-9]{3}){1,3})(?:\.[0-9]{0,12})?(?:[eE]\+?0{0,2}([0-9]))?\s*"
)


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
    on_top: bool  # thinking is no part of `output`

    @property
    def in_cache(self) -> int:
        return self.cached + self.written

    @property
    def is_nothing(self) -> bool:
        return self.prompt is None and self.output is None and self.total is None


def read_usage(value: Any, counted: int | None = None) -> Usage | None:
    """Read the `usage` of an answer; None where there is none that can be believed.

    `counted` stands in for output tokens that the server does not give.
    """
    if not isinstance(value, dict):
        return None
    told = _anywhere(_plain(value))
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


def _plain(value: Mapping[Any, Any]) -> dict[str, Any]:
    """By names without case and underscores; of two spellings the one that says something."""
    plain: dict[str, Any] = {}
    for name, one in value.items():
        key = str(name).replace("_", "").lower()
        if not plain.get(key):
            plain[key] = one
    return plain


def _anywhere(value: Mapping[str, Any]) -> _Told:
    """What is told here, or, where nothing is, one level further in."""
    told = _told(value)
    if told.is_nothing:
        within = (_told(_plain(inner)) for name in _WITHIN if isinstance(inner := value.get(name), dict))
        return next((one for one in within if not one.is_nothing), told)
    return told


def _told(value: Mapping[str, Any]) -> _Told:
    prompt, output, total = _first(value, _INPUT), _first(value, _COMPLETION), _first(value, _TOTAL)
    if prompt is None and "promptcachemisstokens" in value:
        hit, miss = _first(value, ("promptcachehittokens",)), _first(value, ("promptcachemisstokens",))
        prompt = None if miss is None else miss + (hit or 0)
    if output is None and prompt is not None and _THOUGHTS in value:
        output = 0  # it thought, and did not answer
    if prompt is not None and (of_tools := _first(value, (_OF_TOOLS,))):
        prompt += of_tools
    cached = _most(value, _PROMPT, _CACHED)
    written = _most(value, _PROMPT, _WRITTEN)
    is_apart = not _first(value, ("prompttokens",)) or cached + written > (prompt or 0)
    is_apart = is_apart and any(name in value for name in (*_READ_APART, *_WRITTEN_APART))
    is_on_top = bool(_first(value, (_THOUGHTS,)))
    return _Told(prompt, output, total, cached, written, _most(value, _OUTPUT, _THOUGHT), is_apart, is_on_top)


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
    if told.reasoning > output:
        return True  # Perplexity's, which its sum leaves out
    if told.total is None:
        return told.on_top
    return told.total >= prompt + output + told.reasoning


def _whole_prompt(told: _Told, prompt: int, output: int) -> int:
    """The prompt, with what a cache has of it where that is counted apart."""
    if not told.in_cache:
        return prompt
    generated = output + (told.reasoning if _is_on_top(told, prompt, output) else 0)
    if told.total == prompt + generated:
        is_apart = (
            told.apart and told.in_cache > prompt
        )  # the sum has no room for it, but it cannot be inside
    else:
        is_apart = told.apart or told.total == prompt + generated + told.in_cache
    return prompt + told.in_cache if is_apart else prompt


def _whole_output(told: _Told, prompt: int, output: int) -> int:
    """All that was generated. Where nothing is said of thinking, what the sum has more is that."""
    if _is_on_top(told, prompt, output):
        return output + told.reasoning
    if told.total is None or told.reasoning:
        return output
    return max(output, told.total - prompt)


def _first(value: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of these that is a count, and not 0 where another one says more."""
    found = None
    for name in names:
        if name in value and (count := tokens(value[name])) is not None:
            if count:
                return count
            found = count
    return found


def _most(value: Mapping[str, Any], details: tuple[str, ...], names: tuple[str, ...]) -> int:
    """The largest count of one of these names, beside the others and in the details; 0 without one."""
    inner = [_plain(one) for name in details if isinstance(one := value.get(name), dict)]
    return max((_sum(place[name]) for place in (value, *inner) for name in names if name in place), default=0)


def _sum(value: Any) -> int:
    """A count, or all counts that it is split into."""
    parts = value.values() if isinstance(value, dict) else (value,)
    return sum(tokens(part) or 0 for part in parts)


def tokens(value: Any) -> int | None:
    """A count of tokens from outside: whole, not negative, not absurd, in quotes or not; None for anything else."""
    if isinstance(value, str) and (match := _WRITTEN_OUT.fullmatch(value)):
        value = float(value.replace(",", "")) if match[2] else int(match[1].replace(",", ""))
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
