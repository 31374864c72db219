"""One cost model: what a request weighs, how long an iteration takes, what a token costs."""

from weighbridge.cost.clock import StepClock
from weighbridge.cost.fit import fit
from weighbridge.cost.step import DEFAULT_STEP_COST, Sample, StepCost, attention

__all__ = ["DEFAULT_STEP_COST", "Sample", "StepClock", "StepCost", "attention", "fit"]
