"""Service-level objectives, and the one grammar in which every command takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from weighbridge.errors import BadInput

_EXAMPLE = "ttft=500ms,tpot=50ms,p=99"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
_TIMES = {"ttft": "ttft_s", "tpot": "tpot_s"}


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to count as good: seconds to its first token, and per token after it.

    `quantile`: the share of the requests that must be good. Infinite times are not asked for.
    """

    ttft_s: float = inf
    tpot_s: float = inf
    quantile: float = 0.99

    def met(self, ttft_s: float, tpot_s: float) -> bool:
        """Return whether a request with these times is good."""
        return ttft_s <= self.ttft_s and tpot_s <= self.tpot_s


#: Where load is measured or simulated, and nothing else is asked for: what a reader takes without complaint.
USUAL = Slo(1.0, 0.1, 0.95)


def parse_slo(text: str, default: Slo = USUAL) -> Slo:
    """Read `ttft=500ms,tpot=50ms,p=99`; what is left out is as in `default`.

    Times are in us, ms or s, which is also what a bare number means; p is a percentile, with or without %.
    Raises BadInput that names the part.
    """
    slo = default
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.partition("=")
        unit = next((unit for unit in ("us", "ms", "s", "%") if value.endswith(unit)), "")
        try:
            number = float(value.removesuffix(unit))
        except ValueError:
            number = -1.0
        if name in _TIMES and unit in _SECONDS and 0.0 < number < inf:
            slo = replace(slo, **{_TIMES[name]: number * _SECONDS[unit]})
        elif name == "p" and 0.0 < number < 100.0:
            slo = replace(slo, quantile=number / 100)
        elif name == "p":
            raise BadInput(
                f"--slo: {part!r}: p is a percentile between 0 and 100, as in {_EXAMPLE}", param="slo"
            )
        else:
            raise BadInput(f"--slo: {part!r} is not understood; write for example {_EXAMPLE}", param="slo")
    return slo
