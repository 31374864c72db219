"""The runtime of a flow: promises, the executions they stand for, the worlds they are made in, and the run.

The body of a flow runs in a *world*, which turns each call of a step into a *promise*. A promise is bound to an
*execution*, one run of the step's function, which promises of other worlds may share. The *run* holds them all, and
nothing outlives it. These four know each other and always will, so they share this file; everything else (journal,
cache, record, learner, bets) is a hook of the run and hears of what happens through `hooks.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Hashable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar, cast

from weighbridge.errors import BadInput, WeighbridgeError, said
from weighbridge.flow.budget import Budget
from weighbridge.flow.effect_order import EffectOrder
from weighbridge.flow.hooks import Hook, Hooks, Join, StepSpan
from weighbridge.flow.identity import Pending, freeze_call, substitute
from weighbridge.flow.nursery import Nursery, first_success
from weighbridge.flow.slots import Slots
from weighbridge.flow.step import NotDone, Step, current_execution, current_world
from weighbridge.flow.step_times import StepTimes

T = TypeVar("T")
H = TypeVar("H", bound=Hook)
W = TypeVar("W", bound="World")
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

#: Which attempt of a hedged call runs: 0 the first, 1 the second. A step that has several replicas of its
#: backend sends attempt n to replica n.
attempt: ContextVar[int] = ContextVar("weighbridge_flow_attempt", default=0)

FIRST_BACKOFF_SECONDS = 0.1  # before the first retry; doubled each time
MAX_BACKOFF_SECONDS = 5.0
UNDO_SECONDS = 30.0


class StepTimeout(WeighbridgeError, TimeoutError):
    """A step took longer than its `timeout`."""


class Diverged(WeighbridgeError):
    """A resumed run goes another way than before, past a write that has happened. Nothing is undone for it."""


class FlowTimeout(WeighbridgeError, TimeoutError):
    """The flow used up `Budget(seconds=...)`."""


# -- promises ------------------------------------------------------------------------------------------------


class Promise(Pending, Generic[T]):
    """A call of `step`, already on its way. `await` gives the result; passing it on makes a data edge.

    Every world (the committed one and each shadow) has promises of its own; what they stand for, the
    running step, may be shared (`Execution`). `number` names the call: it is the same in every world that
    has come to it by the same path.
    """

    __slots__ = (
        "_callbacks",
        "_value",
        "args",
        "deps",
        "done",
        "error",
        "execution",
        "fence",
        "frontier",
        "identity",
        "inherited",
        "kwargs",
        "missing",
        "number",
        "occurrence",
        "pending",
        "step",
        "world",
    )

    def __init__(self, world: World, step: Step[..., T], args: Args, kwargs: Kwargs) -> None:
        self.world = world
        self.step = step
        self.args = args
        self.kwargs = kwargs
        self.number = -1
        self.occurrence = 0  # calls of the same step with the same arguments before it
        self.identity: Any = None  # frozen arguments; promises among them by their number
        self.pending: list[Any] = []  # promises and guesses among the arguments
        self.deps: tuple[Promise[Any], ...] = ()  # what it waits for: arguments, and effects it must follow
        self.missing = 0  # how many of them have not settled
        self.fence = 0  # conflicting writes before it in the program
        self.frontier: Join | None = None  # what the body had awaited when it made the call
        self.execution: Execution | None = None
        self.inherited = False  # left by a confirmed shadow, not called by the world itself
        self.done = False
        self.error: BaseException | None = None
        self._value: T | None = None
        self._callbacks: list[Callable[[Promise[T]], None]] = []

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done:
            self.world.blocked(self)
            yield from self.settled()
        self.world.awaited(self)
        return self.result()

    @property
    def run(self) -> FlowRun:
        return self.world.run

    @property
    def promise(self) -> Promise[T]:
        """The promise itself; a guess has one too."""
        return self

    def place(self, world: World) -> None:
        """Nothing to bet on: only a guess has."""

    def settled(self) -> asyncio.Future[None]:
        """Return a future that is done once this is settled, well or badly; cancelling it cancels nothing else."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_settled(lambda _: None if waiter.done() else waiter.set_result(None))
        return waiter

    def result(self) -> T:
        """Return the result, or raise the step's error. RuntimeError before it is there."""
        if not self.done:
            raise RuntimeError(f"{self.step.name} has not finished; await it")
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]

    def on_settled(self, callback: Callable[[Promise[T]], None]) -> None:
        """Call back once it has a result or an error; at once if it has."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def settle(self, value: T | None, error: BaseException | None = None) -> None:
        """Give it its result, unless a hook holds that back for now. Later results are ignored."""
        if self.done:
            return
        for hold in self.world.hold_result:
            if hold(self, error, lambda: self.settle_now(value, error)):
                return
        self.settle_now(value, error)

    def settle_now(self, value: T | None, error: BaseException | None = None) -> None:
        """Give it its result, whatever hooks would say."""
        if self.done:
            return
        self.done, self._value, self.error = True, value, error
        world = self.world
        world.handles.discard(self)
        for settled in world.hear_settled:
            try:
                settled(self)
            except WeighbridgeError as refused:
                self.error = refused
        callbacks, self._callbacks = self._callbacks, []
        if callbacks:
            world.run.dispatch(callbacks, self)

    def abandon(self) -> None:
        """Let go of the running step, since nobody in this world wants it any more, and settle as cancelled."""
        if self.done:
            return
        execution, self.execution = self.execution, None
        self.settle_now(None, asyncio.CancelledError(f"{self.step.name} was let go"))
        if execution is not None:
            execution.release(self)

    def __repr__(self) -> str:
        return f"<promise {self.step.name}#{self.number} {'done' if self.done else 'pending'}>"


# -- executions ----------------------------------------------------------------------------------------------


class Execution:
    """One run of a step's function, shared by every promise that asks for the same call.

    It has a task of its own from `begin` until it ends or nobody holds a promise on it any more.
    """

    __slots__ = (
        "_stopped",
        "_task",
        "args",
        "committed",
        "done",
        "error",
        "finished_at",
        "handles",
        "in_doubt",
        "journal_key",
        "key",
        "kwargs",
        "on_commit",
        "preempted",
        "run",
        "span",
        "step",
        "undone",
        "value",
    )

    def __init__(self, run: FlowRun, step: Step[..., Any], args: Args, kwargs: Kwargs, key: Hashable) -> None:
        self.run = run
        self.step = step
        self.args = args
        self.kwargs = kwargs
        self.key = key
        self.handles: dict[Promise[Any], None] = {}
        self.committed = False  # a promise of the committed world stands for it
        self.on_commit: list[Callable[[], None]] = []
        self.done = False
        self.preempted = False
        self.in_doubt = False  # a write that may have happened before a crash
        self.undone = False  # what it did has been taken back
        self.journal_key: str | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished_at = 0.0
        self.span: StepSpan | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False  # cancelled by us

    # -- who holds it ----------------------------------------------------------------------------------

    def claim(self, promise: Promise[Any]) -> None:
        """`promise` stands for this execution from now on."""
        promise.execution = self
        if promise.world.committed:
            self.commit()
        if self.done:
            promise.settle(self.value, self.error)
        else:
            self.handles[promise] = None

    def release(self, promise: Promise[Any]) -> None:
        """`promise` lets go; the last promise to do so cancels what still runs.

        What a confirmed shadow left behind holds it for the committed world; once that has had it and let
        go, it counts no more.
        """
        self.handles.pop(promise, None)
        handles = self.handles
        needed = any(not handle.inherited for handle in handles) if self.committed else bool(handles)
        if not needed and not self.done and self._task is not None:
            self._stopped = True
            self._task.cancel()

    def commit(self) -> None:
        """The committed world needs it: it is no longer a bet."""
        if not self.committed:
            self.committed = True
            if self.span is not None:
                self.span.committed = True
            callbacks, self.on_commit = self.on_commit, []
            for callback in callbacks:
                callback()

    def preempt(self) -> None:
        """Stop a speculative execution because its slot is needed; whoever needs the call later starts it anew."""
        self.preempted = self._stopped = True
        if self._task is not None:
            self._task.cancel()

    @property
    def may_have_happened(self) -> bool:
        """Whether nobody knows if a write that ended with an error had its effect."""
        began = self.span is not None and self.span.started is not None
        return began and self.error is not None and not isinstance(self.error, NotDone)

    @property
    def in_flight(self) -> bool:
        """Whether its function has begun, and may have had an effect, and has not ended."""
        return not self.done and self.span is not None and self.span.started is not None

    def stop(self) -> asyncio.Task[None] | None:
        """Cancel it, and return the task that ends."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
        return self._task

    @property
    def usable(self) -> bool:
        """Whether another promise may stand for it: not when it was stopped, or failed while only a bet."""
        if self.done and self.error is None:
            return True
        return not self._stopped and (self.committed or not self.done)

    # -- running ---------------------------------------------------------------------------------------

    def begin(self, promise: Promise[Any]) -> None:
        """Start for `promise`, unless a hook knows the result. Raises WeighbridgeError when a hook forbids it."""
        run, step = self.run, self.step
        called = run.clock() - run.began
        self.span = span = StepSpan(step.name, step.options.effect, called, bet=not promise.world.committed)
        try:
            for started in run.hooks.started:
                started(promise, self)
                if self.done:
                    break
        except WeighbridgeError as error:
            span.finished, span.error = span.called, f"{type(error).__name__}: {error}"
            raise
        self.claim(promise)
        if not self.done:
            self._task = run.nursery.spawn(self._run())

    def finish_with(self, value: Any, error: BaseException | None = None) -> None:
        """Give it its result, or its error, without running it."""
        self.done, self.value, self.error, self.finished_at = True, value, error, self.run.clock()
        self.span = None

    async def _run(self) -> None:
        current_execution.set(self)
        run, span, step = self.run, self.span, self.step
        assert span is not None
        slots = run.slots_of(step)
        try:
            if slots is not None:
                await slots.acquire(self)
            span.started = run.clock() - run.began
            if step.options.usd:
                run.charge(self, step.options.usd)
            try:
                value = await self._attempts()
            finally:
                if slots is not None:
                    slots.release(self)
        except asyncio.CancelledError as error:
            ours = self._stopped or run.nursery.closing
            self._finish(span, None, error if ours else _cancelled_itself(step))
        except Exception as error:
            self._finish(span, None, error)
        else:
            self._finish(span, value, None)

    async def _attempts(self) -> Any:
        options = self.step.options
        if self.in_doubt and options.settle is not None:
            try:
                return await options.settle(*self.args, **self.kwargs)
            except NotDone:
                pass  # it did not happen: now it does
        if not (options.timeout or options.retries or options.hedge):
            return await self.step.function(*self.args, **self.kwargs)
        for count in range(options.retries + 1):
            try:
                return await (self._hedged(options.hedge) if options.hedge else self._once(0))
            except Exception as error:
                if count == options.retries or not _worth_retrying(self.step, error):
                    raise
            await asyncio.sleep(min(FIRST_BACKOFF_SECONDS * 2**count, MAX_BACKOFF_SECONDS))
        raise AssertionError("unreachable")

    async def _once(self, number: int) -> Any:
        attempt.set(number)
        seconds = self.step.options.timeout
        if seconds is None:
            return await self.step.function(*self.args, **self.kwargs)
        try:
            async with asyncio.timeout(seconds):
                return await self.step.function(*self.args, **self.kwargs)
        except TimeoutError as error:
            if isinstance(error, StepTimeout):
                raise
            doubt = "; it may have happened all the same" if self.step.writes else ""
            raise StepTimeout(
                f"step {self.step.name} took longer than its timeout of {seconds:g} s{doubt}"
            ) from error

    async def _hedged(self, share: float) -> Any:
        """Launch a second attempt when the first is slower than most, if the budget for that allows it."""
        nursery, times = self.run.nursery, self.run.times(self.step.name)
        delay = times.hedge_delay(share)
        tasks = [nursery.spawn_child(self._once(0))]
        try:
            if delay is not None:
                await asyncio.wait(tasks, timeout=delay)
                if not tasks[0].done() and times.take_hedge():
                    self.note_hedge()
                    tasks.append(nursery.spawn_child(self._once(1)))
            return await first_success(tasks)
        finally:
            await nursery.reap(tasks)

    def note_hedge(self) -> None:
        """It has been launched a second time."""
        if self.span is not None:
            self.span.hedged = True

    def _finish(self, span: StepSpan, value: Any, error: BaseException | None) -> None:
        run = self.run
        self.done, self.value, self.error = True, value, error
        self.finished_at = run.clock()
        span.finished = self.finished_at - run.began
        if isinstance(error, asyncio.CancelledError):
            span.cancelled = True
        elif error is not None:
            span.error = f"{type(error).__name__}: {error}"
        for finished in run.hooks.finished:
            finished(self)
        handles, self.handles = self.handles, {}
        if self.preempted:
            return  # the shadows that wait for it stay parked
        for promise in list(handles):
            promise.settle(value, error)


