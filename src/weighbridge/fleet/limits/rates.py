"""How much of its limits a tenant has left, as answers say it: OpenAI's headers, from the counters that refuse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Rate:
    """One limit by the minute. `kind` is "requests" or "tokens"; in `reset_s` seconds all that is used is over."""

    kind: str
    limit: float
    used: float
    reset_s: float

    @property
    def remaining(self) -> int:
        return max(int(self.limit - self.used), 0)

    def after(self, seconds: float) -> Rate:
        """The same, if nothing else has come meanwhile."""
        left = max(self.reset_s - seconds, 0.0)
        return Rate(self.kind, self.limit, self.used if left else 0.0, left)


def rate_headers(rates: Iterable[Rate]) -> list[tuple[bytes, bytes]]:
    """`x-ratelimit-limit|remaining|reset-requests|tokens`."""
    return [
        (f"x-ratelimit-{what}-{rate.kind}".encode(), value.encode())
        for rate in rates
        for what, value in (
            ("limit", f"{rate.limit:.0f}"),
            ("remaining", str(rate.remaining)),
            ("reset", duration(rate.reset_s)),
        )
    ]


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them, never too few: `20ms`, `8.64s`, `6m0s`, `1h0m0s`."""
    left = max(ceil(seconds * 1000 - 1e-6), 0)
    if 0 < left < 1000:
        return f"{left}ms"
    minutes, rest = divmod(left, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
