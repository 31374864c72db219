"""The engine's schedulers, able to take many iterations in one stride where nothing is left to decide.

Between two events most iterations are alike: the same requests decode one token each. `strides` says how many
such iterations lie ahead, `stride` carries out their effects at once: the same tokens, blocks taken and entered
in the same order, the same charges. What decides anything (admission, prompts, preemption, ends) is left to
`schedule` and `update` of the engine, so the outcome is that of the engine run step by step; a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from weighbridge.engine.batch import Batch, Sampled
from weighbridge.engine.request import FinishReason, Places, Request
from weighbridge.engine.schedule.books import Books
from weighbridge.engine.schedule.plan import Plan
from weighbridge.engine.schedule.scheduler import Scheduler
from weighbridge.engine.schedule.scheduler_api import CostSource, SchedulerLike, SchedulerSettings
from weighbridge.engine.schedule.static import StaticScheduler
from weighbridge.workload.requests import END

Key = TypeVar("Key")


@dataclass(slots=True)
class Truth:
    """What the simulated model knows of a request and its scheduler must not: kept in `sampler_state`."""

    output_tokens: int
    answer: int  # the id of each of its tokens but the last


@dataclass(slots=True)
class Strides:
    """Up to `count` equal iterations ahead: each of `tokens` and `sequences`, decoding for `requests`.

    The first touches `pairs` (query, key) pairs of attention, each further one `growth` more.
    """

    count: int
    tokens: int
    sequences: int
    pairs: int
    growth: int
    requests: list[Request]
    deadline: float | None = None  # no iteration begins after this without a decision

    def only(self, number: int) -> Strides:
        """Return one of the iterations, by its number from 0."""
        pairs = self.pairs + number * self.growth
        return Strides(1, self.tokens, self.sequences, pairs, self.growth, self.requests, self.deadline)


class Stepping(SchedulerLike, Protocol):
    """A scheduler that can stride. Neither method is called while an iteration is being computed."""

    #: Whether `add` may come before the effects of an iteration that is under way, since it does not ask for them.
    adds_ahead: bool

    def strides(self, limit: int) -> Strides | None:
        """Return at most `limit` iterations that leave nothing to decide; None when the next one does."""
        ...

    def stride(self, ahead: Strides, count: int, now: float) -> None:
        """Do what `count` times `schedule` and `update` would, the last of them at `now`."""
        ...


def sample(batch: Batch) -> Sampled:
    """What the simulated model returns: its answer's tokens, then the end."""
    tokens: list[list[int]] = []
    for piece in batch.slices:
        truth = piece.request.sampler_state
        if not piece.samples:
            tokens.append([])
        elif isinstance(truth, Truth):
            last = piece.request.num_output_tokens + 1 >= truth.output_tokens
            tokens.append([END if last else truth.answer])
        else:  # a seat of a static batch whose request is done
            tokens.append([END])
    return Sampled(tokens, [None] * len(tokens))


def output_left(request: Request, max_model_len: int) -> int:
    """Return the tokens until `request` ends, by itself or by a limit. Only the simulated model may ask."""
    truth = request.sampler_state
    assert isinstance(truth, Truth)
    produced = request.num_output_tokens
    return min(
        truth.output_tokens - produced,
        request.params.max_tokens - produced,
        max_model_len - request.num_tokens,
    )


def _change(counts: dict[Key, int], key: Key, change: int) -> None:
    """Count `key` up or down; those at zero are not there."""
    count = counts.get(key, 0) + change
    if count:
        counts[key] = count
    else:
        del counts[key]


