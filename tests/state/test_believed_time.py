"""A clock that is set is doubted for as long as it stood before, an hour at most; time goes on meanwhile."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.state import believed_time as module
from weighbridge.state.believed_time import CLOSE, LONGEST_DOUBT, BelievedTime

START = 1_800_000_000.0
HOUR, DAY, YEAR = 3600.0, 86_400.0, 365 * 86_400.0


@pytest.mark.parametrize("step", [HOUR, DAY, YEAR, 50 * YEAR, -HOUR, -DAY, -YEAR, -50 * YEAR])
def test_a_step_that_is_taken_back_within_the_hour_is_not_noticed(step: float) -> None:
    clock = BelievedTime()
    for steady in range(0, 20_000, 10):
        wrong = step if 10_000 <= steady < 10_000 + LONGEST_DOUBT - 10 else 0.0
        assert clock.at(START + steady + wrong, steady) == START + steady
        assert bool(clock.step) == bool(wrong)


@pytest.mark.parametrize("step", [HOUR, YEAR, -HOUR, -YEAR])
def test_a_step_that_stays_is_believed_after_an_hour(step: float) -> None:
    clock = BelievedTime()
    clock.at(START, 0.0)
    assert clock.at(START + 7200.0 + step, 7200.0) == START + 7200.0
    late = 7200.0 + LONGEST_DOUBT
    assert clock.at(START + late - 1 + step, late - 1) == START + late - 1
    assert clock.at(START + late + step, late) == START + late + step
    assert not clock.step


def test_a_clock_that_is_put_right_soon_after_the_start_is_believed_as_soon_again() -> None:
    clock = BelievedTime()
    clock.at(100.0, 0.0)  # of a machine whose clock forgets the date
    assert clock.at(START, 20.0) == 120.0
    assert clock.at(START + 19.0, 39.0) == 139.0
    assert clock.at(START + 20.0, 40.0) == START + 20.0


@given(st.lists(st.tuples(st.floats(0.0, 600.0), st.floats(-CLOSE / 2, CLOSE / 2)), max_size=60))
def test_small_corrections_are_followed_at_once(steps: list[tuple[float, float]]) -> None:
    clock, steady, ahead = BelievedTime(), 0.0, 0.0
    clock.at(START, 0.0)
    for passed, by in steps:
        steady, ahead = steady + passed, ahead + by
        assert clock.at(START + steady + ahead, steady) == START + steady + ahead


@given(
    st.lists(
        st.tuples(st.floats(0.0, 3000.0), st.sampled_from([0.0, HOUR, -HOUR, DAY, YEAR, -YEAR])), max_size=60
    )
)
def test_whatever_a_clock_does_time_is_one_that_it_told_and_then_its_own(
    steps: list[tuple[float, float]],
) -> None:
    clock, steady, last, told = BelievedTime(), 0.0, 0.0, {0.0}
    clock.at(START, 0.0)
    for passed, ahead in steps:
        steady, last = steady + passed, ahead
        told.add(ahead)
        now = clock.at(START + steady + ahead, steady)
        assert any(abs(now - (START + steady + one)) < 1e-3 for one in told)
    late = steady + LONGEST_DOUBT + 1.0
    assert clock.at(START + late + last, late) == START + late + last


def test_the_clock_of_the_process_doubts_a_step_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_clock", module._Clock())
    monkeypatch.setattr("weighbridge.state.believed_time.log.propagate", True)
    monkeypatch.setattr("weighbridge.state.believed_time.log.parent.propagate", True)
    real, steady = time.time, module._steady
    monkeypatch.setattr(module, "_steady", lambda: steady() + 5000.0)  # it has run for long
    monkeypatch.setattr(module._clock._believed, "_ahead", real() - steady() - 5000.0)
    monkeypatch.setattr(module._clock._believed, "_since", steady())
    monkeypatch.setattr(time, "time", lambda: real() + YEAR)
    assert abs(module.believed_time() - real()) < 5.0
    assert abs(module.believed_time() - real()) < 5.0
    assert [
        one.getMessage() for one in caplog.records if "set forward by 31536000 s" in one.getMessage()
    ] != []
    assert len(caplog.records) == 1
