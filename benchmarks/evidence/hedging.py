"""When to send a second copy of a slow call, and what it brings: the theory behind `hedge=`. Pure.

A copy is launched when the first has not answered after d seconds: P(T > t) = S(t)·S(t − d) for t > d, at
the price of S(d) further launches per call. A budget of β further launches therefore fixes d = F⁻¹(1 − β).
SingleR (Kaler, He, Elnikety 2017) launches the copy only with probability q, at an earlier d; the budget is
q·S(d), and in their model it is optimal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Survival = Callable[[float], float]  # S(t) = P(T > t)


def hedged_survival(survival: Survival, t: float, delay: float, probability: float = 1.0) -> float:
    """P(T > t) when a copy is launched with `probability` after `delay` seconds without an answer."""
    if t < delay:
        return survival(t)
    return survival(t) * (1.0 - probability * (1.0 - survival(t - delay)))


def quantile(survival: Survival, share: float, high: float) -> float:
    """t with P(T > t) = 1 − share, by bisection below `high`."""
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if survival(middle) > 1.0 - share:
            low = middle
        else:
            high = middle
    return high


def hedged_quantile(survival: Survival, share: float, delay: float, probability: float, high: float) -> float:
    """The quantile of the answer's time with hedging."""
    return quantile(lambda t: hedged_survival(survival, t, delay, probability), share, high)


def single_r(
    survival: Survival, budget: float, share: float, high: float, steps: int = 400
) -> tuple[float, float, float]:
    """The (d, q) within `budget` that gives the lowest quantile `share`, and that quantile, by search over d."""
    last = quantile(survival, 1.0 - budget, high)
    best = (last, 1.0, hedged_quantile(survival, share, last, 1.0, high))
    for step in range(1, steps):
        delay = last * step / steps
        probability = min(budget / survival(delay), 1.0)
        value = hedged_quantile(survival, share, delay, probability, high)
        if value < best[2]:
            best = (delay, probability, value)
    return best


def exponential_hedged_mean(rate: float, delay: float) -> float:
    """Mean of an exponential duration with a copy after `delay`: (1 − e^{−λd})/λ + e^{−λd}/(2λ)."""
    alone = math.exp(-rate * delay)
    return (1.0 - alone) / rate + alone / (2.0 * rate)


def slow_somewhere(slow_share: float, calls: int) -> float:
    """Chance that at least one of `calls` parallel calls is slow: 1 − (1 − s)^n."""
    return 1.0 - (1.0 - slow_share) ** calls


def hedge_all_helps(load: float) -> bool:
    """Copying every request of an M/M/1 queue halves its service but doubles its load.

    Time in system 1/(μ − λ) against the faster of two independent 1/(μ − 2λ): better only below load 1/3.
    """
    return load < 0.5 and 1.0 / (2.0 * (1.0 - 2.0 * load)) < 1.0 / (1.0 - load)
