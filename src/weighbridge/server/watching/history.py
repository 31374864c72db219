"""Ten minutes of a server, second by second: what it was asked, what it answered, how soon, and for how much.

Pure: whoever owns a history tells it what happens and what time it is. What it holds is bounded, however much happens:
a second has a fixed number of figures, and times are counted in buckets that are an eighth wider each.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from weighbridge.ticket import Ticket
from weighbridge.ticket.record import between

#: Seconds that are kept.
KEPT_SECONDS = 600
#: Seconds over which a time's quantiles are taken: a single second has too few requests.
WINDOW_SECONDS = 10
#: Requests whose tickets may wait for the next second; of a burst beyond that, the rest is counted alone.
MOST_PENDING = 20_000
#: What a request must keep to count as good: the first token within, and the mean gap of its tokens. Seconds.
GOOD_TTFT_S, GOOD_ITL_S = 2.0, 0.1
#: How an answer ends that its client can use.
ENDED_WELL = frozenset({"stop", "length", "tool_calls"})
#: Statuses of an answer that was refused for want of room, money or time, and not for what was asked.
REFUSALS = frozenset({402, 429, 503, 504})
#: Width of a bucket of times, as a factor, and the least time that is told apart. Seconds.
_WIDER, _LEAST = math.log(1.125), 1e-4
_BUCKETS = 160  # up to some four hours

#: The figures of a second that add up, in the order in which they are told.
SUMS = (
    "output_tokens",
    "prompt_tokens",
    "cached_tokens",
    "finished",
    "good",
    "failed",
    "refused",
    "bad_requests",
    "usd",
)
#: Those that are read off at its end.
LEVELS = (
    "queued_requests",
    "queued_tokens",
    "running_requests",
    "running_tokens",
    "kv_blocks_used",
    "kv_blocks_cached",
    "kv_blocks_total",
)
#: Times, with the quantiles of each that are told.
_TIMES = ("ttft", "itl")
_QUANTILES = {"p50": 0.5, "p95": 0.95}


@dataclass(slots=True)
class Second:
    """What happened in one second, and what was so at its end. `number`: seconds since the epoch."""

    number: int
    sums: dict[str, float] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    times: dict[str, defaultdict[int, int]] = field(
        default_factory=lambda: {name: defaultdict(int) for name in _TIMES}
    )

    def add(self, name: str, amount: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + amount


class ServerHistory:
    """Hears answers and finished requests as they come; `close` ends a second. The latest `kept` seconds stay."""

    def __init__(self, kept: int = KEPT_SECONDS) -> None:
        self._seconds: deque[Second] = deque(maxlen=kept)
        self._pending: list[Ticket] = []
        self._statuses: Counter[int] = Counter()
        self._unread = 0

    def __len__(self) -> int:
        return len(self._seconds)

    def answered(self, status: int) -> None:
        """Hear of an answer to a request for a model."""
        if status >= 400:
            self._statuses[status] += 1

    def finished(self, ticket: Ticket) -> None:
        """Hear of a request that has ended."""
        if len(self._pending) < MOST_PENDING:
            self._pending.append(ticket)
        else:
            self._unread += 1

    def close(self, number: int, levels: Mapping[str, float], output_tokens: float) -> None:
        """End the second `number`. `output_tokens`: how many were made in it."""
        second = Second(number, levels={name: float(levels.get(name, 0.0)) for name in LEVELS})
        _count(second, self._pending)
        for status, count in self._statuses.items():
            refused, failed = status in REFUSALS, status >= 500
            second.add("refused" if refused else "failed" if failed else "bad_requests", count)
        second.add("finished", self._unread)
        second.add("output_tokens", output_tokens)
        self._pending, self._unread = [], 0
        self._statuses.clear()
        self._seconds.append(second)

    def forget(self) -> None:
        """Forget the seconds that have ended; what happens goes on being counted."""
        self._seconds.clear()

    def told(self, since: int = 0, *, only_levels: bool = False) -> dict[str, Any]:
        """The seconds after `since`, a list for each figure. `only_levels`: how busy it is, and nothing of what others
        asked and what became of it."""
        first = next((at for at, one in enumerate(self._seconds) if one.number > since), len(self._seconds))
        shown = list(islice(self._seconds, first, None))
        columns: dict[str, list[float | None]] = {
            name: [round(one.levels[name], 6) for one in shown] for name in LEVELS
        }
        if not only_levels:
            columns |= {name: [round(one.sums.get(name, 0.0), 9) for one in shown] for name in SUMS}
            columns |= self._quantiles(first)
        return {"seconds": [one.number for one in shown], **columns}

    def _quantiles(self, first: int) -> dict[str, list[float | None]]:
        """Each time's quantiles over the seconds that end at each of those from `first` on; milliseconds."""
        columns: dict[str, list[float | None]] = {}
        before = max(first - WINDOW_SECONDS + 1, 0)
        window = list(islice(self._seconds, before, None))
        for name in _TIMES:
            counts: Counter[int] = Counter()
            found: dict[str, list[float | None]] = {quantile: [] for quantile in _QUANTILES}
            for at, one in enumerate(window):
                counts.update(one.times[name])
                if at >= WINDOW_SECONDS:
                    counts.subtract(window[at - WINDOW_SECONDS].times[name])
                if before + at >= first:
                    for quantile, share in _QUANTILES.items():
                        found[quantile].append(_quantile(counts, share))
            columns |= {f"{name}_{quantile}_ms": values for quantile, values in found.items()}
        return columns


