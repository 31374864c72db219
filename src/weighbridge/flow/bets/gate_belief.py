"""How sure may we be? Probabilities learned from outcomes, as Beta posteriors that forget. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Belief:
    """Beta posterior of a success rate. `forgetting` γ discounts the past: a window of about 1/(1−γ)."""

    prior_won: float = 2.0
    prior_lost: float = 2.0
    forgetting: float = 1.0
    won: float = 0.0
    lost: float = 0.0
    _lower: tuple[float, float] | None = field(
        default=None, repr=False
    )  # quantile -> value, until it changes

    def observe(self, success: bool) -> None:
        self._lower = None
        self.won *= self.forgetting
        self.lost *= self.forgetting
        if success:
            self.won += 1.0
        else:
            self.lost += 1.0

    @property
    def count(self) -> float:
        """Outcomes remembered, discounted."""
        return self.won + self.lost

    @property
    def mean(self) -> float:
        a, b = self.prior_won + self.won, self.prior_lost + self.lost
        return a / (a + b)

    def lower(self, quantile: float = 0.05) -> float:
        """The value that the rate exceeds with probability 1 − `quantile`."""
        if self._lower is None or self._lower[0] != quantile:
            value = beta_quantile(quantile, self.prior_won + self.won, self.prior_lost + self.lost)
            self._lower = (quantile, value)
        return self._lower[1]


def beta_quantile(q: float, a: float, b: float) -> float:
    """x with I_x(a, b) = q: the inverse of the regularised incomplete beta function, by bisection to 1e-9."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if beta_cdf(middle, a, b) < q:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """I_x(a, b), by Lentz's continued fraction (Numerical Recipes, 6.4)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front)
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(x, a, b) / a
    return 1.0 - front * _fraction(1.0 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    result = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 / (1.0 + numerator * d or tiny)
            c = 1.0 + numerator / c or tiny
            result *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return result
