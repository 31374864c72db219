"""What a side's answers have taken so far, and so what the next one will take. Pure: times are passed in."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Smoothed:
    """Exponentially smoothed mean and absolute deviation, as TCP estimates round trips (Jacobson 1988)."""

    gain: float = 0.1
    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        gain = max(self.gain, 1.0 / self.count)
        error = value - self.mean
        self.mean += gain * error
        self.deviation += gain * (abs(error) - self.deviation)

    def upper(self, deviations: float = 2.0) -> float:
        """A cautious estimate: about the 95th percentile where values are normal."""
        return self.mean + deviations * self.deviation


@dataclass(slots=True)
class Latency:
    """Time to first token and time per further token of one side, in seconds."""

    first: Smoothed = field(default_factory=Smoothed)
    per_token: Smoothed = field(default_factory=Smoothed)

    def observe(self, first_seconds: float, rest_seconds: float, tokens: int) -> None:
        """A finished answer: seconds to its first token, then `rest_seconds` for the other `tokens - 1`."""
        self.first.add(first_seconds)
        if tokens > 1:
            self.per_token.add(rest_seconds / (tokens - 1))

    def expected(self, output_tokens: float, cautious: bool = True) -> float | None:
        """Seconds until an answer of `output_tokens` is complete; None before anything was observed."""
        if not self.first.count:
            return None
        first = self.first.upper() if cautious else self.first.mean
        return first + max(output_tokens - 1, 0) * self.per_token.mean


@dataclass(slots=True)
class TokenCount:
    """Tokens per UTF-8 byte of a side's own tokenizer, learned from the usage it reports."""

    ratio: Smoothed = field(default_factory=lambda: Smoothed(gain=0.05, mean=0.3))

    def observe(self, size: int, tokens: int) -> None:
        if size > 0 and tokens > 0:
            self.ratio.add(tokens / size)

    def estimate(self, size: int) -> int:
        """Expected prompt tokens of `size` bytes."""
        return max(1, round(size * self.ratio.mean))


def most_prompt_tokens(size: int, messages: int) -> int:
    """No byte-level tokenizer makes more tokens than bytes; each message adds a few of its template's."""
    return size + 8 * messages + 8
