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
    prompt_pairs: int = 0


def attention(start: int, count: int) -> tuple[int, int]:
    """What attention does for tokens [start, start + count) of a sequence: `context_tokens` and `prompt_pairs`.

    The keys and values that are there are read once, for the last of the tokens and all others with it; every
    other token is a query more, over as many keys as come before it.
    """
    return start + count, (count - 1) * start + count * (count - 1) // 2


#: For `StepCost.per_prompt_pair`: whatever a context token costs.
AS_CONTEXT = -1.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """Roofline of one iteration: overhead + max(weights streamed, tokens computed) + attention + sequences.

    Seconds: per iteration (`overhead`), per pass over the weights (`memory`), per token, per context token that a
    sequence reads, per sequence in the batch (sampling, detokenising, delivery), per expert that the batch
    touches (0: a dense model), per (query, key) pair that a prompt chunk computes beyond its reading. Reading is
    bound by bandwidth and the pairs of a chunk by arithmetic: on two cores a pair of a chunk costs a quarter of a
    token read, on a GPU a hundredth. The rest say how many experts are touched; they are the fields of `ExpertUse`.
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
    per_prompt_pair: float = AS_CONTEXT

    def __post_init__(self) -> None:
        if self.per_prompt_pair < 0.0:
            object.__setattr__(self, "per_prompt_pair", self.per_context_token)

    def seconds(
        self,
        tokens: int,
        sequences: int,
        context_tokens: int,
        prompt_pairs: int = 0,
        experts: float | None = None,
    ) -> float:
        """Predicted seconds of an iteration.

        `tokens` run through the linear layers, `sequences` take part; `context_tokens` and `prompt_pairs` are
        sums of `attention` over them (of decodes: their context lengths, and none).
        `experts`: distinct (layer, expert) pairs touched, where that is known; else their expected number.
        """
        seconds = (
            self.overhead
            + max(self.memory, self.per_token * tokens)
            + self.per_context_token * context_tokens
            + self.per_prompt_pair * prompt_pairs
            + self.per_sequence * sequences
        )
        if self.per_expert:
            touched = self.expert_use.touched(tokens, sequences) if experts is None else experts
            seconds += self.per_expert * touched
        return seconds

    def predict(self, sample: Sample) -> float:
        """Predicted seconds of a measured iteration."""
        return self.seconds(
            sample.tokens, sample.sequences, sample.context_tokens, sample.prompt_pairs, sample.experts
        )

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
            per_prompt_pair=self.per_prompt_pair * factor,
        )

    def prefill_seconds(self, tokens: int, cached: int = 0, chunk: int = 2048) -> float:
        """Time to compute `tokens` prompt tokens behind `cached` ones alone, in steps of `chunk`."""
        total, done = 0.0, cached
        while done < cached + tokens:
            step = min(chunk, cached + tokens - done)
            total += self.seconds(step, 1, *attention(done, step))
            done += step
        return total

    def largest_chunk(
        self,
        target: float,
        start: int,
        limit: int,
        tokens: int,
        sequences: int,
        context_tokens: int,
        prompt_pairs: int = 0,
    ) -> int:
        """Most prompt tokens (<= limit) at offset `start` that keep an iteration within `target` seconds.

        The iteration already holds `tokens`, `sequences`, `context_tokens` and `prompt_pairs`. Monotone, so bisect,
        from where the quadratic of a dense model's time has its root: mostly the answer, or next to it.
        """

        def fits(chunk: int) -> bool:
            context, pairs = attention(start, chunk) if chunk else (0, 0)
            context, pairs = context_tokens + context, prompt_pairs + pairs
            return self.seconds(tokens + chunk, sequences + 1, context, pairs) <= target

        low, high = 0, limit
        left = target - self.overhead - self.per_sequence * (sequences + 1) - self.per_token * tokens
        left -= self.per_context_token * context_tokens + self.per_prompt_pair * prompt_pairs
        guess = min(self._chunk_within(left, start), limit)
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

    def _chunk_within(self, seconds: float, start: int) -> int:
        """About how many tokens at offset `start` take `seconds`, where computing and not memory bounds them."""
        left = seconds - (self.per_context_token - self.per_prompt_pair) * start
        linear = self.per_token + self.per_context_token + self.per_prompt_pair * (start - 0.5)
        root = math.sqrt(max(linear * linear + 2.0 * self.per_prompt_pair * left, 0.0))
        return int(2.0 * left / (linear + root)) if left > 0.0 and linear > 0.0 else 0

    def as_dict(self) -> dict[str, float]:
        """Every field; those about experts only where there are some, a prompt pair's only if it differs."""
        fields = {name: value for name, value in asdict(self).items() if self.experts or "expert" not in name}
        if self.per_prompt_pair == self.per_context_token:
            del fields["per_prompt_pair"]
        return fields


#: Before anything is measured: a 135M-parameter model on two modern server cores.
DEFAULT_STEP_COST = StepCost(
    overhead=0.003,
    memory=0.012,
    per_token=0.0007,
    per_context_token=1.0e-6,
    per_sequence=0.00005,
    per_prompt_pair=2.5e-7,
)


#: How much `fit` heeds that pairs of prompts may cost what context tokens do, in usual samples.
_LEANING = 0.05

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
        [[1.0, s.tokens, s.context_tokens, s.sequences, s.prompt_pairs, s.experts or 0.0] for s in samples],
        dtype=np.float64,
    )[:, : 6 if sparse else 5]
    expected = seconds
    for _ in range(_FIT_ROUNDS):
        cost, predicted = _best_knee(columns, seconds, expected)
        expected = np.maximum(predicted, 1e-3 * seconds)
    return cost


def _best_knee(columns: np.ndarray, seconds: np.ndarray, expected: np.ndarray) -> tuple[StepCost, np.ndarray]:
    """The fit with the least squared error relative to `expected`, and what it predicts of each sample."""
    best: tuple[float, StepCost, np.ndarray] | None = None
    leaning = _leaning(columns, expected)
    for knee in np.unique(columns[:, 1]):
        bent = columns.copy()
        bent[:, 1] = np.maximum(columns[:, 1], knee)
        rows = np.vstack([bent / expected[:, None], leaning])
        solution = _non_negative_least_squares(rows, np.append(seconds / expected, 0.0))
        predicted = bent @ solution
        error = float((((predicted - seconds) / expected) ** 2).sum())
        if best is None or error < best[0]:
            overhead, per_token, per_context, per_sequence, per_pair, *per_expert = map(float, solution)
            memory = per_token * float(knee)
            cost = StepCost(overhead, memory, per_token, per_context, per_sequence, *per_expert)
            best = error, replace(cost, per_prompt_pair=per_pair), predicted
    assert best is not None
    return best[1], best[2]


def _leaning(columns: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """One row that says, in a low voice, that a prompt pair costs what a context token does.

    Without prompt pairs, nothing else tells their price; with few kinds of chunks, noise would.
    """
    usual = math.sqrt(float(np.mean((columns[:, 4] / expected) ** 2)))
    row = np.zeros(columns.shape[1])
    row[2], row[4] = -1.0, 1.0
    return row * (_LEANING * usual or 1.0)


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
        predicted = self.fitted.predict(sample)
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
        self._ratio = 1.0

    def set_expert_use(self, use: ExpertUse) -> None:
        """What was learned of the spread of tokens over experts; the times stay as they are."""
        self.fitted = self.fitted.with_expert_use(use)
        self.cost = self.cost.with_expert_use(use)
