"""One row of scores: penalties, what the filters leave, the draw, and log-probabilities. Pure.

In numpy and with few passes over the vocabulary (sums in float32, which numpy makes pairwise: in float64 they take
longer than all the rest): a batch has a hundred rows, and the streams of all of them wait. What is sought among the
likeliest is sought above a share of the best one's weight first, where nearly always it is, so that next to nothing has
to be sorted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weighbridge.engine.request import SamplingParams, TokenLogprob

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

#: Shares of the best token's weight above which candidates are looked for, one after the other.
_SHARES = tuple(np.float32(2.0**-power) for power in (4, 8, 12, 16))
#: The same as differences of scores.
_BELOW = tuple(np.float32(-below) for below in (2, 4, 6, 8, 11, 15))
#: Weights that are summed up before it is looked for the one that a draw means.
_BLOCK = 512


class Tally:
    """How often each token is in an output."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, np.int64)
        self._times = np.zeros(64, np.float32)

    @property
    def ids(self) -> Ids:
        """Each token that is there, once."""
        return self._ids[: len(self._places)]

    @property
    def times(self) -> Scores:
        """How often each of them is there."""
        return self._times[: len(self._places)]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._times = np.concatenate([self._times, np.zeros_like(self._times)])
        self._ids[place] = token
        self._times[place] += 1

    def take_back(self, token: int) -> None:
        """Undo the last `add`."""
        place = self._places[token]
        self._times[place] -= 1
        if not self._times[place]:
            del self._places[token]


def penalise(
    scores: Scores, params: SamplingParams, tally: Tally, in_prompt: npt.NDArray[np.bool_] | None, prompt: Ids
) -> None:
    """Repetition (Keskar et al. 2019) over prompt and output; presence and frequency over the output, as OpenAI.

    `prompt`: each token of the prompt once, and `in_prompt` whether one is there. Looks at nothing but these tokens.
    """
    ids = tally.ids
    if in_prompt is not None:
        for part in (prompt, ids[~in_prompt[ids]]):
            values, penalty = scores[part], np.float32(params.repetition_penalty)
            with np.errstate(
                over="ignore", divide="ignore", invalid="ignore"
            ):  # a penalty may be next to nothing
                scores[part] = np.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty or params.frequency_penalty:
        scores[ids] -= (
            np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * tally.times
        )


def drawn(scores: Scores, params: SamplingParams, point: float) -> int:
    """Return the token that `point`, in [0, 1), means among those that the filters leave."""
    largest = float(scores.max())
    if not math.isfinite(largest):  # nothing may come, or nothing is a number: whoever asked finds out
        return int(scores.argmax())
    weights, ids = filtered(weights_of(scores, params.temperature), params)
    chosen = _meant(weights, point)
    return int(ids[chosen]) if ids is not None else chosen


def weights_of(scores: Scores, temperature: float) -> Scores:
    """Return what is proportional to each token's probability; 1 for the likeliest."""
    with np.errstate(over="ignore", under="ignore"):
        weights: Scores = scores - scores.max()
        if temperature != 1.0:
            weights *= np.float32(1.0 / max(temperature, 1e-30))
        return np.exp(weights, out=weights)


def filtered(weights: Scores, params: SamplingParams) -> tuple[Scores, Ids | None]:
    """Weights of the tokens that min-p, top-k and top-p leave, and their ids; `weights` may be changed.

    Ids None: every token, in order. min-p keeps what has at least that share of the likeliest token's
    probability; top-p then keeps the fewest of the likeliest that hold at least `top_p` of what is left.
    """
    if params.min_p > 0.0:
        np.multiply(weights, weights >= np.float32(params.min_p), out=weights)
    if params.top_k <= 0 and params.top_p >= 1.0:
        return weights, None
    ids: Ids
    if params.top_k > 0:
        ids = _above(weights, min(params.top_k, len(weights)), _SHARES)
        ids = ids[_largest(weights[ids], min(params.top_k, len(weights)))]
        mass = params.top_p * float(weights[ids].sum())
    else:
        mass = params.top_p * float(weights.sum())
        ids = _holding(weights, mass)
    best = weights[ids]
    if params.top_p < 1.0:
        ordered = np.sort(best)[::-1].astype(np.float64)
        before = np.cumsum(ordered) - ordered
        kept = _largest(best, max(int(np.count_nonzero(before < mass)), 1))
        best, ids = best[kept], ids[kept]
    return best, ids


def token_logprob(scores: Scores, token: int, top: int) -> TokenLogprob:
    """Log-probability under the model's own distribution: before bias, penalties and temperature."""
    with np.errstate(invalid="ignore", under="ignore"):
        below = scores - scores.max()
        whole = math.log(float(np.exp(below).sum()))
    pairs: tuple[tuple[int, float], ...] = ()
    if top:
        count = min(top, len(below))
        ids = _above(below, count, _BELOW)
        ids = ids[_largest(below[ids], count)]
        ids = ids[np.argsort(-below[ids], kind="stable")]
        pairs = tuple((int(one), float(below[one]) - whole) for one in ids)
    return TokenLogprob(token, float(below[token]) - whole, pairs)


def _above(values: Scores, count: int, levels: Sequence[np.float32]) -> Ids:
    """Return the places of all values above some level, so few of them as levels allow but at least `count`."""
    for level in levels:
        high = values >= level
        if np.count_nonzero(high) >= count:
            return np.flatnonzero(high)
    return np.arange(len(values))


def _holding(weights: Scores, mass: float) -> Ids:
    """Return the places of all weights above some share of the best, which hold `mass` together."""
    for share in _SHARES:
        ids = np.flatnonzero(weights >= share)
        if float(weights[ids].sum()) >= mass:
            return ids
    return np.arange(len(weights))


def _largest(values: Scores, count: int) -> Ids:
    """Return the places of the `count` largest, in order; of equal ones the first."""
    if count >= len(values):
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    places = np.flatnonzero(values >= least)
    if (surplus := len(places) - count) > 0:
        equal = np.flatnonzero(values[places] == least)
        places = np.delete(places, equal[-surplus:])
    return places


def _meant(weights: Scores, point: float) -> int:
    """Return the place at which the running sum of weights exceeds `point` of the whole; never one of weight 0."""
    whole = len(weights) // _BLOCK * _BLOCK
    if whole <= _BLOCK:
        return _within(weights, point * float(weights.sum(dtype=np.float64)))
    sums = np.append(weights[:whole].reshape(-1, _BLOCK).sum(axis=1), weights[whole:].sum()).astype(
        np.float64
    )
    ends = np.cumsum(sums)
    target = point * float(ends[-1])
    block = min(int(np.searchsorted(ends, target, "right")), int(np.flatnonzero(sums)[-1]))
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK] if start < whole else weights[whole:]
    return start + _within(inside, target - float(ends[block] - sums[block]))


def _within(weights: Scores, target: float) -> int:
    found = int(np.searchsorted(np.cumsum(weights, dtype=np.float64), max(target, 0.0), "right"))
    return min(found, int(np.flatnonzero(weights)[-1]))
