"""What a mixture of experts does to a batch: step time and experts touched by batch size, a text for each sequence.

Sequences differ in their texts and are continued by sampling, because batches of like sequences share experts that
those of real traffic do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.experts.telemetry import ExpertTelemetry
from weighbridge.engine.request import Request, SamplingParams

#: Decode steps of one group of sequences, and the largest number of groups for a batch size: small batches need many
#: to average over.
STEPS, GROUPS = 12, 16

#: Prompt tokens of one iteration.
CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Point:
    """seconds: median of a step. touched: experts per layer, counted and as the whole run's counts predict."""

    batch: int
    seconds: float
    iterations: int
    touched: float
    predicted: float


class CountingRunner(Protocol):
    """A runner that counts what its routers choose, where it has any."""

    @property
    def experts(self) -> ExpertTelemetry | None: ...

    def execute(self, batch: Batch) -> Sampled: ...


def tokens_per_sequence(sizes: Sequence[int], context: int) -> int:
    """Return how many KV entries `measure_curve` needs for each of max(sizes) sequences."""
    return context + 1 + STEPS * len(sizes)


def measure_curve(
    runner: CountingRunner,
    texts: Sequence[Sequence[int]],
    sizes: Sequence[int],
    block_size: int,
    report: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Point], float]:
    """Return the curve over `sizes`, and the correlation of sequences that its predictions use.

    texts: one for each of max(sizes) sequences, equally long; they run first, then every size decodes with groups
    of them in turn. Uses blocks 0 and up of the runner's pool: nothing else may run. The runner must have experts.
    """
    telemetry = runner.experts
    assert telemetry is not None
    requests = _requests(texts, tokens_per_sequence(sizes, len(texts[0])), block_size)
    per_chunk = max(1, CHUNK // len(texts[0]))
    for start in range(0, len(requests), per_chunk):
        _step(runner, requests[start : start + per_chunk])
    telemetry.reset()
    seconds: dict[int, float] = {}
    for done, size in enumerate(sizes):
        groups = [requests[start : start + size] for start in range(0, len(requests) - size + 1, size)]
        times = []
        for group in groups[:GROUPS]:
            for _ in range(STEPS):
                started = clock()
                _step(runner, group)
                times.append(clock() - started)
        seconds[size] = statistics.median(times)
        if report is not None:
            report(done + 1, len(sizes))
    counted = telemetry.report()
    points = [
        Point(row["batch"], seconds[row["batch"]], row["iterations"], row["measured"], row["predicted"])
        for row in counted["coverage"]
    ]
    return points, counted["correlation"]


def _requests(texts: Sequence[Sequence[int]], room: int, block_size: int) -> list[Request]:
    blocks = -(-room // block_size)
    return [
        Request(
            id=f"curve-{number}",
            prompt=list(text),
            params=SamplingParams(max_tokens=room, seed=number, ignore_eos=True),
            arrival=0.0,
            block_table=list(range(number * blocks, (number + 1) * blocks)),
        )
        for number, text in enumerate(texts)
    ]


def _step(runner: CountingRunner, requests: Sequence[Request]) -> None:
    """Compute what is outstanding of every request, and append the token it samples."""
    slices = [
        Slice(item, item.num_computed_tokens, item.num_tokens - item.num_computed_tokens, samples=True)
        for item in requests
    ]
    sampled = runner.execute(Batch(slices))
    for request, tokens in zip(requests, sampled.tokens, strict=True):
        request.num_computed_tokens = request.num_tokens
        request.tokens += tokens
