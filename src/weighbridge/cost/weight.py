"""What a request weighs, in tokens: known exactly on the way in, an estimate with quantiles on the way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class LengthLaw(Protocol):
    """How long outputs are, as learned from those that ended (see `cost.length`)."""

    def remaining(self, produced: int, max_tokens: int) -> float:
        """Expected output tokens still to come when `produced` are out and the output has not ended."""
        ...


@dataclass(frozen=True, slots=True)
class OutputEstimate:
    """Output tokens expected of one choice: never the truth, and never more than `max_tokens` allows."""

    mean: float
    p50: int
    p90: int
    samples: int = 0  # finished requests it was learned from
    law: LengthLaw | None = field(default=None, compare=False, repr=False)  # what it was learned from

    def remaining(self, produced: int, max_tokens: int) -> float:
        """Expected output tokens still to come when `produced` are out and the output has not ended.

        Without a law: what is left of the mean, and past it, of the 90 % quantile; at least one token.
        """
        room = max_tokens - produced
        if room <= 0:
            return 0.0
        if self.law is not None:
            return self.law.remaining(produced, max_tokens)
        left = self.mean - produced if produced < self.mean else 0.5 * (self.p90 - produced)
        return min(max(left, 1.0), room)


@dataclass(frozen=True, slots=True)
class Weight:
    """One request on the scales. Computed once, at the door, with the model's own tokenizer.

    `exact` is False where no tokenizer is at hand and `prompt_tokens` was estimated from bytes. Which prompt
    tokens a cache already holds depends on the replica, so it is not part of the weight. `prompts`: so many texts are
    computed, each by itself, and `prompt_tokens` are those of all.
    """

    prompt_tokens: int
    max_tokens: int
    output: OutputEstimate
    choices: int = 1
    kv_bytes_per_token: int = 0
    exact: bool = True
    prompts: int = 1

    @property
    def fitting_tokens(self) -> int:
        """Tokens for which there must be room at one time, at least: the longest text has no fewer than the mean."""
        return self.prompt_tokens // self.prompts + self.max_tokens

    @property
    def expected_tokens(self) -> float:
        """Prompt and expected output of all choices; the prompt is computed once."""
        return self.prompt_tokens + self.choices * self.output.mean

    @property
    def kv_tokens(self) -> float:
        """Tokens of KV cache it is expected to hold when it ends; choices share the prompt's blocks."""
        return self.expected_tokens

    @property
    def kv_bytes(self) -> float:
        return self.kv_tokens * self.kv_bytes_per_token

    @property
    def most_tokens(self) -> int:
        """Prompt and the longest output that `max_tokens` allows, of all choices."""
        return self.prompt_tokens + self.choices * self.max_tokens
