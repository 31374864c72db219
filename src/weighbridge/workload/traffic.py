"""A trace in numbers: what a deployment must carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from weighbridge.errors import BadInput
from weighbridge.workload.requests import TraceRow

_WINDOW = 60.0  # seconds over which the busiest rate is taken


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
    arrivals: tuple[TraceRow, ...]  # by time

    def prompt_quantile(self, share: float) -> int:
        return self.prompts[min(int(share * len(self.prompts)), len(self.prompts) - 1)]


def traffic_of(rows: Sequence[TraceRow]) -> Traffic:
    """Return a trace in numbers. Raises BadInput for an empty one or lengths below 1."""
    if not rows:
        raise BadInput("the trace holds no requests", param="traffic")
    for row in rows:
        if row.prompt_tokens < 1 or row.output_tokens < 1:
            raise BadInput(
                f"the trace has a request of {row.prompt_tokens} + {row.output_tokens} tokens; both must be at least 1"
            )
    rows = sorted(rows, key=lambda row: row.at)
    seconds = rows[-1].at - rows[0].at
    return Traffic(
        len(rows),
        seconds,
        _busiest([row.at for row in rows], min(_WINDOW, seconds)),
        sum(row.prompt_tokens for row in rows) / len(rows),
        sum(row.output_tokens for row in rows) / len(rows),
        max(row.prompt_tokens + row.output_tokens for row in rows),
        tuple(sorted(row.prompt_tokens for row in rows)),
        tuple(rows),
    )


def _busiest(times: Sequence[float], window: float) -> float:
    """Return the most arrivals per second in any `window` seconds, of which a second is the least."""
    start, stop = busiest_window(times, window)
    return (stop - start) / max(window, 1.0)


def busiest_window(times: Sequence[float], window: float) -> tuple[int, int]:
    """Return the first and the last + 1 of the most arrivals within `window` seconds."""
    best, first = (0, 1), 0
    for last, time in enumerate(times):
        while time - times[first] > window:
            first += 1
        if last + 1 - first > best[1] - best[0]:
            best = (first, last + 1)
    return best


def busiest_arrivals(traffic: Traffic, limit: int) -> list[TraceRow]:
    """Return up to `limit` arrivals around the busiest minute, moved to 0, for a simulation."""
    arrivals = traffic.arrivals
    start, stop = busiest_window([a.at for a in arrivals], min(_WINDOW, traffic.seconds))
    middle = (start + stop) // 2
    first = max(min(middle - limit // 2, len(arrivals) - limit), 0)
    chosen = arrivals[first : first + limit]
    return [replace(row, at=row.at - chosen[0].at) for row in chosen]
