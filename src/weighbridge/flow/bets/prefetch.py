"""`prefetch`: start a read ahead of the call that will probably come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weighbridge.flow.execution import Execution
from weighbridge.flow.promise import Promise
from weighbridge.flow.step import Step, current_execution, current_world
from weighbridge.flow.world import World

if TYPE_CHECKING:
    from weighbridge.flow.run import Run


def prefetch(step: Step[..., Any], *args: Any, **kwargs: Any) -> Promise[Any] | None:
    """Start `step` now, so that the same call made later by the flow finds it running or done.

    For pure and read steps (and remote ones that opted in); anything else is left alone and gives None. If
    the call never comes, what was started is cancelled with the flow. Arguments may be promises of other
    prefetched calls. Usable in a flow's body and inside its steps; elsewhere it does nothing.
    """
    world, execution = current_world.get(), current_execution.get()
    run = world.run if world is not None else execution.run if execution is not None else None
    if run is None or not step.may_speculate or run.closing or run.mode == "sequential":
        return None
    return run.ahead().call(step, args, kwargs)


class Ahead(World):
    """What was prefetched: calls nobody has made yet. They read what the committed world would read now."""

    committed = False
    bettable = False

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.order = run.committed.order

    def _follow(self, promise: Promise[Any]) -> None:
        deps = [getattr(part, "promise", part) for part in promise.pending]
        if promise.step.options.effect != "pure":
            follows, promise.fence = self.order.peek(promise.step.options)
            deps += follows
        promise.deps = tuple(deps)

    def called(self, promise: Promise[Any]) -> None:
        promise.inherited = True  # holds the execution only until the flow itself has had it
        self.arm(promise)

    def recalled(self, *_: Any) -> None:
        """The journal is of the committed world."""

    def launch(self, promise: Promise[Any], execution: Execution) -> None:
        if self.run.cached(execution):
            execution.claim(promise)
        elif self.run.waste_left(promise.step.options.usd):
            execution.claim(promise)
            execution.start()
        else:
            self.run.executions[execution.key].remove(execution)
