"""The exponentially weighted mean, for everything that is learned from one observation after the other."""

from __future__ import annotations


class Mean:
    """Each value that is added moves the mean by `weight` of the difference.

    With a `prior` it starts there. Without one the first values count alike, as in a plain mean, until each of them
    would weigh less than `weight`; `value` is 0 before the first.
    """

    __slots__ = ("_plain", "count", "value", "weight")

    def __init__(self, weight: float, prior: float | None = None) -> None:
        self.weight = weight
        self.count = 0  # values added so far
        self.value = 0.0 if prior is None else prior
        self._plain = prior is None

    def add(self, value: float) -> None:
        self.count += 1
        weight = self.weight
        if self._plain:
            if self.count * weight < 1.0:
                weight = 1.0 / self.count
            else:
                self._plain = False
        self.value += weight * (value - self.value)
