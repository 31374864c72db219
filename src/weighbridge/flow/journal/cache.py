"""Results of steps with `cache=`, kept between the runs of a flow."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from weighbridge.flow.execution import Execution


class StepCache:
    """At most 4,096 results, the oldest of them forgotten first."""

    SIZE = 4096

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[float, Any]] = {}

    def recall(self, execution: Execution) -> bool:
        name, frozen = execution.key[:2]  # type: ignore[index]
        known = self._known.get((name, frozen))
        if known is None or known[0] < execution.run.clock():
            return False
        execution.finish_with(known[1])
        return True

    def remember(self, execution: Execution) -> None:
        name, frozen = execution.key[:2]  # type: ignore[index]
        keep = execution.step.options.cache
        until = float("inf") if keep is True else execution.run.clock() + float(keep)
        if len(self._known) >= self.SIZE:
            self._known.pop(next(iter(self._known)))
        self._known[name, frozen] = (until, execution.value)
