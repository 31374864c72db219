"""What tokens cost: by the token, as a cloud API bills them, or by the hour, as a machine does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million input, output and cached input tokens, and per hour that the machine is there.

    `cached_usd_per_million` None: cached input costs what other input costs.
    """

    input_usd_per_million: float = 0.0
    output_usd_per_million: float = 0.0
    cached_usd_per_million: float | None = None
    usd_per_hour: float = 0.0

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """US dollars for one request; `cached_tokens` are those of `input_tokens` served from a cache."""
        cached_rate = self.cached_usd_per_million
        if cached_rate is None:
            cached_rate = self.input_usd_per_million
        fresh = input_tokens - cached_tokens
        micro = (
            fresh * self.input_usd_per_million
            + cached_tokens * cached_rate
            + output_tokens * self.output_usd_per_million
        )
        return micro / 1e6


FREE = Price()
