"""What a request weighs, in tokens: known exactly on the way in, an estimate with quantiles on the way out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputEstimate:
    """Output tokens expected of one choice: never the truth, and never more than `max_tokens` allows."""

    mean: float
    p50: int
    p90: int
    samples: int = 0  # finished requests it was learned from


@dataclass(frozen=True, slots=True)
class Weight:
    """One request on the scales. Computed once, at the door, with the model's own tokenizer.

    `exact` is False where no tokenizer is at hand and `prompt_tokens` was estimated from bytes. Which prompt
    tokens a cache already holds depends on the replica, so it is not part of the weight.
    """

    prompt_tokens: int
    max_tokens: int
    output: OutputEstimate
    choices: int = 1
    kv_bytes_per_token: int = 0
    exact: bool = True

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
