"""Measure iterations on this machine and fit `StepCost` to them; the result is stored for the next start."""

from __future__ import annotations

import logging
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weighbridge.cost import Sample, StepCost, fit
from weighbridge.engine.batch import Batch, Slice
from weighbridge.engine.loop import BatchRunner
from weighbridge.engine.request import Request, SamplingParams
from weighbridge.errors import BadInput
from weighbridge.models.files.cache import load_record, save_record, weighbridge_home
from weighbridge.state.schema import DocumentSchema, unchanged

log = logging.getLogger("weighbridge.engine")

#: A stored fit, as JSON.
CALIBRATION = DocumentSchema("calibration", (unchanged,))


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of iteration: `sequences` slices of `tokens` each, behind `context` computed tokens."""

    sequences: int
    tokens: int
    context: int


def shapes(max_model_len: int, pool_tokens: int, max_batch_tokens: int) -> list[Shape]:
    """Return decodes and prompt chunks, small and large, with short and long contexts, that context and pool allow."""
    decodes = [Shape(n, 1, c) for n in (1, 2, 4, 8, 16, 32, 64) for c in (32, 512, 2048)]
    chunks = [Shape(1, t, c) for t in (32, 64, 128, 256, 512, 1024, 2048) for c in (0, 1024, 4096)]
    return [
        shape
        for shape in decodes + chunks
        if shape.context + shape.tokens <= max_model_len
        and shape.sequences * (shape.context + shape.tokens + 64) <= pool_tokens
        and shape.sequences * shape.tokens <= max_batch_tokens
    ]


def measure(
    runner: BatchRunner,
    candidates: list[Shape],
    block_size: int,
    *,
    repeats: int = 3,
    report: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """Return the median seconds of each shape. Uses blocks 0 and up of the runner's pool: nothing else may run."""
    samples = []
    for index, shape in enumerate(candidates):
        batch = _batch(shape, block_size)
        runner.execute(batch)
        seconds = []
        for _ in range(repeats):
            started = clock()
            runner.execute(batch)
            seconds.append(clock() - started)
        tokens, sequences, context, pairs = batch.work
        middle = statistics.median(seconds)
        samples.append(Sample(tokens, sequences, context, middle, batch.experts_touched, pairs))
        if report is not None:
            report(index + 1, len(candidates))
    return samples


def _batch(shape: Shape, block_size: int) -> Batch:
    length = shape.context + shape.tokens
    blocks = -(-length // block_size)
    slices = []
    for number in range(shape.sequences):
        prompt = [(number * 7 + position) % 97 for position in range(length)]
        request = Request(
            id=f"calibrate-{number}",
            prompt=prompt,
            params=SamplingParams(max_tokens=1, temperature=0.0),
            arrival=0.0,
            num_computed_tokens=shape.context,
            block_table=list(range(number * blocks, (number + 1) * blocks)),
        )
        slices.append(Slice(request, shape.context, shape.tokens, samples=True))
    return Batch(slices)


def calibrate(
    runner: BatchRunner,
    block_size: int,
    max_model_len: int,
    num_blocks: int,
    max_batch_tokens: int,
    report: Callable[[int, int], None] | None = None,
) -> tuple[StepCost, list[Sample]]:
    """Measure and fit. Raises ValueError when the pool is too small for five different iterations."""
    candidates = shapes(max_model_len, num_blocks * block_size, max_batch_tokens)
    samples = measure(runner, candidates, block_size, report=report)
    return fit(samples), samples


def calibration_key(fingerprint: str, form: str, kernels: str, threads: int) -> str:
    """Return what a step cost depends on: the weights, how they and the cache are kept, and what computes."""
    return f"{fingerprint[:16]}-{form}-{kernels}-{threads}t-{platform.machine()}"


def calibration_form(dtype: str, scheme: str, kv: str) -> str:
    """Return how a model is kept, for the key; a cache in the compute dtype is not named."""
    return f"{dtype}-{scheme}" if kv == dtype else f"{dtype}-{scheme}-kv_{kv}"


def calibration_store() -> CalibrationStore:
    """Return the store of this user."""
    return CalibrationStore(weighbridge_home() / "calibration")


class CalibrationStore:
    """Fitted step costs, one JSON file per (model, dtype, quantisation, kernels, threads)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, key: str) -> StepCost | None:
        """Return the stored fit, or None when there is none or it cannot be read."""
        record = load_record(self._path(key))
        try:
            return StepCost(**CALIBRATION.read(record, str(self._path(key)))["step_cost"]) if record else None
        except BadInput as error:
            log.warning("%s; without it the speed is measured as it goes", error)
            return None
        except (KeyError, TypeError):
            return None

    def save(self, key: str, cost: StepCost, samples: list[Sample]) -> Path:
        """Write a fit atomically and return its file."""
        measured = [[s.tokens, s.sequences, s.context_tokens, s.prompt_pairs, s.seconds] for s in samples]
        record = {"step_cost": cost.as_dict(), "samples": measured}
        save_record(self._path(key), CALIBRATION.stamped(record))
        return self._path(key)

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.json"
