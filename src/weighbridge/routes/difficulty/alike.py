"""Which texts are nearly the same: copies with a word changed, questions about one passage. Pure.

What they share is estimated from their least n-grams in a random order (Broder 1997, min-wise hashing; in one
permutation with bins, Li, Owen and Zhang 2012), and counted where the estimate says so. Takes linear time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Two texts are alike that share so much of what either has.
ALIKE = 0.6
#: Bins of the permutation, and how many of them have to agree before two texts are compared. Of texts that share .85,
#: as copies do of which a word in twenty is missing, 27 % agree in one of the bands, 92 % in any of the eight.
BINS, BAND = 64, 8


def groups_of(columns: Sequence[np.ndarray], width: int) -> np.ndarray:
    """(n,): a number from 0 for each text, the same for those that are alike, or that others are alike to.

    `columns`: of each text, the numbers below `width` of the n-grams that it has, rising.
    """
    least = _least(columns, width)
    leaders = np.arange(len(columns))
    for start in range(0, BINS, BAND):
        band = least[:, start : start + BAND]
        known: dict[bytes, int] = {}
        for text in np.flatnonzero((band >= 0).any(axis=1)).tolist():
            first = known.setdefault(band[text].tobytes(), text)
            one, other = _leader(leaders, first), _leader(leaders, text)
            if one != other and _shared(columns[first], columns[text]) >= ALIKE:
                leaders[max(one, other)] = min(one, other)
    ends = np.array([_leader(leaders, text) for text in range(len(columns))], np.int64)
    numbers: np.ndarray = np.unique(ends, return_inverse=True)[1]
    return numbers


def _least(columns: Sequence[np.ndarray], width: int) -> np.ndarray:
    """(n, BINS): the least of each text's n-grams in each bin of one random order; -1 where it has none."""
    order = np.random.default_rng(0).permutation(width).astype(np.int32)
    size = -(-width // BINS)
    least = np.full((len(columns), BINS), -1, np.int32)
    for row, used in zip(least, columns, strict=True):
        places = np.sort(order[used])[::-1]
        row[places // size] = places  # of several in one bin the last one stays: the least
    return least


def _leader(leaders: np.ndarray, text: int) -> int:
    while leaders[text] != text:
        leaders[text] = leaders[leaders[text]]
        text = int(leaders[text])
    return text


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """What two sets have in common, of all that either has."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1)
