"""Our counters beside prometheus_client's own: the same page for the same figures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from weighbridge.server.watching.series import Spread, Sums

BOUNDS = (0.005, 0.1, 1.0, 30.0)
LABELS = st.sampled_from([("a", "b"), ("a", 'q"uoted\\\n'), ("ü", "")])
VALUES = st.one_of(st.sampled_from(BOUNDS), st.floats(0.0, 100.0))


def lines(registry: CollectorRegistry) -> list[str]:
    """A page without the moments at which the library made its series."""
    page = generate_latest(registry).decode().splitlines()
    return [line for line in page if "_created" not in line]


@given(st.lists(st.tuples(LABELS, VALUES), max_size=30))
def test_the_page_is_the_library_s_own(seen: list[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    names = ("first", "second")
    sums, spread = Sums(ours, "w_sums", "Sums.", names), Spread(ours, "w_spread", "Spread.", names, BOUNDS)
    counter = Counter("w_sums", "Sums.", names, registry=theirs)
    histogram = Histogram("w_spread", "Spread.", names, buckets=BOUNDS, registry=theirs)
    for labels, value in seen:
        sums.add(labels, value)
        counter.labels(*labels).inc(value)
        spread.observe(labels, value)
        histogram.labels(*labels).observe(value)
    assert lines(ours) == lines(theirs)
