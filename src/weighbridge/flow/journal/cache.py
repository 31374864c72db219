"""Results of steps with `cache=`, kept between the runs of a flow."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

from weighbridge.flow.hooks import CallView, ExecutionView, Hook

#: Results kept at once; the oldest is forgotten first.
MAX_RESULTS = 4096


class StepCache(Hook):
    """Knows results by step and arguments, until they are too old."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[float, Any]] = {}  # until when, and what

    def started(self, call: CallView, execution: ExecutionView) -> None:
        if execution.step.options.cache:
            known = self._known.get(_call_of(execution))
            if known is not None and known[0] >= execution.run.clock():
                execution.finish_with(known[1])

    def finished(self, execution: ExecutionView) -> None:
        keep = execution.step.options.cache
        if keep and execution.error is None:
            until = float("inf") if keep is True else execution.run.clock() + float(keep)
            if len(self._known) >= MAX_RESULTS:
                self._known.pop(next(iter(self._known)))
            self._known[_call_of(execution)] = (until, execution.value)


def _call_of(execution: ExecutionView) -> Hashable:
    """Name and arguments of the call: what was written before it does not count here."""
    name, frozen, *_ = cast("tuple[Hashable, ...]", execution.key)
    return name, frozen
