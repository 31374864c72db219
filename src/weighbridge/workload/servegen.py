"""ServeGen clients (Xiang et al. 2025): each a tenant with its own rate, burstiness and lengths, window by window."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.workload.requests import TraceRow

WINDOW = 600.0  # seconds that a rate holds

#: Requests a second that no client sends; a rate beyond is a mistake, and would never end.
_FASTEST = 1e6
_SMALLEST_SHAPE = 1e-3

_ENTRY = re.compile(r"([0-9.]+)\s*:\s*([0-9.eE+-]+)")


@dataclass(frozen=True, slots=True)
class RateWindow:
    """Arrivals of one client for a while: `pattern` is the law of the gaps, with shape and scale (s)."""

    start: float
    rate: float  # requests a second
    pattern: str
    shape: float
    scale: float

    def gap(self, rng: random.Random) -> float:
        if self.pattern == "Gamma":
            return rng.gammavariate(self.shape, self.scale)
        if self.pattern == "Weibull":
            return rng.weibullvariate(self.scale, self.shape)
        return rng.expovariate(self.rate)


@dataclass(frozen=True, slots=True)
class Client:
    """A client and what it sends. `lengths`: from a time on, distributions of prompt and output."""

    name: str
    windows: tuple[RateWindow, ...]
    lengths: tuple[tuple[float, Discrete, Discrete], ...]


@dataclass(frozen=True, slots=True)
class Discrete:
    """Values with their cumulated shares."""

    values: tuple[int, ...]
    cumulated: tuple[float, ...]

    def draw(self, rng: random.Random) -> int:
        place = bisect_right(self.cumulated, rng.random() * self.cumulated[-1])
        return max(1, self.values[min(place, len(self.values) - 1)])


def read_clients(directory: Path) -> list[Client]:
    """Read the clients in `directory`. Raises BadInput when there are none, or naming what is wrong."""
    clients = []
    for trace in sorted(directory.glob("chunk-*-trace.csv")):
        name = trace.name.removesuffix("-trace.csv")
        lengths = trace.with_name(f"{name}-dataset.json")
        if lengths.exists():
            clients.append(Client(name, _windows(trace), _lengths(lengths)))
    if not clients:
        raise BadInput(f"{directory} holds no chunk-*-trace.csv with its chunk-*-dataset.json", param="trace")
    return clients


def busiest(clients: list[Client]) -> float:
    """Return when the window begins in which most clients send; of equals, that with most requests."""
    totals: dict[float, tuple[int, float]] = {}
    for client in clients:
        for window in client.windows:
            active, rate = totals.get(window.start, (0, 0.0))
            totals[window.start] = (active + 1, rate + window.rate)
    if not totals:
        raise BadInput("no ServeGen client ever sends anything", param="trace")
    return max(totals, key=lambda start: totals[start])


def rows(
    clients: list[Client], rng: random.Random, *, start: float | None = None, seconds: float = WINDOW
) -> list[TraceRow]:
    """Return requests of all clients from `start` (none: the busiest window) for `seconds`, each a tenant."""
    begin = busiest(clients) if start is None else start
    found = [row for client in clients for row in _rows_of(client, rng, begin, begin + seconds)]
    if not found:
        raise BadInput(f"no ServeGen client sends anything from {begin:g} s for {seconds:g} s", param="trace")
    return sorted(found, key=lambda row: row.at)


def _rows_of(client: Client, rng: random.Random, begin: float, end: float) -> Iterator[TraceRow]:
    starts = [entry[0] for entry in client.lengths]
    for window in client.windows:
        closes = min(window.start + WINDOW, end)
        now = max(window.start, begin)
        if now >= closes or not client.lengths:
            continue
        _, prompt, output = client.lengths[max(bisect_right(starts, now) - 1, 0)]
        now += rng.random() * window.gap(rng)  # the clock does not start at an arrival
        while now < closes:
            yield TraceRow(now - begin, prompt.draw(rng), output.draw(rng), tenant=client.name)
            now += window.gap(rng)


def _windows(path: Path) -> tuple[RateWindow, ...]:
    windows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                try:
                    window = _window(row)
                except (IndexError, ValueError) as error:
                    raise BadInput(
                        f"{path}:{number}: expected start, rate, cv, pattern and its two parameters ({error})",
                        param="trace",
                    ) from error
                if window.rate > 0.0:
                    windows.append(window)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read: {error}", param="trace") from error
    return tuple(windows)


def _window(row: list[str]) -> RateWindow:
    """Raises IndexError or ValueError for a line that is no window."""
    window = RateWindow(float(row[0]), float(row[1]), row[3], float(row[4]), float(row[5]))
    if not 0.0 <= window.start < math.inf or not 0.0 <= window.rate <= _FASTEST:
        raise ValueError(f"start {row[0]}, rate {row[1]}")
    shaped = window.rate > 0.0 and window.pattern in ("Gamma", "Weibull")
    if shaped and not (
        _SMALLEST_SHAPE < window.shape < math.inf and 1.0 / _FASTEST < window.scale < math.inf
    ):
        raise ValueError(f"{window.pattern} with {row[4]} and {row[5]}")
    return window


def _lengths(path: Path) -> tuple[tuple[float, Discrete, Discrete], ...]:
    try:
        record: Mapping[str, Mapping[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        entries = [
            (_start(start), _discrete(both["input_tokens"]), _discrete(both["output_tokens"]))
            for start, both in record.items()
        ]
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}", param="trace") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadInput(
            f"{path}: expected input_tokens and output_tokens by time ({error})", param="trace"
        ) from error
    return tuple(
        (start, i, o) for start, i, o in sorted(entries, key=lambda e: e[0]) if i.values and o.values
    )


def _start(text: str) -> float:
    start = float(text)
    if not math.isfinite(start):
        raise ValueError(f"time {text}")
    return start


def _discrete(text: str) -> Discrete:
    """Read `{163: 0.25, 165: 0.01}`: token counts and their shares."""
    values, cumulated, total = [], [], 0.0
    for value, share in _ENTRY.findall(text):
        weight = float(share)
        if weight > 0.0 and math.isfinite(weight):
            total += weight
            values.append(round(float(value)))
            cumulated.append(total)
    return Discrete(tuple(values), tuple(cumulated))
