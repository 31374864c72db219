"""A step cost that keeps learning from the iterations it predicts."""

from __future__ import annotations

import math
from dataclasses import replace

from weighbridge.cost.experts import ExpertUse
from weighbridge.cost.fit import fit
from weighbridge.cost.mean import Mean
from weighbridge.cost.step import DEFAULT_STEP_COST, Sample, StepCost


class StepClock:
    """A `StepCost` that keeps learning from the iterations it predicts.

    At once through one factor, the smoothed ratio of measured to predicted seconds; and, every
    `refit_every` iterations, by fitting all coefficients anew to what was measured of each kind of
    iteration, once there are enough kinds.
    """

    KINDS_NEEDED = 8
    SPREAD_NEEDED = 8.0  # between the smallest and the largest iteration, in tokens

    def __init__(
        self, cost: StepCost = DEFAULT_STEP_COST, smoothing: float = 0.05, refit_every: int = 128
    ) -> None:
        self.fitted = cost
        self.cost = cost
        self._ratio = Mean(smoothing, 1.0)  # of measured to predicted seconds
        self._refit_every = refit_every
        self._observed = 0
        #: Iterations of about the same size, with their smoothed time.
        self._kinds: dict[tuple[int, int], Sample] = {}

    def observe(self, sample: Sample) -> None:
        """Fold one measured iteration in; a single stall moves the estimate by at most a factor of 2·smoothing."""
        predicted = self.fitted.predict(sample)
        if predicted <= 0.0 or sample.seconds <= 0.0:
            return
        ratio = self._ratio.value
        self._ratio.add(min(max(sample.seconds / predicted, ratio / 2), ratio * 2))
        self.cost = self.fitted.scaled(self._ratio.value)
        self._remember(sample)
        self._observed += 1
        if self._observed % self._refit_every == 0:
            self._refit()

    def _remember(self, sample: Sample) -> None:
        pairs = sample.context_tokens + sample.prompt_pairs
        kind = (round(2 * math.log2(sample.tokens)), round(math.log2(pairs + 1)))
        known = self._kinds.get(kind)
        if known is not None:
            # A stall counts as twice the usual time at most.
            seconds = known.seconds + 0.2 * (min(sample.seconds, 2 * known.seconds) - known.seconds)
            sample = replace(sample, seconds=seconds)
        self._kinds[kind] = sample

    def _refit(self) -> None:
        tokens = [sample.tokens for sample in self._kinds.values()]
        if len(tokens) < self.KINDS_NEEDED or max(tokens) < self.SPREAD_NEEDED * min(tokens):
            return
        self.fitted = self.cost = fit(list(self._kinds.values())).with_expert_use(self.fitted.expert_use)
        self._ratio = Mean(self._ratio.weight, 1.0)

    def set_expert_use(self, use: ExpertUse) -> None:
        """What was learned of the spread of tokens over experts; the times stay as they are."""
        self.fitted = self.fitted.with_expert_use(use)
        self.cost = self.cost.with_expert_use(use)
