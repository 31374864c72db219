"""Signs of life of gateways while Redis's clock is set."""

from __future__ import annotations

import pytest

from weighbridge.fleet.peers.board import GONE_AFTER
from weighbridge.fleet.peers.signs import SignsOfLife

DAY = 86_400.0


@pytest.mark.parametrize("step", [10.0, 3600.0, DAY, 365 * DAY, -3600.0, -DAY])
def test_nobody_is_gone_because_a_clock_was_set(step: float) -> None:
    signs = SignsOfLife()
    signs.read({"a": 0.0, "b": 0.9, "dead": 9.0}, 1000.0, 50.0)
    there = {"a": 0.0} if abs(step) > 7200 or step < 0 else {"a": 0.0, "b": 1.0 + step, "dead": 10.0 + step}
    ages = signs.read(there, 1001.0 + step, 51.0)
    assert ages["b"] <= GONE_AFTER
    assert ages.get("dead", 1e9) > GONE_AFTER
    later = signs.read({"a": 0.0, "b": 0.4}, 1002.0 + step, 52.0)
    assert later["b"] == pytest.approx(0.4)
    assert signs.read({"a": 0.0, "b": 0.4}, 1010.0 + step, 60.0) == {"a": 0.0, "b": 0.4}


def test_who_gives_no_sign_behind_a_step_is_gone_soon() -> None:
    signs = SignsOfLife()
    signs.read({"a": 0.0, "b": 0.9}, 1000.0, 50.0)
    assert signs.read({"a": 0.0, "b": 3601.0}, 4601.0, 51.0)["b"] <= GONE_AFTER
    assert signs.read({"a": 0.0, "b": 3607.0}, 4607.0, 57.0)["b"] > GONE_AFTER


def test_without_a_step_ages_are_as_they_are_told() -> None:
    signs = SignsOfLife()
    for second in range(100):
        told = {"a": 0.0, "b": float(second)}
        assert signs.read(told, 1000.0 + second * 1.5, second * 1.5) == told
