"""`prefetch`: start a read ahead of the call that will probably come."""

from __future__ import annotations

from typing import Any

from weighbridge.errors import WeighbridgeError
from weighbridge.flow.runtime import Promise, World, this_execution, this_world
from weighbridge.flow.step import Step


def prefetch(step: Step[..., Any], *args: Any, **kwargs: Any) -> Promise[Any] | None:
    """Start `step` now, so that the same call made later by the flow finds it running or done.

    For pure and read steps (and remote steps that opted in); anything else is left alone and gives None. If
    the call never comes, what was started is cancelled with the flow. Arguments may be promises of other
    prefetched calls. Usable in a flow's body and inside its steps; elsewhere it does nothing.
    """
    world, execution = this_world(), this_execution()
    run = world.run if world is not None else execution.run if execution is not None else None
    if run is None or not step.may_speculate or run.nursery.closing or run.sequential:
        return None
    return run.beside(AheadWorld).call(step, args, kwargs)


class AheadWorld(World):
    """What was prefetched: calls nobody has made yet. They read what the committed world would read now."""

    committed = False
    bettable = False
    reported = False

    def follow(self, promise: Promise[Any]) -> None:
        deps: list[Promise[Any]] = [part.promise for part in promise.pending]
        if promise.step.options.effect != "pure":
            follows, promise.fence = self.run.committed.order.peek(promise.step.options)
            deps += follows
        promise.deps = tuple(deps)

    def called(self, promise: Promise[Any]) -> None:
        promise.inherited = True  # holds the execution only until the flow itself has had it
        self.arm(promise)

    def refused(self, promise: Promise[Any], refusal: WeighbridgeError) -> None:
        """It is not started ahead; the flow's own call will hear why."""
