"""What to send, and when: a number of equal requests, Poisson arrivals, or a recorded trace."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weighbridge.workload.traces import TraceOptions, read_rows

#: Token ids that are ordinary text in every vocabulary met so far: past the special ones and single bytes.
FIRST_ID, LAST_ID = 1000, 15_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a workload. `at` is seconds after the start."""

    at: float
    prompt_tokens: int
    output_tokens: int


def closed(requests: int, prompt_tokens: int, output_tokens: int) -> list[Arrival]:
    return [Arrival(0.0, prompt_tokens, output_tokens)] * requests


def poisson(arrivals: Sequence[Arrival], rate: float, rng: random.Random) -> list[Arrival]:
    """The same requests, arriving at random `rate` times a second."""
    now, timed = 0.0, []
    for one in arrivals:
        now += rng.expovariate(rate)
        timed.append(Arrival(now, one.prompt_tokens, one.output_tokens))
    return timed


def read_trace(
    path: Path,
    *,
    speed: float = 1.0,
    limit: int | None = None,
    scale_prompt: float = 1.0,
    scale_output: float = 1.0,
    max_prompt: int | None = None,
    max_output: int | None = None,
) -> list[Arrival]:
    """Requests of a trace in any form that `workload.traces` reads.

    In order of time, the first one at 0; times are divided by `speed`; lengths are scaled, then cut, and at
    least 1. Raises BadInput for another format.
    """
    options = TraceOptions(speed, limit, scale_prompt, scale_output, max_prompt, max_output)
    return [Arrival(row.at, row.prompt_tokens, row.output_tokens) for row in read_rows(path, options)]


def prompt_ids(
    length: int, vocabulary: Sequence[int], rng: random.Random, prefix: Sequence[int] = ()
) -> list[int]:
    """`length` token ids: `prefix` as far as it goes, then random ones, so that no cache helps by chance."""
    shared = list(prefix[:length])
    return shared + [rng.choice(vocabulary) for _ in range(length - len(shared))]
