"""What to send: prompts of exact lengths, in a closed loop or as a trace says."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from weighbridge.errors import BadInput


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

    Times are divided by `speed`; lengths are scaled, then cut. Raises BadInput for another format.
    """
    rows = _azure(path) if path.suffix == ".csv" else _mooncake(path)
    rows = rows[:limit]
    if not rows:
        raise BadInput(f"{path} holds no requests")
    first = rows[0].at

    def scaled(length: int, factor: float, most: int | None) -> int:
        return max(1, min(round(length * factor), most or round(length * factor) or 1))

    return [
        Arrival(
            (one.at - first) / speed,
            scaled(one.prompt_tokens, scale_prompt, max_prompt),
            scaled(one.output_tokens, scale_output, max_output),
        )
        for one in rows
    ]


def _azure(path: Path) -> list[Arrival]:
    try:
        with path.open(newline="") as file:
            return [
                Arrival(
                    datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                    int(row["ContextTokens"]),
                    int(row["GeneratedTokens"]),
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(
            f"{path}: expected columns TIMESTAMP, ContextTokens and GeneratedTokens ({error})"
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def _mooncake(path: Path) -> list[Arrival]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [Arrival(row["timestamp"] / 1e3, row["input_length"], row["output_length"]) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise BadInput(
            f"{path}: expected JSON lines with timestamp, input_length, output_length ({error})"
        ) from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error


def prompt_ids(
    length: int, vocabulary: Sequence[int], rng: random.Random, prefix: Sequence[int] = ()
) -> list[int]:
    """`length` token ids: `prefix` as far as it goes, then random ones, so that no cache helps by chance."""
    shared = list(prefix[:length])
    return shared + [rng.choice(vocabulary) for _ in range(length - len(shared))]
