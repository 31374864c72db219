"""How long one engine iteration takes: the one formula that scheduler, admission, balancer and planner share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from weighbridge.cost.experts import ExpertUse


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured iteration."""

    tokens: int
    sequences: int
    context_tokens: int
    seconds: float
    experts: float | None = None  # distinct (layer, expert) pairs touched; None: a dense model


@dataclass(frozen=True, slots=True)
class StepCost:
    """Roofline of one iteration: overhead + max(weights streamed, tokens computed) + attention + sequences.

    The first six fields are seconds: per iteration, per pass over the weights, per token, per (query, key) pair
    of attention, per sequence in the batch (sampling, detokenising, delivery), per expert that the batch touches
    (0: a dense model). The rest say how many experts that is; they are the fields of `ExpertUse`.
    """

    overhead: float
    memory: float
    per_token: float
    per_context_token: float
    per_sequence: float
    per_expert: float = 0.0
    experts: float = 0.0
    expert_layers: float = 0.0
    expert_top_k: float = 0.0
    expert_skew: float = 0.0
    expert_overlap: float = 0.0

    def seconds(
        self, tokens: int, sequences: int, context_tokens: int, experts: float | None = None
    ) -> float:
        """Predicted seconds of an iteration.

        `tokens` run through the linear layers, `sequences` take part, and `context_tokens` counts the
        (query, key) pairs that attention touches (for a decode of one sequence, its context length).
        `experts`: distinct (layer, expert) pairs touched, where that is known; else their expected number.
        """
        seconds = (
            self.overhead
            + max(self.memory, self.per_token * tokens)
            + self.per_context_token * context_tokens
            + self.per_sequence * sequences
        )
        if self.per_expert:
            touched = self.expert_use.touched(tokens, sequences) if experts is None else experts
            seconds += self.per_expert * touched
        return seconds

    @property
    def expert_use(self) -> ExpertUse:
        return ExpertUse(
            self.experts, self.expert_layers, self.expert_top_k, self.expert_skew, self.expert_overlap
        )

    def with_expert_use(self, use: ExpertUse) -> StepCost:
        """The same times over another spread of the tokens."""
        return replace(
            self,
            experts=use.experts,
            expert_layers=use.layers,
            expert_top_k=use.top_k,
            expert_skew=use.skew,
            expert_overlap=use.overlap,
        )

    def scaled(self, factor: float) -> StepCost:
        """The same machine running `factor` times slower."""
        return replace(
            self,
            overhead=self.overhead * factor,
            memory=self.memory * factor,
            per_token=self.per_token * factor,
            per_context_token=self.per_context_token * factor,
            per_sequence=self.per_sequence * factor,
            per_expert=self.per_expert * factor,
        )

    def prefill_seconds(self, tokens: int, cached: int = 0, chunk: int = 2048) -> float:
        """Time to compute `tokens` prompt tokens behind `cached` ones alone, in steps of `chunk`."""
        total, done = 0.0, cached
        while done < cached + tokens:
            step = min(chunk, cached + tokens - done)
            total += self.seconds(step, 1, step * done + step * (step + 1) // 2)
            done += step
        return total

    def largest_chunk(
        self, target: float, start: int, limit: int, tokens: int, sequences: int, context_tokens: int
    ) -> int:
        """Most prompt tokens (<= limit) at offset `start` that keep an iteration within `target` seconds.

        The iteration already holds `tokens`, `sequences` and `context_tokens`. Monotone, so bisect, from where
        the quadratic of a dense model's time has its root: mostly the answer, or next to it.
        """

        def fits(chunk: int) -> bool:
            pairs = context_tokens + chunk * start + chunk * (chunk + 1) // 2
            return self.seconds(tokens + chunk, sequences + 1, pairs) <= target

        low, high = 0, limit
        guess = min(self._chunk_of(target, start, tokens, sequences, context_tokens), limit)
        if not fits(guess):
            high = max(guess - 1, 0)
        elif guess == limit or not fits(guess + 1):
            return guess
        else:
            low = guess
        while low < high:
            middle = (low + high + 1) // 2
            if fits(middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _chunk_of(self, target: float, start: int, tokens: int, sequences: int, context_tokens: int) -> int:
        """About how many tokens take an iteration to `target` seconds, where computing and not memory bounds it."""
        left = target - self.overhead - self.per_context_token * context_tokens
        left -= self.per_sequence * (sequences + 1) + self.per_token * tokens
        linear = self.per_token + self.per_context_token * (start + 0.5)
        root = math.sqrt(max(linear * linear + 2.0 * self.per_context_token * left, 0.0))
        return int(2.0 * left / (linear + root)) if left > 0.0 and linear > 0.0 else 0

    def as_dict(self) -> dict[str, float]:
        """Every field; those about experts only where there are some."""
        return {name: value for name, value in asdict(self).items() if self.experts or "expert" not in name}


#: Before anything is measured: a 135M-parameter model on two modern server cores.
DEFAULT_STEP_COST = StepCost(
    overhead=0.003, memory=0.012, per_token=0.0007, per_context_token=1.0e-6, per_sequence=0.00005
)


#: Rounds of reweighting in `fit`: further ones change nothing that can be seen.
_FIT_ROUNDS = 3


def fit(samples: Sequence[Sample]) -> StepCost:
    """Least squares of `StepCost` over measured iterations, every coefficient >= 0.

    The maximum makes the model piecewise linear: the knee (tokens at which compute takes over from memory)
    is searched over the observed token counts, and each side is solved as non-negative least squares on
    relative errors, so that short and long iterations count alike. Errors are relative to what the round before
    predicted, not to what was measured: iterations of one kind that now and then lose their core for a while are
    met in their mean, which is what adds up to latencies; dividing by each measurement would favour the quick
    ones. Where every sample says how many experts it touched, the time per expert is fitted too.

    Raises ValueError with fewer than five samples.
    """
    if len(samples) < 5:
        raise ValueError("fitting a step cost needs at least five measured iterations")
    seconds = np.array([s.seconds for s in samples])
    sparse = all(s.experts is not None for s in samples)
    columns = np.array(
        [[1.0, s.tokens, s.context_tokens, s.sequences, s.experts or 0.0] for s in samples],
        dtype=np.float64,
    )[:, : 5 if sparse else 4]
    expected = seconds
    for _ in range(_FIT_ROUNDS):
        cost, predicted = _best_knee(columns, seconds, expected)
        expected = np.maximum(predicted, 1e-3 * seconds)
    return cost


def _best_knee(columns: np.ndarray, seconds: np.ndarray, expected: np.ndarray) -> tuple[StepCost, np.ndarray]:
    """The fit with the least squared error relative to `expected`, and what it predicts of each sample."""
    best: tuple[float, StepCost, np.ndarray] | None = None
    for knee in np.unique(columns[:, 1]):
        bent = columns.copy()
        bent[:, 1] = np.maximum(columns[:, 1], knee)
        solution = _non_negative_least_squares(bent / expected[:, None], seconds / expected)
        predicted = bent @ solution
        error = float((((predicted - seconds) / expected) ** 2).sum())
        if best is None or error < best[0]:
            overhead, per_token, per_pair, per_sequence, *per_expert = (float(x) for x in solution)
            cost = StepCost(overhead, per_token * float(knee), per_token, per_pair, per_sequence, *per_expert)
            best = error, cost, predicted
    assert best is not None
    return best[1], best[2]


def _non_negative_least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Active-set search over the few columns: drop the most negative coefficient until none is left."""
    active = list(range(a.shape[1]))
    while active:
        scale = np.linalg.norm(a[:, active], axis=0)
        scale[scale == 0.0] = 1.0
        solution = np.linalg.lstsq(a[:, active] / scale, b, rcond=None)[0] / scale
        if (solution >= 0.0).all():
            break
        active.pop(int(np.argmin(solution * scale)))
    result = np.zeros(a.shape[1])
    if active:
        result[active] = solution
    return result


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
        self._ratio = 1.0
        self._smoothing = smoothing
        self._refit_every = refit_every
        self._observed = 0
        self._kinds: dict[
            tuple[int, int], Sample
        ] = {}  # iterations of about the same size: their smoothed time

    def observe(self, sample: Sample) -> None:
        """Fold one measured iteration in; a single stall moves the estimate by at most a factor of 2·smoothing."""
        predicted = self.fitted.seconds(
            sample.tokens, sample.sequences, sample.context_tokens, sample.experts
        )
        if predicted <= 0.0 or sample.seconds <= 0.0:
            return
        ratio = min(max(sample.seconds / predicted, self._ratio / 2), self._ratio * 2)
        self._ratio += self._smoothing * (ratio - self._ratio)
        self.cost = self.fitted.scaled(self._ratio)
        self._remember(sample)
        self._observed += 1
        if self._observed % self._refit_every == 0:
            self._refit()

    def _remember(self, sample: Sample) -> None:
        kind = (round(2 * math.log2(sample.tokens)), round(math.log2(sample.context_tokens + 1)))
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
        self._ratio = 1.0

    def set_expert_use(self, use: ExpertUse) -> None:
        """What was learned of the spread of tokens over experts; the times stay as they are."""
        self.fitted = self.fitted.with_expert_use(use)
        self.cost = self.cost.with_expert_use(use)
