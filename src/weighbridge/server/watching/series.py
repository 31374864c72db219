"""Counters and histograms that a loop can afford in each request.

prometheus_client's own take a lock and copy for every figure; these add up in plain dictionaries, on the one thread
that counts, and become its families when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Sums(Collector):  # type: ignore[misc]
    """A counter with labels."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._values: dict[Labels, float] = {}
        registry.register(self)

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        try:
            self._values[labels] += amount
        except KeyError:
            self._values[labels] = amount

    def collect(self) -> Iterator[Any]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Spread(Collector):  # type: ignore[misc]
    """A histogram with labels; a value counts in the first bucket whose bound is not below it."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._counts: dict[Labels, list[float]] = {}  # by bucket, and last the sum of all values
        registry.register(self)

    def observe(self, labels: Labels, value: float) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1) + [0.0]
        counts[bisect_left(self._bounds, value)] += 1
        counts[-1] += value

    def collect(self) -> Iterator[Any]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, counts in self._counts.items():
            so_far, buckets = 0.0, []
            for bound, count in zip((*self._bounds, float("inf")), counts[:-1], strict=True):
                so_far += count
                buckets.append((floatToGoString(bound), so_far))
            family.add_metric(labels, buckets, counts[-1])
        yield family
