"""A promise: the handle a flow's body holds on a step it has called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from weighbridge.flow.identity import Pending

if TYPE_CHECKING:
    from weighbridge.flow.execution import Execution
    from weighbridge.flow.report.record import Join
    from weighbridge.flow.step import Step
    from weighbridge.flow.world import World

T = TypeVar("T")


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

    def __init__(
        self, world: World, step: Step[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
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

    def settled(self) -> asyncio.Future[None]:
        """Done when this is settled, well or badly; cancelling it cancels nothing else."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_settled(lambda _: None if waiter.done() else waiter.set_result(None))
        return waiter

    def result(self) -> T:
        """The result, or the step's error raised. RuntimeError before it is there."""
        if not self.done:
            raise RuntimeError(f"{self.step.name} has not finished; await it")
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]

    def on_settled(self, callback: Callable[[Promise[T]], None]) -> None:
        """Call back once it has a result or an error; at once when it has."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def settle(self, value: T | None, error: BaseException | None = None) -> None:
        """Give it its result. Later ones are ignored."""
        if self.done:
            return
        self.done, self._value, self.error = True, value, error
        self.world.handles.discard(self)
        callbacks, self._callbacks = self._callbacks, []
        if callbacks:
            self.world.run.dispatch(callbacks, self)

    def abandon(self) -> None:
        """Nobody in its world wants it any more: let go of the running step, and settle as cancelled."""
        if self.done:
            return
        execution, self.execution = self.execution, None
        self.settle(None, asyncio.CancelledError(f"{self.step.name} was let go"))
        if execution is not None:
            execution.release(self)

    def __repr__(self) -> str:
        return f"<promise {self.step.name}#{self.number} {'done' if self.done else 'pending'}>"