def charge(usd: float) -> None:
    """Inside a step: it has cost so many dollars (more). Counts towards the flow's budget; ignored elsewhere."""
    execution = this_execution()
    if execution is not None:
        execution.run.charge(execution, usd)


def this_execution() -> Execution | None:
    """Return the execution whose step function is running here."""
    return cast("Execution | None", current_execution.get())


def this_world() -> World | None:
    """Return the world whose body is running here; None outside flows and inside steps."""
    return cast("World | None", current_world.get())


def _worth_retrying(step: Step[..., Any], error: Exception) -> bool:
    """A write's effect may have happened unless it says otherwise; a mistake in the call stays a mistake."""
    if step.writes:
        return isinstance(error, NotDone)
    if step.options.retry_on is not None:
        return step.options.retry_on(error)
    return not isinstance(error, BadInput | TypeError)


def _cancelled_itself(step: Step[..., Any]) -> WeighbridgeError:
    return WeighbridgeError(f"step {step.name} was cancelled from inside; raise an error instead")


# -- worlds --------------------------------------------------------------------------------------------------


class Wager(Protocol):
    """A bet that a world has placed on one of its calls."""

    def give_up(self) -> None:
        """Its world is gone."""
        ...

    def move_to(self, world: World, number: int) -> None:
        """Its world was confirmed and is part of `world` now."""
        ...


