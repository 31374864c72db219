"""A step cost from what was seen outside: found so that the simulator meets the latencies of recorded requests.

For machines whose iterations nobody timed. What was recorded of some requests (their arrivals and latencies) is
simulated again and again, and the coefficients are moved until both agree. Check the result on other requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from weighbridge.cost import StepCost

#: What is moved. Overhead and memory add up in every small batch, so only their sum is to be seen from outside.
TUNED = ("memory", "per_token", "per_context_token", "per_sequence", "per_prompt_pair")

#: Coefficients move within these factors of where they began.
REACH = 30.0


def tune(start: StepCost, loss: Callable[[StepCost], float], evaluations: int = 80) -> StepCost:
    """The step cost near `start` with the least `loss`, by Nelder and Mead's simplex on logarithms.

    Deterministic. `loss` is called at most `evaluations` times and a few more.
    """
    names = [name for name in TUNED if getattr(start, name) > 0.0]

    def cost_at(point: Sequence[float]) -> StepCost:
        moved = {
            name: getattr(start, name) * math.exp(min(max(x, -math.log(REACH)), math.log(REACH)))
            for name, x in zip(names, point, strict=True)
        }
        return replace(start, **moved)

    best = minimize(lambda point: loss(cost_at(point)), [0.0] * len(names), 0.4, evaluations)
    return cost_at(best)


def disagreement(pairs: Sequence[tuple[float, float]]) -> float:
    """Mean squared logarithm of predicted over measured, for `tune`; both must be above 0."""
    return sum(math.log(predicted / measured) ** 2 for predicted, measured in pairs) / len(pairs)


def minimize(
    function: Callable[[Sequence[float]], float], start: Sequence[float], size: float, evaluations: int
) -> list[float]:
    """Nelder and Mead's downhill simplex (1965) with its usual coefficients; returns the best corner."""
    count = 0

    def value(point: list[float]) -> tuple[float, list[float]]:
        nonlocal count
        count += 1
        return function(point), point

    corners = [value(list(start))]
    corners += [value([x + size * (axis == i) for i, x in enumerate(start)]) for axis in range(len(start))]
    while count < evaluations:
        corners.sort(key=lambda corner: corner[0])
        worst = corners[-1]
        middle = [sum(c[1][i] for c in corners[:-1]) / (len(corners) - 1) for i in range(len(start))]

        def along(factor: float, middle: list[float] = middle, worst: list[float] = worst[1]) -> list[float]:
            return [m + factor * (w - m) for m, w in zip(middle, worst, strict=True)]

        reflected = value(along(-1.0))
        if reflected[0] < corners[0][0]:
            expanded = value(along(-2.0))
            corners[-1] = min(reflected, expanded, key=lambda corner: corner[0])
        elif reflected[0] < corners[-2][0]:
            corners[-1] = reflected
        else:
            contracted = value(along(-0.5 if reflected[0] < worst[0] else 0.5))
            if contracted[0] < min(reflected[0], worst[0]):
                corners[-1] = contracted
            else:
                best = corners[0][1]
                shrunk = [[b + 0.5 * (x - b) for b, x in zip(best, c[1], strict=True)] for c in corners[1:]]
                corners = [corners[0], *map(value, shrunk)]
    return min(corners, key=lambda corner: corner[0])[1]
