"""Least squares of five quantities with nothing below 0, without a library: a gateway solves one for some answers.

The normal equations come as the sums that are kept of observations: `SUMS` of them, first those of products of a row's
parts (the upper half of the matrix, row by row), then those of each part with what was observed. Written without loops,
as these take five times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import compress
from operator import mul

WIDTH = 5
#: Which parts of a row each sum of products is of.
PAIRS = tuple((i, j) for i in range(WIDTH) for j in range(i, WIDTH))
SUMS = len(PAIRS) + WIDTH
#: Where in the sums the products of two parts stand.
AT = tuple(tuple(PAIRS.index((min(i, j), max(i, j))) for j in range(WIDTH)) for i in range(WIDTH))

Five = tuple[float, float, float, float, float]
#: Which quantities may be other than 0.
Free = tuple[bool, bool, bool, bool, bool]
ALL: Free = (True, True, True, True, True)
_NONE: Five = (0.0, 0.0, 0.0, 0.0, 0.0)
_TINY = 1e-12
#: Quantities that come in or go until a solution is taken as it is: of five, a few do.
_ROUNDS = 12


def solve(sums: Sequence[float], free: Free) -> tuple[Five, Free] | None:
    """The solution, and what in it is not 0; None where there is none.

    `free`: what was not 0 the last time, and mostly is not this time: then it is found at once.
    """
    found = _over(sums, free)
    if found is not None and _is_least(sums, found, free):
        return found, free
    found = _over(sums, ALL)
    if found is None:
        return None
    if min(found) >= 0.0:
        return found, ALL
    found = _bounded(sums)
    a, b, c, d, e = found
    return found, (a > 0.0, b > 0.0, c > 0.0, d > 0.0, e > 0.0)


def _over(sums: Sequence[float], free: Free) -> Five | None:
    """The solution in which only `free` are not 0, by elimination; None where the sums do not determine it.

    What is not free takes part as a right side that nobody reads.
    """
    aa, ab, ac, ad, ae, bb, bc, bd, be, cc, cd, ce, dd, de, ee, ra, rb, rc, rd, re = sums
    has_a, has_b, has_c, has_d, has_e = free
    least_b, least_c, least_d, least_e = _TINY * bb, _TINY * cc, _TINY * dd, _TINY * ee
    a = b = c = d = e = 0.0
    if has_a:
        if not 0.0 < aa < math.inf:
            return None
        f, g, h, i = ab / aa, ac / aa, ad / aa, ae / aa
        bb, bc, bd, be, rb = bb - f * ab, bc - f * ac, bd - f * ad, be - f * ae, rb - f * ra
        cc, cd, ce, rc = cc - g * ac, cd - g * ad, ce - g * ae, rc - g * ra
        dd, de, rd, ee, re = dd - h * ad, de - h * ae, rd - h * ra, ee - i * ae, re - i * ra
    if has_b:
        if not least_b < bb < math.inf:
            return None
        f, g, h = bc / bb, bd / bb, be / bb
        cc, cd, ce, rc = cc - f * bc, cd - f * bd, ce - f * be, rc - f * rb
        dd, de, rd, ee, re = dd - g * bd, de - g * be, rd - g * rb, ee - h * be, re - h * rb
    if has_c:
        if not least_c < cc < math.inf:
            return None
        f, g = cd / cc, ce / cc
        dd, de, rd, ee, re = dd - f * cd, de - f * ce, rd - f * rc, ee - g * ce, re - g * rc
    if has_d:
        if not least_d < dd < math.inf:
            return None
        f = de / dd
        ee, re = ee - f * de, re - f * rd
    if has_e:
        if not least_e < ee < math.inf:
            return None
        e = re / ee
    if has_d:
        d = (rd - de * e) / dd
    if has_c:
        c = (rc - cd * d - ce * e) / cc
    if has_b:
        b = (rb - bc * c - bd * d - be * e) / bb
    if has_a:
        a = (ra - ab * b - ac * c - ad * d - ae * e) / aa
    return a, b, c, d, e


def _is_least(sums: Sequence[float], found: Five, free: Free) -> bool:
    """Whether nothing is below 0 and nothing that is 0 would help (Karush, Kuhn and Tucker): there is one such."""
    if min(found) < 0.0:
        return False
    for place in compress(range(WIDTH), [not one for one in free]):
        right = sums[len(PAIRS) + place]
        if _slope(sums, found, place) > 1e-9 * abs(right):
            return False
    return True


def _slope(sums: Sequence[float], found: Sequence[float], place: int) -> float:
    """How much more of one quantity would help."""
    products: Iterable[float] = map(mul, [sums[at] for at in AT[place]], found)
    return sums[len(PAIRS) + place] - sum(products)


def _bounded(sums: Sequence[float]) -> Five:
    """The solution, found step by step (Lawson and Hanson 1974): quantities come in one by one, the one that helps most
    first, and go as soon as they would be negative."""
    at: Sequence[float] = _NONE
    free = [False] * WIDTH
    for _ in range(_ROUNDS):
        helps = [
            (slope / math.sqrt(sums[AT[i][i]]), i)
            for i in range(WIDTH)
            if not free[i]
            and sums[AT[i][i]] > 0.0
            and (slope := _slope(sums, at, i)) > 1e-9 * abs(sums[len(PAIRS) + i])
        ]
        if not helps:
            break
        free[max(helps)[1]] = True
        while (found := _over(sums, _free(free))) is not None and any(
            one <= 0.0 for one in compress(found, free)
        ):
            at, gone = _back(at, found, free)
            free[gone] = False
        if found is None:
            break
        at = found
    a, b, c, d, e = at
    return a, b, c, d, e


def _back(at: Sequence[float], found: Five, free: Sequence[bool]) -> tuple[list[float], int]:
    """How far one can go from `at` to `found` until a quantity is 0, and which one that is."""
    falling = [i for i in range(WIDTH) if free[i] and found[i] <= 0.0]
    part = min(at[i] / (at[i] - found[i]) if at[i] > found[i] else 0.0 for i in falling)
    there = [one + part * (other - one) for one, other in zip(at, found, strict=True)]
    there = [value if free[i] and found[i] > 0.0 else max(value, 0.0) for i, value in enumerate(there)]
    gone = min(falling, key=there.__getitem__)
    there[gone] = 0.0
    return there, gone


def _free(free: Sequence[bool]) -> Free:
    a, b, c, d, e = free
    return a, b, c, d, e