class CountingBooks(Books):
    """Books that also count what their requests have in common, so that a stride needs no look at each."""

    def __init__(self, settings: SchedulerSettings, cost: CostSource) -> None:
        super().__init__(settings, cost)
        self.classes: dict[int, int] = {}  # of all that wait or run
        self.tenants: dict[str, int] = {}
        self.with_deadline = 0

    def add(self, request: Request, now: float, places: Places | None = None) -> None:
        super().add(request, now, places)
        self._count(request, 1)

    def _end(self, request: Request, reason: FinishReason) -> None:
        super()._end(request, reason)
        self._count(request, -1)

    def _count(self, request: Request, change: int) -> None:
        _change(self.classes, request.priority, change)
        _change(self.tenants, request.tenant, change)
        self.with_deadline += change * (request.deadline is not None)

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of all that wait or run."""
        if not self.with_deadline:
            return None
        return min(request.deadline for request in self if request.deadline is not None)


class SteppingScheduler(Scheduler):
    """Continuous batching that strides over pure decode iterations."""

    def __init__(self, settings: SchedulerSettings, cost: CostSource) -> None:
        self._counted = CountingBooks(settings, cost)
        super().__init__(settings, cost, self._counted)
        self.adds_ahead = not settings.enable_prefix_cache  # a deadline is checked by what is cached

    def _plan_drafts(self, plan: Plan) -> None:
        """Draft nothing: simulated tokens do not resemble text."""

    def strides(self, limit: int) -> Strides | None:
        if not self._counted.settled:
            return None
        count, pairs = limit, 0
        requests = list(self._running)
        for request in reversed(requests):  # prompts have mostly come last
            tokens = len(request.tokens)
            if request.num_computed_tokens + 1 != tokens or tokens == len(request.prompt):
                return None  # a prompt, even if one token of it is left
            count = min(count, output_left(request, self.settings.max_model_len) - 1)
            if count < 1:
                return None
            pairs += tokens
        if not requests or not self._waits_in_vain():
            return None
        count = self._within_memory(requests, count)
        if count < 1:
            return None
        return Strides(
            count, len(requests), len(requests), pairs, len(requests), requests, self._next_decision()
        )

    def _next_decision(self) -> float | None:
        """When something is decided though nobody comes or ends: a deadline passes, or a tenant takes over a seat."""
        claim = self.next_claim()
        times = [self._counted.next_deadline(), claim and math.nextafter(claim[1], -math.inf)]
        return min((time for time in times if time is not None), default=None)

    def _waits_in_vain(self) -> bool:
        """Return whether nobody waits, or whoever is next cannot start before somebody running ends.

        That is so behind full seats, and for want of blocks while the one next stays the same: only ends
        return blocks, and no other prompt is being computed that it might share.
        """
        if not self._queue.has_eligible:
            return True
        if len(self._counted.classes) > 1 or not len(self._running):
            return False
        if len(self._running) >= self.settings.seats:
            return not self._counted.with_deadline
        turn = self._queue.peek(self._now)
        if turn is None or len(self._counted.tenants) > 1 or self._counted.with_deadline:
            return False
        return not self._fits(self._books.opening(turn[0]))

    def _within_memory(self, requests: list[Request], count: int) -> int:
        """Return at most `count` iterations for which the blocks last without anybody giving way."""
        size, available = self.pool.block_size, self.pool.num_available
        rooms = [len(r.block_table) * size - r.num_computed_tokens for r in requests]
        if count <= min(rooms, default=0):
            return count
        while count > 0 and sum(-(-(count - room) // size) for room in rooms if count > room) > available:
            count //= 2
        return count

    def stride(self, ahead: Strides, count: int, now: float) -> None:
        size, tables = self.pool.block_size, self._tables
        events: list[tuple[int, int, int]] = []  # (iteration, 0 before or 1 after it, rank)
        computed = [request.num_computed_tokens for request in ahead.requests]
        caching = self.settings.enable_prefix_cache
        for rank, request in enumerate(ahead.requests):
            truth = request.sampler_state
            assert isinstance(truth, Truth)
            request.tokens += [truth.answer] * count
            start = computed[rank]
            for place in range(-(-start // size) * size, start + count + 1, size):
                if start <= place < start + count and place // size >= len(request.block_table):
                    events.append((place - start + 1, 0, rank))
                if caching and start < place:
                    events.append((place - start, 1, rank))
            self._charge_output(request, count)
        events.sort()
        for iteration, after, rank in events:
            request = ahead.requests[rank]
            if after:
                request.num_computed_tokens = computed[rank] + iteration
                tables.commit(request)
            else:
                request.num_computed_tokens = computed[rank] + iteration - 1
                tables.prepare_write(request, computed[rank] + iteration)
        for request, start in zip(ahead.requests, computed, strict=True):
            request.num_computed_tokens = start + count
        self._now = now

    def _charge_output(self, request: Request, count: int) -> None:
        if float(self.settings.output_weight).is_integer():
            self._queue.charge(request, output_tokens=count)  # sums of whole numbers are exact in any order
            return
        for _ in range(count):
            self._queue.charge(request, output_tokens=1)


class SteppingStatic(StaticScheduler):
    """Static batching that strides over the decodes of its batch; seats of finished members go on computing."""

    adds_ahead = False

    def strides(self, limit: int) -> Strides | None:
        batch = self._batch
        deadlines = [r.deadline for r in (*self._members.values(), *self._waiting_requests()) if r.deadline]
        if batch is None or batch.column < batch.longest_prompt:
            return None
        count = limit
        for seat in batch.seats:
            if isinstance(seat.sampler_state, Truth):
                count = min(count, output_left(seat, self.settings.max_model_len) - 1)
            count = min(count, self._room(seat) - seat.num_tokens)
        if count < 1:
            return None
        pairs = sum(seat.num_computed_tokens + 1 for seat in batch.seats)
        seats = len(batch.seats)
        members = [seat for seat in batch.seats if isinstance(seat.sampler_state, Truth)]
        return Strides(count, seats, seats, pairs, seats, members, min(deadlines, default=None))

    def _waiting_requests(self) -> Iterator[Request]:
        return (waiting.request for waiting in self._waiting.values())

    def _room(self, seat: Request) -> int:
        return min(len(seat.block_table) * self.pool.block_size, self.settings.max_model_len)

    def stride(self, ahead: Strides, count: int, now: float) -> None:
        assert self._batch is not None
        for seat in self._batch.seats:
            truth = seat.sampler_state
            seat.tokens += [truth.answer if isinstance(truth, Truth) else END] * count
            seat.num_computed_tokens += count
