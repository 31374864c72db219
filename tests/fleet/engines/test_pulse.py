"""What clients see of a model, and how many replicas there should be by it."""

from __future__ import annotations

import pytest

from weighbridge.fleet.load.scaling import WINDOW, Measured, Pulse, Scaler, ScalingSettings

RULES = ScalingSettings(
    least=1, most=3, high=5, low=1, up_after=2, down_after=10, settle=5, ttft=2.0, itl=0.1
)


def test_the_interval_is_that_of_all_streams_together() -> None:
    pulse, produced = Pulse(), 0
    for step in range(200):  # 24 streams, each a token every 0.25 s, looked at every 0.05 s
        produced = 24 * step // 5
        pulse.sample(24, produced, step * 0.05)
    assert pulse.itl() == pytest.approx(0.25, rel=0.05)


def test_streams_without_a_token_are_not_quick() -> None:
    pulse = Pulse()
    for step in range(40):
        pulse.sample(4, 100, step * 0.05)
    interval = pulse.itl()
    assert interval is not None
    assert interval > 4.0


def test_what_is_long_ago_counts_no_more() -> None:
    pulse = Pulse()
    for step in range(10):
        pulse.first(9.0, step * 0.1)
    assert pulse.ttft(1.0) == 9.0
    assert pulse.ttft(2 * WINDOW) is None
    pulse.sample(8, 0, 0.0)
    pulse.sample(8, 1, 1.0)
    assert pulse.itl() == pytest.approx(8.0)
    pulse.sample(0, 1, 3 * WINDOW)
    assert pulse.itl() != pytest.approx(8.0)


def test_few_first_tokens_say_nothing() -> None:
    pulse = Pulse()
    for step in range(4):
        pulse.first(9.0, step * 0.1)
    assert pulse.ttft(1.0) is None


def decided(rules: ScalingSettings, replicas: int, measured: Measured, *, known: bool = True) -> int:
    scaler = Scaler(rules)
    work = 0.0 if known else None
    return sum(scaler.decide(replicas, work, work, now / 10, measured) for now in range(0, 45))


@pytest.mark.parametrize("measured", [Measured(ttft=2.5), Measured(itl=0.15), Measured(0.1, 0.15)])
@pytest.mark.parametrize("known", [True, False])
def test_clients_that_wait_bring_one_more_with_nothing_in_line(measured: Measured, known: bool) -> None:
    assert decided(RULES, 2, measured, known=known) == 1
    assert decided(RULES, 3, measured, known=known) == 0  # no more than the most
    unbounded = ScalingSettings(least=1, most=3, up_after=2, down_after=100)
    assert decided(unbounded, 2, measured, known=known) == 0


def test_none_is_stopped_where_the_others_would_be_slow() -> None:
    def stops(measured: Measured) -> bool:
        scaler = Scaler(RULES)
        return any(scaler.decide(2, 0.0, 0.0, float(now), measured) < 0 for now in range(30))

    assert stops(Measured())
    assert stops(Measured(0.5, 0.03))
    assert not stops(Measured(0.5, 0.06))  # twice as long is over 0.8 of the bound
    assert not stops(Measured(1.5, 0.01))
