"""A world: one running of a flow's body. The committed world is real; shadows run ahead on a guess."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BadInput
from weighbridge.flow.effect_order import EffectOrder
from weighbridge.flow.execution import Execution
from weighbridge.flow.identity import freeze_call, substitute
from weighbridge.flow.promise import Promise
from weighbridge.flow.report.record import Join
from weighbridge.flow.step import Step

if TYPE_CHECKING:
    from weighbridge.flow.bets.bet import Bet
    from weighbridge.flow.run import Run

Args = tuple[Any, ...]


class World:
    """Turns calls of steps into promises, and promises into executions.

    Worlds share executions: two calls of the same step with the same argument values, behind the same
    writes, stand for one execution. That is how the committed world, which never takes a value from a
    shadow, finds the work that a right guess has done ahead of it; and why a wrong guess leaves no trace.
    """

    committed = True
    bettable = True

    def __init__(self, run: Run) -> None:
        self.run = run
        self.path: Hashable = ()  # tells calls inside a `best` apart from those of the body
        self.assumed: dict[int, Any] = {}  # number of a call -> the value guessed for it
        self.alive = True
        self.handles: set[Promise[Any]] = set()  # promises not settled
        self.bets: dict[int, Bet] = {}
        self.absorbed: list[World] = []  # shadows that were right: what they started is this world's
        self.outcomes: dict[str, list[Any]] = {}  # site of a guess -> what it gave so far
        self.writes: list[Promise[Any]] = []  # in program order
        self.frontier: Join | None = None
        self._counts: dict[Hashable, int] = {}
        self._used: dict[Hashable, int] = {}
        self.order = EffectOrder()
        self._last: Promise[Any] | None = None

    @property
    def probability(self) -> float:
        """That everything assumed in it is right."""
        return 1.0

    # -- calling ---------------------------------------------------------------------------------------

    def call(self, step: Step[..., Any], args: Args, kwargs: dict[str, Any]) -> Promise[Any]:
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
        self._follow(promise)
        self.called(promise)
        return promise

    def _identify(self, promise: Promise[Any]) -> None:
        count = self._counts.get(promise.identity, 0)
        self._counts[promise.identity] = count + 1
        promise.occurrence = count
        promise.number = self.run.number((promise.identity, count))
        promise.frontier = self.frontier
        self.handles.add(promise)

    def check_allowed(self, step: Step[..., Any]) -> None:
        """Raises BadInput when `step` may not be called here at all."""

    def called(self, promise: Promise[Any]) -> None:
        """A call was made; start it, now or when what it waits for has settled."""
        self.run.record.calls.append(promise)
        if promise.step.writes:
            self.run.note_write(promise)
            self.writes.append(promise)
        self.arm(promise)

    def awaited(self, promise: Promise[Any]) -> None:
        """The body has awaited `promise`."""
        frontier = self.frontier
        if frontier is None or frontier.promise is not promise:
            self.frontier = Join(frontier, promise)

    def blocked(self, promise: Promise[Any]) -> None:
        """The body waits for `promise`."""

    def _stand_in(self, part: Any, promise: Promise[Any]) -> Hashable:
        """What a pending argument is in the call's key, and what the call must wait for."""
        guessed = getattr(part, "promise", part)
        if guessed is not part:
            part.place(self)
        if guessed.world.run is not self.run:
            raise BadInput(f"a promise of {guessed.step.name} belongs to another run; await it there")
        if guessed.number not in self.assumed or guessed is part:
            promise.pending.append(part)
        return ("promise", guessed.number)

    def _follow(self, promise: Promise[Any]) -> None:
        options = promise.step.options
        deps = [getattr(part, "promise", part) for part in promise.pending]
        if promise.step.writes:
            follows, promise.fence = self.order.write(promise, options)
            deps += follows
        elif options.effect != "pure":
            follows, promise.fence = self.order.read(promise, options)
            deps += follows
        if self.run.mode == "sequential":
            if self._last is not None:
                deps.append(self._last)
            self._last = promise
        promise.deps = tuple(deps)

    def arm(self, promise: Promise[Any]) -> None:
        """Bind the promise to an execution once everything it waits for has settled."""
        waiting = [dep for dep in promise.deps if not dep.done]
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
        args, kwargs = promise.args, promise.kwargs
        if promise.pending or self.assumed:
            try:
                args = tuple(substitute(one, self._known) for one in args)
                kwargs = {name: substitute(one, self._known) for name, one in kwargs.items()}
            except (asyncio.CancelledError, Exception) as error:
                promise.settle(None, error)
                return
            frozen = freeze_call(args, kwargs)
        else:
            frozen = promise.identity[1]
        self.attach(promise, args, kwargs, (promise.step.name, frozen, promise.fence, promise.world.path))

    def _known(self, part: Any) -> Any:
        guessed = getattr(part, "promise", part)
        if guessed is not part and guessed.number in self.assumed:
            return self.assumed[guessed.number]
        return guessed.result()

    def attach(self, promise: Promise[Any], args: Args, kwargs: dict[str, Any], key: Hashable) -> None:
        """Let the promise stand for the execution with this key: one there is, or a new one."""
        run = self.run
        used = self._used.get(key, 0)
        self._used[key] = used + 1
        line = run.executions.get(key)
        if line is None:
            line = run.executions[key] = []
        execution = self.recalled(promise, args, kwargs, key) or _shared(promise, line, used)
        if execution is not None:
            _place(line, used, execution)
            execution.claim(promise)
            return
        execution = Execution(run, promise.step, args, kwargs, key)
        _place(line, used, execution)
        self.launch(promise, execution)

    def recalled(
        self, promise: Promise[Any], args: Args, kwargs: dict[str, Any], key: Hashable
    ) -> Execution | None:
        """The call as the journal has it."""
        return self.run.recalled(promise, args, kwargs, key) if self.run.journal is not None else None

    def launch(self, promise: Promise[Any], execution: Execution) -> None:
        """Start a new execution, unless a cache knows its result or it may not start."""
        run = self.run
        if run.cached(execution):
            execution.claim(promise)
            return
        refusal = run.refusal(promise, execution)
        if refusal is not None:
            promise.settle(None, refusal)
            return
        execution.claim(promise)
        execution.start()

    # -- combinations ----------------------------------------------------------------------------------

    def combine(self, step: Step[..., Any], promises: list[Promise[Any]]) -> Promise[Any]:
        """A promise that stands for several calls; whoever made it settles it through `combined`."""
        promise: Promise[Any] = Promise(self, step, tuple(promises), {})
        promise.identity = (step.name, tuple(("promise", one.number) for one in promises), self.path)
        self._identify(promise)
        promise.deps = tuple(promises)
        if self.run.committed is self:
            self.run.record.calls.append(promise)
            self.run.recall_combined(promise)
        return promise

    def combined(self, promise: Promise[Any], value: Any) -> None:
        """The result of a combination."""
        if self.run.committed is self:
            self.run.remember_combined(promise, value)
        promise.settle(value)

    def abandon(self) -> None:
        """Let go of everything that has not settled. The world is dead afterwards."""
        self.alive = False
        for promise in list(self.handles):
            promise.abandon()
        for world in self.absorbed:
            world.abandon()


def _place(line: list[Execution], used: int, execution: Execution) -> None:
    if used < len(line):
        line[used] = execution
    else:
        line.append(execution)


def _shared(promise: Promise[Any], line: list[Execution], used: int) -> Execution | None:
    """An execution of the same call that the promise may stand for, as well as those that do already."""
    if used < len(line):
        return line[used] if line[used].usable else None
    if not line or promise.step.writes or not promise.step.options.dedup:
        return None
    return line[-1] if line[-1].usable and not line[-1].done else None
