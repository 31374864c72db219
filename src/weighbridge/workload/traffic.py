"""What a deployment must carry, and how well: a trace in numbers, and service-level objectives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from weighbridge.errors import BadInput

_WINDOW = 60.0  # seconds over which the busiest rate is taken


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: seconds after the first, tokens of its prompt, tokens produced."""

    at: float
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """A trace in numbers. `peak_rate`: requests per second in the busiest minute (of all, when it is shorter)."""

    requests: int
    seconds: float
    peak_rate: float
    prompt: float  # mean tokens
    output: float
    longest: int  # prompt and output together
    prompts: tuple[int, ...]  # sorted
    arrivals: tuple[Arrival, ...]  # by time

    def prompt_quantile(self, share: float) -> int:
        return self.prompts[min(int(share * len(self.prompts)), len(self.prompts) - 1)]


def traffic_of(rows: Sequence[Arrival]) -> Traffic:
    """Raises BadInput for an empty trace or lengths below 1."""
    if not rows:
        raise BadInput("the trace holds no requests", param="traffic")
    for row in rows:
        if row.prompt < 1 or row.output < 1:
            raise BadInput(
                f"the trace has a request of {row.prompt} + {row.output} tokens; both must be at least 1"
            )
    rows = sorted(rows, key=lambda row: row.at)
    seconds = rows[-1].at - rows[0].at
    return Traffic(
        len(rows),
        seconds,
        _busiest([row.at for row in rows], min(_WINDOW, seconds)),
        sum(row.prompt for row in rows) / len(rows),
        sum(row.output for row in rows) / len(rows),
        max(row.prompt + row.output for row in rows),
        tuple(sorted(row.prompt for row in rows)),
        tuple(rows),
    )


def _busiest(times: Sequence[float], window: float) -> float:
    """Most arrivals per second in any `window` seconds; at least a second is taken."""
    start, stop = busiest_window(times, window)
    return (stop - start) / max(window, 1.0)


def busiest_window(times: Sequence[float], window: float) -> tuple[int, int]:
    """First and last + 1 of the most arrivals within `window` seconds."""
    best, first = (0, 1), 0
    for last, time in enumerate(times):
        while time - times[first] > window:
            first += 1
        if last + 1 - first > best[1] - best[0]:
            best = (first, last + 1)
    return best


def busiest_arrivals(traffic: Traffic, most: int) -> list[Arrival]:
    """Up to `most` arrivals around the busiest minute, moved to begin at 0: what a simulation needs to see."""
    arrivals = traffic.arrivals
    start, stop = busiest_window([a.at for a in arrivals], min(_WINDOW, traffic.seconds))
    middle = (start + stop) // 2
    first = max(min(middle - most // 2, len(arrivals) - most), 0)
    chosen = arrivals[first : first + most]
    return [Arrival(a.at - chosen[0].at, a.prompt, a.output) for a in chosen]


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives in seconds, to be met by the share `quantile` of requests. None: not asked for."""

    ttft: float | None = None
    tpot: float | None = None
    quantile: float = 0.99


_UNITS = {"ms": 1e-3, "s": 1.0, "us": 1e-6}


def parse_slo(text: str) -> Slo:
    """`ttft=500ms,tpot=50ms,p=99`. Raises BadInput saying what a part may be."""
    found: dict[str, float] = {}
    for part in filter(None, (x.strip() for x in text.split(","))):
        match = re.fullmatch(r"(ttft|tpot|p)=(\d+(?:\.\d+)?)(us|ms|s|%)?", part)
        if match is None:
            raise BadInput(f"--slo: {part!r} is not understood; write ttft=500ms,tpot=50ms,p=99", param="slo")
        name, number, unit = match.group(1), float(match.group(2)), match.group(3)
        if name == "p":
            if not 0 < number < 100:
                raise BadInput("--slo: p is a percentile between 0 and 100, such as p=99", param="slo")
            found["quantile"] = number / 100
        else:
            if unit not in _UNITS or number <= 0:
                raise BadInput(f"--slo: {part!r} needs a positive time with ms or s", param="slo")
            found[name] = number * _UNITS[unit]
    return Slo(found.get("ttft"), found.get("tpot"), found.get("quantile", 0.99))