class World:
    """One running of a flow's body: it turns calls of steps into promises, and promises into executions.

    The committed world is real; others run ahead of it (`bets`) or beside it (`combine`). Worlds share executions: two
    calls of the same step with the same argument values, behind the same writes, stand for one execution. That is how
    the committed world, which never takes a value from a shadow, finds the work that a right guess has done ahead of
    it; and why a wrong guess leaves no trace.
    """

    committed = True  # what it starts is needed for certain
    bettable = True  # whether guesses in it are bet on
    reported = True  # its calls are those of the flow: hooks hear of them

    def __init__(self, run: FlowRun) -> None:
        self.run = run
        self.path: Hashable = ()  # tells calls inside a `best` apart from those of the body
        self.assumed: dict[int, Any] = {}  # number of a call -> the value guessed for it
        self.alive = True
        self.handles: set[Promise[Any]] = set()  # promises not settled
        self.bets: dict[int, Wager] = {}  # by number of the call
        self.absorbed: list[World] = []  # shadows that were right: what they started is this world's
        self.outcomes: dict[str, list[Any]] = {}  # site of a guess -> what it gave so far
        self.writes: list[Promise[Any]] = []  # in program order
        self.frontier: Join | None = None
        self.order: EffectOrder[Promise[Any]] = EffectOrder()
        self.hear_settled = run.hooks.settled if self.reported else ()
        self.hold_result = run.hooks.hold_result if self.reported else ()
        self._hear_awaited = run.hooks.awaited if self.reported else ()
        self._hold_start = run.hooks.hold_start if self.reported else ()
        self._ask_recall = run.hooks.recall if self.reported else ()
        self._counts: dict[Hashable, int] = {}
        self._used: dict[Hashable, int] = {}
        self._last: Promise[Any] | None = None

    @property
    def probability(self) -> float:
        """Chance that everything assumed in it is right."""
        return 1.0

    # -- calling ---------------------------------------------------------------------------------------

    def call(self, step: Step[..., Any], args: Args, kwargs: Kwargs) -> Promise[Any]:
        """Call `step`: it starts as soon as its arguments are there and effects before it are done.

        Raises CancelledError in a world that was given up, and BadInput where the step is not allowed.
        """
        if not self.alive:
            raise asyncio.CancelledError("this world was given up")
        self.check_allowed(step)
        if kwargs:
            args, kwargs = step.positional(args, kwargs)
        promise: Promise[Any] = Promise(self, step, args, kwargs)
        frozen = freeze_call(args, kwargs, lambda part: self._stand_in(part, promise))
        promise.identity = (step.name, frozen, self.path)
        self._identify(promise)
        self.follow(promise)
        self.called(promise)
        return promise

    def check_allowed(self, step: Step[..., Any]) -> None:
        """Raises BadInput when `step` may not be called here at all."""

    def _stand_in(self, part: Any, promise: Promise[Any]) -> Hashable:
        """Return what a pending argument is in the call's key, and note what the call must wait for."""
        awaited: Promise[Any] = part.promise
        part.place(self)
        if awaited.world.run is not self.run:
            raise BadInput(f"a promise of {awaited.step.name} belongs to another run; await it there")
        if awaited.number not in self.assumed or awaited is part:
            promise.pending.append(part)
        return ("promise", awaited.number)

    def _identify(self, promise: Promise[Any]) -> None:
        count = self._counts.get(promise.identity, 0)
        self._counts[promise.identity] = count + 1
        promise.occurrence = count
        promise.number = self.run.number((promise.identity, count))
        promise.frontier = self.frontier
        self.handles.add(promise)

    def follow(self, promise: Promise[Any]) -> None:
        """Decide what the call waits for: its arguments, effects before it, the last call in a sequential run."""
        options = promise.step.options
        deps: list[Promise[Any]] = [part.promise for part in promise.pending] if promise.pending else []
        if promise.step.writes:
            follows, promise.fence = self.order.write(promise, options)
            deps += follows
        elif options.effect != "pure":
            follows, promise.fence = self.order.read(promise, options)
            deps += follows
        if self.run.sequential:
            if self._last is not None:
                deps.append(self._last)
            self._last = promise
        promise.deps = tuple(deps)

    def called(self, promise: Promise[Any]) -> None:
        """A call was made; start it, now or when what it waits for has settled."""
        for called in self.run.hooks.called:
            called(promise)
        step = promise.step
        if step.writes:
            self.writes.append(promise)
            if step.options.undo is not None:
                promise.on_settled(self.run.may_undo)
        self.arm(promise)

    def awaited(self, promise: Promise[Any]) -> None:
        """The body has awaited `promise`."""
        frontier = self.frontier
        if frontier is None or frontier.call is not promise:
            self.frontier = Join(frontier, promise)
        for awaited in self._hear_awaited:
            awaited(promise)

    def blocked(self, promise: Promise[Any]) -> None:
        """The body waits for `promise`."""

    def arm(self, promise: Promise[Any]) -> None:
        """Bind the promise to an execution once everything it waits for has settled."""
        waiting = [dep for dep in promise.deps if not dep.done] if promise.deps else []
        promise.missing = len(waiting)
        if not waiting:
            self._bind(promise)
            return

        def arrived(_: Promise[Any]) -> None:
            promise.missing -= 1
            if promise.missing == 0 and not promise.done:
                promise.world._bind(promise)

        for dep in waiting:
            dep.on_settled(arrived)

    # -- binding ---------------------------------------------------------------------------------------

    def _bind(self, promise: Promise[Any]) -> None:
        if promise.done:
            return
        for hold in self._hold_start:
            if hold(promise, lambda: self._bind(promise)):
                return
        args, kwargs = promise.args, promise.kwargs
        if promise.pending or self.assumed:
            try:
                args = tuple(substitute(value, self._known) for value in args)
                kwargs = {name: substitute(value, self._known) for name, value in kwargs.items()}
            except (asyncio.CancelledError, Exception) as error:
                promise.settle(None, error)
                return
            frozen = freeze_call(args, kwargs)
        else:
            frozen = promise.identity[1]
        self._attach(promise, args, kwargs, (promise.step.name, frozen, promise.fence, self.path))

    def _known(self, part: Any) -> Any:
        awaited: Promise[Any] = part.promise
        if awaited is not part and awaited.number in self.assumed:
            return self.assumed[awaited.number]
        return awaited.result()

    def _attach(self, promise: Promise[Any], args: Args, kwargs: Kwargs, key: Hashable) -> None:
        """Let the promise stand for the execution with this key: an existing execution, or a new one."""
        run = self.run
        used = self._used.get(key, 0)
        self._used[key] = used + 1
        line = run.executions.get(key)
        if line is None:
            line = run.executions[key] = []
        execution = self._recalled(promise, args, kwargs, key) if self._ask_recall else None
        if execution is not None:
            run.resumed += 1
        elif line:
            execution = _shared(promise, line, used)
        fresh = execution is None
        if execution is None:
            execution = Execution(run, promise.step, args, kwargs, key)
        if used < len(line):
            line[used] = execution
        else:
            line.append(execution)
        if not fresh:
            execution.claim(promise)
            return
        try:
            self.launch(promise, execution)
        except WeighbridgeError as refusal:
            line.remove(execution)
            self.refused(promise, refusal)

    def _recalled(self, promise: Promise[Any], args: Args, kwargs: Kwargs, key: Hashable) -> Execution | None:
        """Return the call as an earlier life of the run left it."""
        execution = Execution(self.run, promise.step, args, kwargs, key)
        return execution if any(recall(promise, execution) for recall in self._ask_recall) else None

    def launch(self, promise: Promise[Any], execution: Execution) -> None:
        """Start a new execution. Raises WeighbridgeError when a hook forbids it."""
        execution.begin(promise)

    def refused(self, promise: Promise[Any], refusal: WeighbridgeError) -> None:
        """A hook does not let a call start."""
        promise.settle_now(None, refusal)

    # -- combinations ----------------------------------------------------------------------------------

    def combine(self, step: Step[..., Any], promises: Sequence[Promise[Any]]) -> Promise[Any]:
        """Return a promise that stands for several calls; whoever made it settles it."""
        promise: Promise[Any] = Promise(self, step, tuple(promises), {})
        promise.identity = (step.name, tuple(("promise", part.number) for part in promises), self.path)
        self._identify(promise)
        promise.deps = tuple(promises)
        if self.reported:
            for called in self.run.hooks.called:
                called(promise)
            execution = self._recalled(promise, promise.args, {}, None) if self._ask_recall else None
            if execution is not None:
                promise.settle(execution.value, execution.error)
        return promise

    def abandon(self) -> None:
        """Let go of everything that has not settled. The world is dead afterwards."""
        self.alive = False
        for promise in list(self.handles):
            promise.abandon()
        for world in self.absorbed:
            world.abandon()