def _count(second: Second, tickets: Iterable[Ticket]) -> None:
    """Add up what has ended in a second. It is done for every request, so it takes few steps."""
    finished = good = prompt = cached = 0
    usd = 0.0
    ttfts, itls = second.times["ttft"], second.times["itl"]
    for ticket in tickets:
        finished += 1
        prompt += ticket.prompt_tokens
        cached += ticket.cached_tokens
        usd += ticket.cost_usd
        ttft = 0.0
        if ticket.first_token is not None:
            ttft = between(ticket.arrived, ticket.first_token)
            ttfts[_bucket(ttft)] += 1
        gap = ticket.mean_gap()
        if gap is not None:
            itls[_bucket(gap)] += 1
        if ticket.finish_reason in ENDED_WELL and ttft <= GOOD_TTFT_S and (gap or 0.0) <= GOOD_ITL_S:
            good += 1
    for name, amount in (
        ("finished", finished),
        ("good", good),
        ("prompt_tokens", prompt),
        ("cached_tokens", cached),
    ):
        second.add(name, amount)
    second.add("usd", usd)


def _bucket(seconds: float) -> int:
    if seconds <= _LEAST:
        return 0
    return min(math.ceil(math.log(seconds / _LEAST) / _WIDER), _BUCKETS)


def _quantile(counts: Mapping[int, int], share: float) -> float | None:
    """The upper end of the bucket that the quantile lies in, in milliseconds; None where nothing was counted."""
    ordered = sorted((bucket, count) for bucket, count in counts.items() if count > 0)
    left = share * sum(count for _, count in ordered)
    for bucket, count in ordered:
        left -= count
        if left <= 1e-9:
            return round(_LEAST * math.exp(bucket * _WIDER) * 1e3, 3)
    return None


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of an engine. `at`: when it ended, seconds since the epoch."""

    number: int
    at: float
    seconds: float
    decodes: int  # sequences that got their next token
    prompts: int  # sequences of which a part of the prompt was computed
    prompt_tokens: int
    tokens: int  # in all, those that were proposed and paddings included

    def as_row(self) -> tuple[float, ...]:
        return (
            self.number,
            round(self.at, 4),
            round(self.seconds * 1e3, 3),
            self.decodes,
            self.prompts,
            self.prompt_tokens,
            self.tokens,
        )


#: What the numbers of `Iteration.as_row` are.
ITERATION_FIELDS = ("number", "at", "ms", "decodes", "prompts", "prompt_tokens", "tokens")
#: Iterations that are kept.
KEPT_ITERATIONS = 1200


class Iterations:
    """The latest iterations of an engine."""

    def __init__(self, kept: int = KEPT_ITERATIONS) -> None:
        self._kept: deque[Iteration] = deque(maxlen=kept)
        self._count = 0

    def add(
        self, at: float, seconds: float, decodes: int, prompts: int, prompt_tokens: int, tokens: int
    ) -> None:
        self._count += 1
        self._kept.append(Iteration(self._count, at, seconds, decodes, prompts, prompt_tokens, tokens))

    def since(self, number: int, most: int = KEPT_ITERATIONS) -> Sequence[tuple[float, ...]]:
        """The rows behind `number`, the oldest first: the latest `most` of them."""
        newest: Iterable[Iteration] = islice(reversed(self._kept), most)
        return [one.as_row() for one in newest if one.number > number][::-1]
