"""What to send, and when: a number of equal requests, Poisson arrivals, or a recorded trace."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from weighbridge.errors import BadInput

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
    """Requests of an Azure CSV (TIMESTAMP, ContextTokens, GeneratedTokens) or a Mooncake JSONL.

    In order of time, the first one at 0; times are divided by `speed`; lengths are scaled, then cut, and at
    least 1. Raises BadInput for another format.
    """
    read = _azure if path.suffix == ".csv" else _mooncake
    try:
        rows = sorted(read(path), key=lambda one: one.at)[:limit]
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}", param="trace") from error
    if not rows:
        raise BadInput(f"{path} holds no requests", param="trace")
    prompt = _scaling(scale_prompt, max_prompt)
    output = _scaling(scale_output, max_output)
    return [
        Arrival((one.at - rows[0].at) / speed, prompt(one.prompt_tokens), output(one.output_tokens))
        for one in rows
    ]


def _scaling(factor: float, most: int | None) -> Callable[[int], int]:
    def scaled(length: int) -> int:
        wanted = max(1, round(length * factor))
        return wanted if most is None else min(wanted, most)

    return scaled


def _azure(path: Path) -> list[Arrival]:
    try:
        with path.open(newline="") as file:
            return [
                Arrival(
                    # Seven digits of a second are written; Python reads six. The zone does not matter.
                    datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC).timestamp(),
                    int(row["ContextTokens"]),
                    int(row["GeneratedTokens"]),
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(
            f"{path}: expected columns TIMESTAMP, ContextTokens and GeneratedTokens ({error})", param="trace"
        ) from error


def _mooncake(path: Path) -> list[Arrival]:
    try:
        with path.open() as file:
            rows = [json.loads(line) for line in file if line.strip()]
        return [
            Arrival(float(row["timestamp"]) / 1e3, int(row["input_length"]), int(row["output_length"]))
            for row in rows
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(
            f"{path}: expected JSON lines with timestamp (ms), input_length, output_length ({error})",
            param="trace",
        ) from error


def prompt_ids(
    length: int, vocabulary: Sequence[int], rng: random.Random, prefix: Sequence[int] = ()
) -> list[int]:
    """`length` token ids: `prefix` as far as it goes, then random ones, so that no cache helps by chance."""
    shared = list(prefix[:length])
    return shared + [rng.choice(vocabulary) for _ in range(length - len(shared))]
