"""The engine loop: schedule, run, update, deliver, in one thread that owns the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from weighbridge.cost import Sample, StepClock
from weighbridge.engine.api import Turn
from weighbridge.engine.batch import Batch, Sampled
from weighbridge.engine.request import Request
from weighbridge.engine.schedule.scheduler_api import Progress, SchedulerLike

if TYPE_CHECKING:  # it loads torch, which a simulated replica does without
    from weighbridge.engine.experts.telemetry import ExpertTelemetry

log = logging.getLogger("weighbridge.engine")

#: A scheduler with work that cannot run yet is asked again after this many seconds at the latest.
IDLE_POLL = 0.05


class BatchRunner(Protocol):
    """What computes iterations, on the loop's thread."""

    @property
    def experts(self) -> ExpertTelemetry | None:
        """What the experts of a mixture did; None for a dense model, and where nothing is computed."""
        ...

    @property
    def hidden_size(self) -> int | None:
        """Numbers in an embedding; None where there are no hidden states (a simulated model)."""
        ...

    def execute(self, batch: Batch) -> Sampled:
        """Compute every slice of `batch` and sample where it says so."""
        ...


#: Called under the lock after every iteration, with the batch that ran and how long it took.
Deliver = Callable[[Batch, list[Progress], list[Request], float], None]


class EngineLoop:
    """Runs iterations while there is work. `lock` guards the scheduler; it is never held while computing."""

    def __init__(
        self,
        scheduler: SchedulerLike,
        runner: BatchRunner,
        step_clock: StepClock,
        deliver: Deliver,
        *,
        clock: Callable[[], float] = time.monotonic,
        check_integrity: bool = False,
        on_start: Callable[[], None] | None = None,
        on_turn: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`on_start` runs on the loop's thread before anything is computed there.

        `on_turn` hears there, after every iteration, the seconds that it took beside the model's own.
        """
        self.lock = threading.Condition()
        self._scheduler = scheduler
        self._runner = runner
        self._step_clock = step_clock
        self._deliver = deliver
        self._clock = clock
        self._check_integrity = check_integrity
        self._on_start = on_start
        self._on_turn = on_turn
        self._turn_began: float | None = None
        self._fences: list[Future[None]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="weighbridge-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Tell the loop that work was added. The caller holds `lock`."""
        self.lock.notify()

    def turn(self) -> Turn | None:
        """The iteration under way; None while there is none."""
        began, ident = self._turn_began, self._thread.ident
        return None if began is None or ident is None else Turn(ident, began)

    def fence(self) -> Future[None]:
        """Return a promise that is kept once the iteration that runs now is over: at once while there is none."""
        promise: Future[None] = Future()
        with self.lock:
            if self._turn_began is None:
                promise.set_result(None)
            else:
                self._fences.append(promise)
        return promise

    def stop(self, timeout: float = 10.0) -> None:
        """End after the current iteration; waits at most `timeout` seconds for it."""
        with self.lock:
            self._stopping = True
            self.lock.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        if self._on_start is not None:
            self._on_start()
        while True:
            with self.lock:
                self._keep_promises()
                self._wait_for_work()
                if self._stopping:
                    return
                began = self._turn_began = self._clock()
                batch = self._scheduler.schedule(began)
                expired = self._scheduler.take_finished()
                if expired:
                    self._deliver(Batch(), [], expired, 0.0)
                if not batch.slices:
                    self._turn_began = None
                    self._wait_until_runnable()
            if batch.slices:
                model_seconds = self._iterate(batch)
                self._turn_began = None
                self._on_turn(self._clock() - began - model_seconds)

    def _keep_promises(self) -> None:
        fences, self._fences = self._fences, []
        for promise in fences:
            promise.set_result(None)

    def _wait_for_work(self) -> None:
        while not self._stopping and not self._scheduler.has_work():
            if self._check_integrity:
                self._scheduler.check_integrity()
            self.lock.wait()

    def _wait_until_runnable(self) -> None:
        """Pause while work waits but none of it may run yet (a static batch that fills up)."""
        wake_at = self._scheduler.wake_at()
        pause = IDLE_POLL if wake_at is None else min(max(wake_at - self._clock(), 0.0), IDLE_POLL)
        if self._scheduler.has_work() and pause > 0.0:
            self.lock.wait(pause)

    def _iterate(self, batch: Batch) -> float:
        """Run one iteration and deliver what came of it; returns the seconds that the model took."""
        started = self._clock()
        sampled = self._execute(batch)
        seconds = self._clock() - started
        tokens, sequences, context, pairs = batch.work
        weighed = tokens + batch.adapter_work
        with self.lock:
            progress = self._scheduler.update(batch, sampled, self._clock())
            self._step_clock.observe(
                Sample(weighed, sequences, context, seconds, batch.experts_touched, pairs)
            )
            self._deliver(batch, progress, self._scheduler.take_finished(), seconds)
        return sampled.model_seconds

    def _execute(self, batch: Batch) -> Sampled:
        try:
            return self._runner.execute(batch)
        except Exception:
            log.exception("an iteration of %d sequences failed; running them one by one", len(batch.slices))
            return self._execute_one_by_one(batch)

    def _execute_one_by_one(self, batch: Batch) -> Sampled:
        """Find the request that breaks the batch: writing a slice's keys and values twice is harmless."""
        result = Sampled(tokens=[], logprobs=[])
        for index, piece in enumerate(batch.slices):
            try:
                # Copies run once: a later one would overwrite what an earlier slice wrote to its target.
                alone = self._runner.execute(Batch([piece], batch.copies if index == 0 else []))
            except Exception as error:
                alone = Sampled([[]], [None], {0: f"{type(error).__name__}: {error}"})
            result.model_seconds += alone.model_seconds
            result.tokens += alone.tokens
            result.logprobs += alone.logprobs
            if alone.errors:
                result.errors[index] = alone.errors[0]
            if alone.impossible:
                result.impossible.add(index)
            if alone.deferred:
                result.deferred.add(index)
            if alone.chances:
                result.chances[index] = alone.chances[0]
            if alone.embeddings:
                result.embeddings[index] = alone.embeddings[0]
        return result
