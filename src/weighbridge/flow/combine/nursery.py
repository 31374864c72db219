"""The inside of a `best`: calls of candidates that may be thrown away."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.flow.execution import Execution
from weighbridge.flow.promise import Promise
from weighbridge.flow.step import Step
from weighbridge.flow.world import World


class Nursery(World):
    """The inside of a `best`: candidates that are thrown away, so that none of them may change anything."""

    bettable = False

    def __init__(self, owner: Execution, path: Hashable, mode_label: str) -> None:
        super().__init__(owner.run)
        self.path = path
        self._label = mode_label
        self._withheld: list[Promise[Any]] = []
        self.committed = owner.committed
        if not owner.committed:
            owner.on_commit.append(self._commit)

    def _commit(self) -> None:
        self.committed = True
        for promise in list(self.handles):
            if promise.execution is not None:
                promise.execution.commit()
        withheld, self._withheld = self._withheld, []
        for promise in withheld:
            self.arm(promise)

    def recalled(self, *_: Any) -> None:
        """What happens inside a step is not journaled; its result is."""

    def check_allowed(self, step: Step[..., Any]) -> None:
        if step.writes:
            raise BadInput(
                f"{self._label} throws candidates away, so that {step.name} (effect {step.options.effect!r}) "
                "must not run inside it; call it afterwards, with the chosen result"
            )

    def called(self, promise: Promise[Any]) -> None:
        if self.committed or promise.step.may_speculate:
            self.arm(promise)
        else:
            self._withheld.append(promise)

    def launch(self, promise: Promise[Any], execution: Execution) -> None:
        if self.run.cached(execution):
            execution.claim(promise)
            return
        execution.claim(promise)
        execution.start()
