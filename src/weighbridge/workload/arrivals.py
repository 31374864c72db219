"""When requests arrive: the gaps between them by a law of arrivals. Randomness is passed in."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from weighbridge.workload.requests import TraceRow

ARRIVALS = ("poisson", "gamma", "constant", "bursts")

#: How much faster than on average requests come inside a burst.
BURST_SPEED = 20.0


def gaps(law: str, rng: random.Random, rate: float, cv: float = 1.0, burst: float = 16.0) -> Iterator[float]:
    """Yield the seconds between arrivals, `1 / rate` on average, for ever.

    `poisson`; `gamma` with coefficient of variation `cv`; `constant`; `bursts` of a geometric number of requests,
    `burst` on average, that come `BURST_SPEED` times as fast as on average, with calm between them.
    """
    if law == "bursts":
        yield from _bursts(rng, rate, burst)
    shape = 1.0 / cv**2
    while True:
        if law == "poisson":
            yield rng.expovariate(rate)
        elif law == "gamma":
            yield rng.gammavariate(shape, 1.0 / (rate * shape))
        else:
            yield 1.0 / rate


def _bursts(rng: random.Random, rate: float, burst: float) -> Iterator[float]:
    inside = 1.0 / (rate * BURST_SPEED)
    calm = burst / rate - (burst - 1.0) * inside
    while True:
        yield rng.expovariate(1.0 / calm)
        while rng.random() < 1.0 - 1.0 / burst:
            yield rng.expovariate(1.0 / inside)


def closed(requests: int, prompt_tokens: int, output_tokens: int) -> list[TraceRow]:
    """Return equal requests without times of their own, for a closed loop."""
    return [TraceRow(0.0, prompt_tokens, output_tokens)] * requests


def poisson(rows: Sequence[TraceRow], rate: float, rng: random.Random) -> list[TraceRow]:
    """Return the same requests, arriving at random `rate` times a second."""
    now, timed = 0.0, []
    for row, gap in zip(rows, gaps("poisson", rng, rate), strict=False):
        now += gap
        timed.append(replace(row, at=now))
    return timed
