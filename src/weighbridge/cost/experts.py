"""How many experts a batch touches: the coverage that decides what a mixture of experts reads per iteration.

A token uses expert e with probability p_e (they add up to top-k). B independent tokens touch
sum(1 - (1 - p_e)^B) of a layer's experts. Tokens are not quite independent:

- Those of one iteration share topics and phases. How many experts two of them have in common, beyond what chance
  gives them, is a correlation that can be counted; with it, p_e varies from iteration to iteration as a beta
  distribution (the beta-binomial model; Skellam 1948), and no point of the curve is fitted.
- Neighbouring tokens of one text overlap: n of them touch as many experts as n^(1 - overlap) independent ones
  (measured on Qwen1.5-MoE: overlap 0.03 meets 2 to 128 consecutive tokens within 0.5 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

#: Batch sizes at which the compact form of a distribution should meet the exact one.
_FIT_TOKENS = (2, 4, 8, 16, 32, 64, 128)

#: The largest overlap a fit may find.
_LARGEST_OVERLAP = 0.75

#: The steepest power law a fit may find.
_LARGEST_SKEW = 4.0


#: The largest correlation of two tokens that is believed.
_LARGEST_CORRELATION = 0.9


def coverage(probabilities: Iterable[float], tokens: float, correlation: float = 0.0) -> float:
    """Expected number of distinct experts that `tokens` touch; 0 <= correlation < 1 of any two (0: independent)."""
    if correlation <= 0.0:
        return sum(1.0 - float((1.0 - p) ** tokens) for p in probabilities)
    return sum(1.0 - _untouched(p, tokens, correlation) for p in probabilities)


def _untouched(p: float, tokens: float, correlation: float) -> float:
    """Probability that no token uses an expert: the mean of (1 - P)^tokens over P ~ Beta(a, b)."""
    if p <= 0.0 or p >= 1.0:
        return float(p <= 0.0 or tokens == 0.0)
    strength = 1.0 / correlation - 1.0  # a + b
    b = (1.0 - p) * strength
    ratio = math.lgamma(b + tokens) - math.lgamma(b) + math.lgamma(strength)
    return math.exp(ratio - math.lgamma(strength + tokens))


def correlation(layers: Sequence[Sequence[float]], shared: float) -> float:
    """Correlation of two tokens of an iteration, from the experts they share per layer on average.

    layers: probabilities of every sparse layer. Independent tokens share sum(p^2), which gives 0; never below 0.
    """
    chance = sum(p * p for layer in layers for p in layer) / len(layers)
    most = sum(p for layer in layers for p in layer) / len(layers)
    if most <= chance:
        return 0.0
    return min(max((shared - chance) / (most - chance), 0.0), _LARGEST_CORRELATION)


def uniform_coverage(experts: int, top_k: int, tokens: float) -> float:
    """`coverage` when every expert is used as often as any other."""
    return experts * (1.0 - float((1.0 - top_k / experts) ** tokens))


def independent_tokens(tokens: float, sequences: float, overlap: float) -> float:
    """Independent tokens that touch as many experts as `tokens` shared out over `sequences` texts."""
    if tokens <= sequences or sequences <= 0.0 or overlap == 0.0:
        return tokens
    return float(sequences * (tokens / sequences) ** (1.0 - overlap))


def fit_overlap(probabilities: Sequence[float], measured: Sequence[tuple[int, float]]) -> float:
    """The overlap that best explains (consecutive tokens, experts touched), on relative errors.

    Raises ValueError without a measurement of at least two tokens.
    """
    usable = [(tokens, touched) for tokens, touched in measured if tokens > 1 and touched > 0.0]
    if not usable:
        raise ValueError("an overlap needs the experts touched by at least two consecutive tokens")

    def error(overlap: float) -> float:
        return sum(
            (coverage(probabilities, independent_tokens(tokens, 1, overlap)) / touched - 1.0) ** 2
            for tokens, touched in usable
        )

    return _minimum(error, 0.0, _LARGEST_OVERLAP)


def _minimum(error: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest, by ternary search."""
    for _ in range(30):
        third = (high - low) / 3
        if error(low + third) <= error(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """How a model's tokens spread over its experts, in a few numbers that fit into a load report.

    experts and layers: of all sparse layers together. Within a layer, the expert of rank r is used with a
    probability proportional to r^-skew, and the probabilities add up to `top_k`.
    """

    experts: float
    layers: float
    top_k: float
    skew: float = 0.0
    overlap: float = 0.0

    @classmethod
    def of(cls, layers: Sequence[Sequence[float]], overlap: float = 0.0) -> ExpertUse:
        """From the probabilities of every sparse layer: the skew whose coverage is closest to theirs."""
        every = [p for layer in layers for p in layer]
        use = cls(float(len(every)), float(len(layers)), sum(every) / len(layers), 0.0, overlap)
        exact = [(tokens, coverage(every, tokens)) for tokens in _FIT_TOKENS]

        def error(skew: float) -> float:
            tried = replace(use, skew=skew)
            return sum((tried.touched(tokens, tokens) / touched - 1.0) ** 2 for tokens, touched in exact)

        return replace(use, skew=_minimum(error, 0.0, _LARGEST_SKEW))

    def touched(self, tokens: float, sequences: float) -> float:
        """Distinct (layer, expert) pairs that an iteration of `tokens` in `sequences` is expected to touch."""
        if self.layers < 1.0 or self.experts < self.layers:
            return 0.0
        count = independent_tokens(tokens, sequences, self.overlap)
        return self.layers * _layer_coverage(round(self.experts / self.layers), self.top_k, self.skew, count)


def power_law(experts: int, top_k: float, skew: float) -> list[float]:
    """Probabilities proportional to rank^-skew that add up to `top_k`, none above 1."""
    weights = [rank**-skew for rank in range(1, experts + 1)]
    certain, rest = 0, sum(weights)
    while certain < min(top_k, experts) and weights[certain] * (top_k - certain) > rest:
        rest -= weights[certain]
        certain += 1
    scale = (top_k - certain) / rest if rest > 0.0 else 0.0
    return [1.0] * certain + [min(1.0, weight * scale) for weight in weights[certain:]]


@lru_cache(maxsize=1 << 16)  # the scheduler asks for the same few thousand batches again and again
def _layer_coverage(experts: int, top_k: float, skew: float, tokens: float) -> float:
    return coverage(power_law(experts, top_k, skew), tokens)
