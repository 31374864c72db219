"""What tokens cost: by the token, as a cloud API bills them, or by the hour, as a machine does.

Money is counted in whole nano-dollars, so that sums of it are exact. The one place where tokens become money.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weighbridge.cost.usage import Usage

#: Nano-dollars of a US dollar.
NANO = 1_000_000_000
#: Pico-dollars a token of one US dollar per million tokens: rates are whole numbers of them.
_PICO_PER_RATE = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million input, output and cached input tokens, and per hour that the machine is there.

    `cached_usd_per_million` None: cached input costs what other input costs. `cache_write_usd_per_million` is for
    input that a provider puts into its cache for later; None: what other input costs.
    """

    input_usd_per_million: float = 0.0
    output_usd_per_million: float = 0.0
    cached_usd_per_million: float | None = None
    usd_per_hour: float = 0.0
    cache_write_usd_per_million: float | None = None
    _pico: tuple[int, int, int, int] = field(init=False, repr=False, compare=False)  # a token, by kind

    def __post_init__(self) -> None:
        fresh = self.input_usd_per_million
        cached, written = self.cached_usd_per_million, self.cache_write_usd_per_million
        rates = (
            fresh,
            self.output_usd_per_million,
            fresh if cached is None else cached,
            fresh if written is None else written,
        )
        pico = tuple(round(rate * _PICO_PER_RATE) for rate in rates)
        object.__setattr__(self, "_pico", pico)

    @property
    def is_free(self) -> bool:
        """Whether tokens cost nothing."""
        return not any(self._pico)

    def nano_usd(self, usage: Usage) -> int:
        """Nano-dollars for one request, rounded once."""
        fresh, output, cached, written = self._pico
        computed = usage.prompt_tokens - usage.cached_tokens - usage.written_tokens
        return _nano(
            computed * fresh
            + usage.cached_tokens * cached
            + usage.written_tokens * written
            + usage.output_tokens * output
        )

    def usd(self, usage: Usage) -> float:
        """US dollars for one request: `nano_usd` for people."""
        return self.nano_usd(usage) / NANO

    def at_most(self, prompt_tokens: int, output_tokens: int) -> float:
        """US dollars that a request costs at most, whatever of its prompt a cache has or gets."""
        fresh, output, cached, written = self._pico
        return _nano(prompt_tokens * max(fresh, cached, written) + output_tokens * output) / NANO


def _nano(pico: int) -> int:
    return (pico + 500) // 1000


FREE = Price()