def _shared(promise: Promise[Any], line: list[Execution], used: int) -> Execution | None:
    """Return an execution of the same call that the promise may stand for, beside those that do already."""
    if used < len(line):
        return line[used] if line[used].usable else None
    if promise.step.writes or not promise.step.options.dedup:
        return None
    return line[-1] if line[-1].usable and not line[-1].done else None


# -- the run -------------------------------------------------------------------------------------------------


class FlowRun:
    """One run of a flow. `execute` runs the body to its end and leaves nothing behind.

    `times`: how long steps of a name take. `slots`: how many executions of a resource run at once.
    """

    def __init__(
        self,
        name: str,
        run_id: str,
        body: Callable[[], Awaitable[Any]],
        hooks: Sequence[Hook],
        *,
        sequential: bool,
        budget: Budget,
        slots: dict[str, Slots],
        times: Callable[[str], StepTimes],
    ) -> None:
        self.name = name
        self.run_id = run_id
        self.body = body
        self.hooks = Hooks(hooks)
        self.sequential = sequential
        self.budget = budget
        self.times = times
        self.nursery = Nursery()
        self.clock = self.nursery.clock
        self.began = self.clock()
        self.usd = 0.0
        self.resumed = 0  # results that an earlier life of the run had left
        self.error: str | None = None
        self.diverged: Diverged | None = None
        self.executions: dict[Hashable, list[Execution]] = {}
        self.committed = World(self)
        self._slots = slots
        self._beside: dict[type[World], World] = {}
        self._numbers: dict[Hashable, int] = {}
        self._undoable: list[Promise[Any]] = []
        self._body_task: asyncio.Task[Any] | None = None
        self._dispatching: deque[tuple[Callable[[Any], None], Promise[Any]]] | None = None

    def now(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.began

    def in_body(self) -> bool:
        """Tell whether the code that runs now is the body itself, not a task that it has made."""
        return asyncio.current_task() is self._body_task

    @property
    def frontier(self) -> Join | None:
        """What the body has awaited so far."""
        return self.committed.frontier

    # -- from beginning to end -------------------------------------------------------------------------

    async def execute(self) -> Any:
        """Return the body's result. Raises what the body raises, FlowTimeout, or a failed write nobody awaited."""
        try:
            result = await self._within_budget()
            if self.diverged is not None:  # the body took it for an ordinary error
                raise self.diverged
            return result
        except BaseException as error:
            if self.diverged is not None and error is not self.diverged:
                self.error = f"Diverged: {self.diverged}"
                raise self.diverged from error
            self.error = f"{type(error).__name__}: {error}"
            for note in await self._undo() if self.diverged is None else ():
                self.error += f"; {note}"
                error.add_note(note)
            raise
        finally:
            await self._close()
            for ended in self.hooks.ended:
                ended(self)

    async def _within_budget(self) -> Any:
        seconds = self.budget.seconds
        try:
            async with asyncio.timeout(seconds) as timeout:
                return await self._committed_body()
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise FlowTimeout(f"flow {self.name} took longer than its budget of {seconds:g} s") from error

    async def _committed_body(self) -> Any:
        async def body() -> Any:
            current_world.set(self.committed)
            result = await self.body()
            while isinstance(result, Pending):  # `return send(text)` is `return await send(text)`
                result = await cast("Awaitable[Any]", result)
            return result

        try:
            self._body_task = self.nursery.spawn(body())
            result = await self._body_task
        except Exception:
            await self._finish_writes()
            raise
        failed = await self._finish_writes()
        if failed is not None:
            raise failed
        return result

    async def _finish_writes(self) -> BaseException | None:
        """Wait for effects the body called, awaited or not; return the first error of those it did not await."""
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
            if join.call is promise:
                return True
            join = join.before
        return False

    def may_undo(self, promise: Promise[Any]) -> None:
        """An `undo` step of the committed world has settled."""
        execution = promise.execution
        if promise.error is None or (execution is not None and execution.may_have_happened):
            self._undoable.append(promise)

    async def _undo(self) -> list[str]:
        """Take back what `undo` steps did, last first; return what is to be said of those that could not be."""
        notes: list[str] = []
        await self._stop_undoable()
        for promise in reversed(self._undoable):
            execution = promise.execution
            if execution is None or execution.undone:
                continue
            if note := await self._why_not_undone(promise, execution):
                notes.append(note)
                continue
            execution.undone = True
            for undone in self.hooks.undone:
                undone(promise)
        return notes

    async def _why_not_undone(self, promise: Promise[Any], execution: Execution) -> str:
        """Take back what one step did, within its time; return why that failed, or nothing."""
        seconds = promise.step.options.timeout or UNDO_SECONDS
        task = self.nursery.spawn(_take_back(promise, execution))
        try:
            await asyncio.wait([task], timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            why = "the flow was cancelled"
        else:
            if task.cancel():
                why = f"it took longer than {seconds:g} s"
            elif task.cancelled():
                why = "it was cancelled"
            elif (error := task.exception()) is None:
                return task.result()
            else:
                why = f"{type(error).__name__}: {said(error)}"
        return f"undoing {promise.step.name} failed ({why}), so what it did may still be there; look, and take it back"

    async def _stop_undoable(self) -> None:
        """End `undo` steps that still run, so that what they did can be taken back."""
        running = [
            promise.execution
            for promise in self.committed.writes
            if promise.step.options.undo is not None and promise.execution and promise.execution.in_flight
        ]
        with suppress(asyncio.CancelledError):
            await self.nursery.reap(task for execution in running if (task := execution.stop()) is not None)

    async def _close(self) -> None:
        """Cancel whatever still runs, wait until it has ended, and close what was opened."""
        self.nursery.closing = True
        for bet in list(self.committed.bets.values()):
            bet.give_up()
        self.committed.abandon()
        for world in self._beside.values():
            world.abandon()
        await self.nursery.end()

    # -- what worlds, executions and hooks ask ---------------------------------------------------------

    def number(self, identity: Hashable) -> int:
        """Return the number of a call: the same for the same call in every world."""
        return self._numbers.setdefault(identity, len(self._numbers))

    def beside(self, kind: type[W]) -> W:
        """Return the run's world of a kind other than the body's, made on first use."""
        world = self._beside.get(kind)
        if world is None:
            world = self._beside[kind] = kind(self)
        return cast(W, world)

    def hook(self, kind: type[H]) -> H | None:
        """Return the run's hook of this kind."""
        return next((hook for hook in self.hooks.every if isinstance(hook, kind)), None)

    def slots_of(self, step: Step[..., Any]) -> Slots | None:
        resource = step.options.resource
        return self._slots.get(resource) if resource is not None and self._slots else None

    def charge(self, execution: Execution, usd: float) -> None:
        """`execution` has cost so many dollars (more)."""
        self.usd += usd
        if execution.span is not None:
            execution.span.usd += usd

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.nursery.later(seconds, action)

    def dispatch(self, callbacks: list[Callable[[Any], None]], promise: Promise[Any]) -> None:
        """Call back one after the other, not one inside the other: chains of promises may be long."""
        queue = self._dispatching
        if queue is not None:
            for callback in callbacks:
                queue.append((callback, promise))
            return
        queue = self._dispatching = deque()
        for callback in callbacks:
            queue.append((callback, promise))
        try:
            while queue:
                callback, settled = queue.popleft()
                callback(settled)
        finally:
            self._dispatching = None


async def _take_back(promise: Promise[Any], execution: Execution) -> str:
    """Undo a step; where nobody knows whether it happened, its `settle` is asked. Return why it could not be undone."""
    step, options = promise.step, promise.step.options
    assert options.undo is not None
    if promise.error is None:
        await options.undo(promise.result())
        return ""
    if options.settle is None:
        return (
            f"step {step.name} may or may not have happened, and was not undone; "
            "give it settle=function, which looks that up"
        )
    inside = current_execution.set(execution)
    try:
        value = await options.settle(*execution.args, **execution.kwargs)
    except NotDone:
        return ""
    finally:
        current_execution.reset(inside)
    await options.undo(value)
    return ""
