"""One run of a flow: the nursery in which everything it starts lives and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.bets.gate import BetVerdict, Stakes, queue_usd, saving
from weighbridge.flow.bets.learn import Learner
from weighbridge.flow.bets.predict import Predictor
from weighbridge.flow.execution import Execution
from weighbridge.flow.identity import Pending
from weighbridge.flow.journal.cache import StepCache
from weighbridge.flow.promise import Promise
from weighbridge.flow.report.record import BetRecord, Record, nodes_of
from weighbridge.flow.slots import Limiter
from weighbridge.flow.step import Step, current_world
from weighbridge.flow.tasks import Tasks
from weighbridge.flow.world import World

if TYPE_CHECKING:
    from weighbridge.flow.journal.run_journal import RunJournal

T = TypeVar("T")
Mode = Literal["sequential", "parallel", "speculate"]

UNDO_SECONDS = 30.0
#: Guesses behind each other, and shadows alive at once, whatever the gate thinks of more.
MAX_DEPTH, MAX_SHADOWS = 16, 64
#: Most node visits spent on learning what guesses would have saved, per run.
LEARN_VISITS = 200_000


class FlowTimeout(WeighbridgeError, TimeoutError):
    """The flow used up `Budget(seconds=...)`."""


class BudgetExceeded(WeighbridgeError):
    """The flow used up `Budget(usd=...)`."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one run may use. `waste`: largest share of its money that may go to lost bets."""

    usd: float | None = None
    waste: float = 0.5
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Raises BadInput naming what is out of range."""
        for name in ("usd", "seconds"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value >= 0.0):
                raise BadInput(f"Budget: {name}={value!r} must be a number, 0 or more")
        if not isinstance(self.waste, int | float) or not 0.0 <= self.waste <= 1.0:
            raise BadInput(f"Budget: waste={self.waste!r} is a share, from 0 to 1")


class Run(Tasks):
    """Made by `Flow` for each call. `execute` runs the body to its end and leaves nothing behind."""

    def __init__(
        self,
        body: Callable[[], Awaitable[Any]],
        record: Record,
        learner: Learner,
        history: Predictor,
        *,
        mode: Mode,
        budget: Budget,
        value_per_second: float,
        limiters: dict[str, Limiter],
        cache: StepCache,
        journal: RunJournal | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.record = record
        self.learner = learner
        self.history = history
        self.mode = mode
        self.budget = budget
        self.value_per_second = value_per_second
        self.executions: dict[Hashable, list[Execution]] = {}
        self.guessed: list[tuple[str, int]] = []  # site and call of each guess the flow came by
        self.usd = 0.0
        self.wasted_usd = 0.0
        self.shadows = 0  # alive
        self._ahead: World | None = None
        self._limiters = limiters
        self._cache = cache
        self.journal = journal
        self._numbers: dict[Hashable, int] = {}
        self._undoable: list[Promise[Any]] = []
        self.committed = World(self)

    # -- running ---------------------------------------------------------------------------------------

    async def execute(self) -> Any:
        """The body's result. Raises what the body raises, FlowTimeout, or a failed write nobody awaited."""
        record = self.record
        record.began = self.clock()
        if self.mode == "speculate":
            for queue in list(self.learner.queues):
                queue.watch(self)
        try:
            return await self._within_budget()
        except BaseException as error:
            record.error = f"{type(error).__name__}: {error}"
            await self._undo()
            raise
        finally:
            await self._close()
            record.final = self.committed.frontier
            record.ended = self.clock()
            self._learn()

    async def _within_budget(self) -> Any:
        seconds = self.budget.seconds
        try:
            async with asyncio.timeout(seconds) as timeout:
                return await self._committed_body()
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise FlowTimeout(
                f"flow {self.record.flow} took longer than its budget of {seconds:g} s"
            ) from error

    async def _committed_body(self) -> Any:
        async def body() -> Any:
            current_world.set(self.committed)
            result = await self.body()
            while isinstance(result, Pending):  # `return send(text)` is `return await send(text)`
                result = await cast("Awaitable[Any]", result)
            return result

        try:
            result = await self.spawn(body())
        except Exception:
            await self._finish_writes()
            raise
        failed = await self._finish_writes()
        if failed is not None:
            raise failed
        return result

    async def _finish_writes(self) -> BaseException | None:
        """Effects the body called are carried out whether it awaited them or not. The first error of those
        that it did not await."""
        error: BaseException | None = None
        for promise in list(self.committed.writes):
            if not promise.done:
                await promise.settled()
            if error is None and promise.error is not None and not self._was_awaited(promise):
                error = promise.error
        return error

    def _was_awaited(self, promise: Promise[Any]) -> bool:
        join = self.committed.frontier
        while join is not None:
            if join.promise is promise:
                return True
            join = join.before
        return False

    async def _undo(self) -> None:
        """Take back what `undo` steps did, last first."""
        for promise in reversed(self._undoable):
            take_back = promise.step.options.undo
            if take_back is None or (self.journal is not None and self.journal.undone(promise)):
                continue
            task = self.spawn(_call(take_back, promise.result()))
            try:
                await asyncio.wait([task], timeout=promise.step.options.timeout or UNDO_SECONDS)
                failed = task.cancel() or task.exception() is not None
            except asyncio.CancelledError:
                failed = True
            if failed:
                self.record.error = f"{self.record.error}; undoing {promise.step.name} failed"
            elif self.journal is not None:
                self.journal.mark_undone(promise)

    async def _close(self) -> None:
        """Cancel whatever still runs, wait until it has, and close what was opened."""
        self.closing = True
        for bet in list(self.committed.bets.values()):
            bet.give_up()
        self.committed.abandon()
        if self._ahead is not None:
            self._ahead.abandon()
        await self.end()

    # -- what worlds and executions ask ----------------------------------------------------------------

    def number(self, identity: Hashable) -> int:
        """The number of a call: the same for the same call in every world."""
        return self._numbers.setdefault(identity, len(self._numbers))

    def ahead(self) -> World:
        """Where prefetched calls are held."""
        from weighbridge.flow.bets.prefetch import Ahead

        if self._ahead is None:
            self._ahead = Ahead(self)
        return self._ahead

    def limiter_of(self, step: Step[..., Any]) -> Limiter | None:
        resource = step.options.resource
        return self._limiters.get(resource) if resource is not None and self._limiters else None

    def charge(self, execution: Execution, usd: float) -> None:
        self.usd += usd
        if execution.span is not None:
            execution.span.usd += usd

    def recalled(
        self, promise: Promise[Any], args: tuple[Any, ...], kwargs: dict[str, Any], key: Hashable
    ) -> Execution | None:
        """What the journal knows of a call; if nothing, it is told when the call has settled."""
        assert self.journal is not None
        execution = Execution(self, promise.step, args, kwargs, key)
        if self.journal.recall(promise, execution):
            self.record.resumed += 1
            return execution
        promise.on_settled(self._remember)
        return None

    def _remember(self, promise: Promise[Any]) -> None:
        assert self.journal is not None
        try:
            self.journal.remember(promise)
        except WeighbridgeError as error:
            promise.error = error  # nobody has seen the result yet: this is called back first

    def recall_combined(self, promise: Promise[Any]) -> None:
        """Settle a race whose winner the journal knows."""
        if self.journal is not None:
            self.journal.recall_combined(promise)

    def remember_combined(self, promise: Promise[Any], value: Any) -> None:
        if self.journal is not None:
            self.journal.remember_combined(promise, value)

    def cached(self, execution: Execution) -> bool:
        return bool(execution.step.options.cache) and self._cache.recall(execution)

    def refusal(self, promise: Promise[Any], execution: Execution) -> BaseException | None:
        """Why a step may not start: no money is left, or a journaled write's outcome is not known."""
        if self.journal is not None and promise.step.writes:
            try:
                self.journal.begin(promise, execution)
            except WeighbridgeError as error:
                return error
        limit = self.budget.usd
        if limit is not None and self.usd + promise.step.options.usd > limit:
            text = f"flow {self.record.flow} has spent ${self.usd:.4g} of its budget of ${limit:.4g}"
            return BudgetExceeded(f"{text}; step {promise.step.name} was not started")
        return None

    def finished(self, execution: Execution) -> None:
        """An execution ended; note how long it took."""
        span = execution.span
        if span is None:
            return
        span.finished = self.record.now()
        if isinstance(execution.error, asyncio.CancelledError):
            span.cancelled = True
        elif execution.error is not None:
            span.error = f"{type(execution.error).__name__}: {execution.error}"
        elif span.started is not None:
            stats = self.learner.step(span.name)
            stats.add(span.seconds)
            stats.usd.add(span.usd)
            if execution.step.options.cache:
                self._cache.remember(execution)

    def note_write(self, promise: Promise[Any]) -> None:
        """The committed world has called a write."""
        self.record.writes += 1
        if promise.step.options.undo is not None:
            promise.on_settled(lambda one: self._undoable.append(one) if one.error is None else None)

    # -- bets ------------------------------------------------------------------------------------------

    def usual_usd(self, step: Step[..., Any]) -> float:
        """Before anything is known of what follows a guess: the dearest call so far, or this step's price."""
        known = [stats.usd.value for stats in self.learner.steps.values() if stats.usd.count]
        return max([step.options.usd, *known, *[span.usd for span in self.record.spans[-32:]]])

    def queue_usd(self) -> float:
        """Q: what one call of each model that the flow uses does to those who wait there."""
        waiting = sum(queue.queued_seconds() for queue in self.learner.queues)
        return queue_usd(self.value_per_second, waiting)

    def waste_left(self, usd: float) -> bool:
        """Whether speculative work of that price fits what may be wasted and spent."""
        if usd <= 0.0:
            return True
        limit = self.budget.usd
        return limit is None or self.usd + usd <= limit

    def bet_refused(self, stakes: Stakes, world: World) -> BetVerdict | None:
        """Reasons beyond the gate's inequality."""
        if len(world.assumed) >= MAX_DEPTH:
            return BetVerdict(False, f"{MAX_DEPTH} guesses behind each other already", stakes)
        if self.shadows >= MAX_SHADOWS:
            return BetVerdict(False, f"{MAX_SHADOWS} shadows already", stakes)
        at_risk = (1.0 - stakes.probability) * stakes.spent_share * stakes.cost_usd
        whole = self.budget.usd if self.budget.usd is not None else self.usd + stakes.cost_usd
        if at_risk > 0.0 and self.wasted_usd + at_risk > self.budget.waste * whole:
            reason = f"budget: ${self.wasted_usd:.3g} wasted, at most {self.budget.waste:.0%} of ${whole:.3g}"
            return BetVerdict(False, reason, stakes)
        return None

    def lost(self, record: BetRecord) -> None:
        """A lost bet's shadow is gone."""
        self.wasted_usd += record.spent_usd
        cost = record.verdict.stakes.cost_usd
        if cost > 0.0:
            self.learner.site(record.site).spent.add(min(record.spent_usd / cost, 1.0))

    def _learn(self) -> None:
        """What right guesses would have saved in this run, and what they would have started."""
        if self.record.error is not None or not self.guessed:
            return
        nodes, where = nodes_of(self.record)
        most = max(LEARN_VISITS // max(len(nodes), 1), 1)
        for site, number in self.guessed[-most:]:
            if number in where:
                one = saving(nodes, where[number])
                learned = self.learner.site(site)
                learned.saving.add(one.seconds)
                learned.cost.add(one.usd)


async def _call(function: Callable[[Any], Awaitable[None]], value: Any) -> None:
    await function(value)
