"""One simulated replica: the engine's scheduler, a step cost, and the time of its next event."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from weighbridge.cost import StepCost
from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch
from weighbridge.engine.request import FinishReason, Request
from weighbridge.engine.schedule.scheduler_api import Progress
from weighbridge.simulator.stepping import Stepping, Strides, sample
from weighbridge.workload.quantiles import Floats, GapHistogram

#: Iterations planned ahead in one stride at most.
LONGEST_STRIDE = 512


class Listener(Protocol):
    """Told what a replica brought forth: first tokens and ends at once, others when `tell` asks, or at the end."""

    def first_token(self, request: Request, now: float) -> None: ...
    def tokens(self, request: Request, count: int, now: float) -> None: ...
    def finished(self, request: Request, reason: FinishReason, now: float) -> None: ...


class Watcher(Protocol):
    """Sees every iteration, for timelines; a stride is seen as one."""

    def iteration(
        self, replica: str, begin: float, end: float, decodes: int, prompt_tokens: int, count: int
    ) -> None: ...


@dataclass(slots=True)
class _Stride:
    ahead: Strides
    began: float
    ends: list[float]  # of each iteration
    told: int = 0  # iterations whose tokens are counted as come

    def over(self, now: float) -> int:
        """Return how many iterations have ended by `now`."""
        return bisect_right(self.ends, now)


@dataclass(slots=True)
class _Iteration:
    batch: Batch
    work: tuple[int, int, int, int]  # of the batch
    began: float
    ends: float


@dataclass(slots=True)
class Work:
    """What a replica has done. `context_seconds`: KV tokens held, integrated over the time they were."""

    busy: float = 0.0
    iterations: int = 0
    batch_tokens: int = 0
    sequences: int = 0  # summed over iterations
    context_seconds: float = 0.0


class SimulatedReplica:
    """Runs iterations back to back while there is work. Driven from outside: `next_event`, then `fire`.

    An iteration that ends at the very moment something arrives ends first; what arrives at one moment at an
    idle replica is scheduled together.
    """

    def __init__(
        self,
        name: str,
        scheduler: Stepping,
        cost: StepCost,
        listener: Listener,
        *,
        stride: int = LONGEST_STRIDE,
        watcher: Watcher | None = None,
    ) -> None:
        """Set the replica up. With `stride` 1 every iteration is run by itself: the same results, only more slowly."""
        self.name = name
        self.scheduler = scheduler
        self.cost = cost
        self.work = Work()
        self.dead = False
        self.gaps = GapHistogram()
        self._listener = listener
        self._longest = stride
        self._watcher = watcher
        self._iteration: _Iteration | None = None
        self._stride: _Stride | None = None
        self._wake: float | None = None  # idle, but to be asked at this time
        self._last_token: dict[str, float] = {}
        self._untold: dict[Request, int] = {}  # tokens that came and that the listener has not heard of

    # -- from outside ----------------------------------------------------------------------------------

    @property
    def next_event(self) -> float | None:
        """Return when something happens here by itself; None when nothing will."""
        if self._iteration is not None:
            return self._iteration.ends
        if self._stride is not None:
            return self._stride.ends[-1]
        return self._wake

    @property
    def computing(self) -> bool:
        return self._iteration is not None or self._stride is not None

    def add(self, request: Request, now: float) -> None:
        """Queue a request. Raises what the scheduler raises when it refuses."""
        self._catch_up(now)
        self._interrupt(now)
        self.scheduler.add(request, now)
        if self._iteration is None:
            self._wake = now

    def slow(self, factor: float, now: float) -> None:
        """Take `factor` times as long for everything that begins from now on."""
        self._catch_up(now)
        self._interrupt(now)
        self.cost = self.cost.scaled(factor)

    def die(self, now: float) -> None:
        """End the replica: nothing happens here any more, and what it was doing is lost."""
        self._catch_up(now)
        if self._stride is not None:
            self._advance(self._stride, self._stride.over(now))
        self._iteration = self._stride = self._wake = None
        self._untold.clear()
        self.dead = True

    def fire(self, now: float) -> None:
        """Do what is due: `next_event` has come."""
        if self._iteration is not None:
            self._end_iteration(self._iteration, now)
        elif self._stride is not None:
            self._advance(self._stride, len(self._stride.ends))
            self._stride = None
        self._wake = None
        self._begin(now)

    def tell(self, now: float) -> None:
        """Let the listener hear of all tokens that came until now; else it hears of them as requests end."""
        if self._stride is not None:
            self._count_tokens(self._stride, self._stride.over(now))
        if self._untold:
            untold, self._untold = self._untold, {}
            for request, count in untold.items():
                self._listener.tokens(request, count, now)

    def load(self, now: float) -> Load:
        """Return what it would say of itself now. The scheduler hears of a stride at its end only: what came of it
        by now is taken off the work that is left."""
        load, stride = self.scheduler.load(), self._stride
        if stride is None:
            return load
        came = stride.over(now) * len(stride.ahead.requests)
        return replace(load, running_tokens=max(load.running_tokens - came, load.running_requests))

    # -- inside ----------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        """Begin the next iteration, or the next stride of them."""
        ahead = self.scheduler.strides(self._longest) if self._longest > 1 else None
        if ahead is not None and ahead.count > 1:
            ends = self._ends(ahead, now)
            if len(ends) > 1:
                self._stride = _Stride(ahead, now, ends)
                return
        self._schedule(now)

    def _ends(self, ahead: Strides, now: float) -> list[float]:
        """Return when each iteration of a stride ends; those that would begin after the deadline are left out."""
        pairs = ahead.pairs + ahead.growth * np.arange(ahead.count)
        lasting: Floats = self.cost.seconds(ahead.tokens, ahead.sequences, pairs)  # type: ignore
        lasting[0] += now
        ends: list[float] = np.add.accumulate(lasting).tolist()
        if ahead.deadline is not None and now > ahead.deadline:
            return []
        if ahead.deadline is not None and ends[-1] > ahead.deadline:
            del ends[bisect_right(ends, ahead.deadline) + 1 :]
        return ends

    def _schedule(self, now: float) -> None:
        batch = self.scheduler.schedule(now)
        for request in self.scheduler.take_finished():
            self._finished(request, request.finish_reason or FinishReason.ABORT, now)
        if not batch.slices:
            wake = self.scheduler.wake_at() if self.scheduler.has_work() else None
            if self._wake is None and wake is not None:  # else somebody took the place of one that ended
                self._wake = max(wake, now)
            return
        work = batch.work
        self._iteration = _Iteration(batch, work, now, now + self.cost.seconds(*work))

    def _catch_up(self, now: float) -> None:
        """End what ends by `now`, before anything else happens."""
        while self.computing and self.next_event is not None and self.next_event <= now:
            self.fire(self.next_event)

    def _interrupt(self, now: float) -> None:
        """Cut a stride short because something comes in the middle of it: what is over stays, the rest is planned anew.

        The iteration under way was decided before, and goes on: as the last one of the stride where the
        scheduler allows, else as an iteration of its own.
        """
        stride = self._stride
        if stride is None:
            return
        done = stride.over(now)
        adds_ahead = self.scheduler.adds_ahead
        if adds_ahead and done == 0 and len(stride.ends) == 1:
            return
        self._advance(stride, done)
        began = stride.ends[done - 1] if done else stride.began
        if adds_ahead:
            self._stride = _Stride(stride.ahead.only(done), began, stride.ends[done : done + 1])
        else:
            self._stride = None
            self._schedule(began)

    def _advance(self, stride: _Stride, count: int) -> None:
        if count == 0:
            return
        ahead, ends = stride.ahead, stride.ends
        if count < len(ends):
            ends = ends[:count]
        first, end = ends[0], ends[-1]
        self._count_tokens(stride, count)
        self.scheduler.stride(ahead, count, end)
        self.gaps.add_between(ends, len(ahead.requests))
        last, gap, times = self._last_token, 0.0, 0
        for request in ahead.requests:
            if first - last[request.id] == gap:
                times += 1  # as a rule all had their last token in the same iteration
            else:
                self.gaps.add(gap, times)
                gap, times = first - last[request.id], 1
            last[request.id] = end
        self.gaps.add(gap, times)
        held = ahead.pairs * (end - stride.began) + ahead.growth * (count * end - sum(ends))
        self._account(count, ahead.tokens, ahead.sequences, end - stride.began, held)
        if self._watcher is not None:
            self._watcher.iteration(self.name, stride.began, end, ahead.sequences, 0, count)

    def _count_tokens(self, stride: _Stride, count: int) -> None:
        new = count - stride.told
        if new > 0:
            stride.told = count
            untold = self._untold
            for request in stride.ahead.requests:
                untold[request] = untold.get(request, 0) + new

    def _end_iteration(self, iteration: _Iteration, now: float) -> None:
        batch = iteration.batch
        progress = self.scheduler.update(batch, sample(batch), now)
        self._iteration = None
        tokens, sequences, held, _ = iteration.work
        lasting = now - iteration.began
        self._account(1, tokens, sequences, lasting, lasting * held)
        if self._watcher is not None:
            decodes = sum(piece.count == 1 and piece.samples for piece in batch.slices)
            self._watcher.iteration(self.name, iteration.began, now, decodes, tokens - decodes, 1)
        for item in progress:
            self._progressed(item, now)
        for request in self.scheduler.take_finished():
            self._finished(request, request.finish_reason or FinishReason.ABORT, now)

    def _progressed(self, item: Progress, now: float) -> None:
        request = item.request
        last = self._last_token.get(request.id)
        if last is None:
            self._listener.first_token(request, now)
        else:
            self.gaps.add(now - last)
        self._last_token[request.id] = now
        self._untold[request] = self._untold.get(request, 0) + len(item.tokens)
        if item.finish_reason is not None:
            self._finished(request, item.finish_reason, now)

    def _finished(self, request: Request, reason: FinishReason, now: float) -> None:
        self._last_token.pop(request.id, None)
        untold = self._untold.pop(request, 0)
        if untold:
            self._listener.tokens(request, untold, now)
        self._listener.finished(request, reason, now)

    def _account(self, iterations: int, tokens: int, sequences: int, seconds: float, context: float) -> None:
        work = self.work
        work.busy += seconds
        work.iterations += iterations
        work.batch_tokens += iterations * tokens
        work.sequences += iterations * sequences
        work.context_seconds += context
