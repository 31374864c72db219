"""What a run may use: money, time, and the share of its money that lost bets may cost."""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow.hooks import CallView, ExecutionView, Hook


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


class Purse(Hook):
    """Lets no step start that the run cannot pay."""

    def __init__(self, limit_usd: float) -> None:
        self._limit_usd = limit_usd

    def started(self, call: CallView, execution: ExecutionView) -> None:
        run, limit = execution.run, self._limit_usd
        if run.usd + execution.step.options.usd > limit:
            text = f"flow {run.name} has spent ${run.usd:.4g} of its budget of ${limit:.4g}"
            raise BudgetExceeded(f"{text}; step {execution.step.name} was not started")
