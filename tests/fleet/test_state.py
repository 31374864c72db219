"""Load of a replica: conserved through any history, credited first, corrected by reports that age."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.arrivals import COST, arrival, replica
from weighbridge.fleet.api import Report
from weighbridge.fleet.prefix_index import PrefixIndex

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["credit", "silent", "first", "tokens", "release", "report", "wait"]),
        st.integers(0, 5),
        st.integers(1, 3000),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_counter_is_conserved_and_returns_to_zero(steps: list[tuple[str, int, int]]) -> None:
    """ray #61755, sglang #15473: counters that some path forgets to decrement."""
    state, now = replica(index=PrefixIndex()), 0.0
    for kind, number, amount in steps:
        now += 0.01
        name = f"q{number}"
        if kind in ("credit", "silent") and name not in state:
            new = arrival(name, amount, choices=1 + number % 2, chain=(bytes([number]) * 32,))
            state.credit(new, min(16, amount - 1), now, streamed=kind == "credit")
        elif kind == "first":
            state.first_token(name, now)
        elif kind == "tokens":
            state.tokens(name, amount % 50, now)
        elif kind == "release":
            state.release(name, now)
        elif kind == "report":
            state.report(Report(now, number, number, amount, amount, kv_tokens_used=amount))
        else:
            now += amount / 1000
            state.advance(now)
        state.check_integrity()
    for number in range(6):
        state.release(f"q{number}", now)
        assert not state.release(f"q{number}", now)
    state.check_integrity()
    zero = (state.sequences, state.decoding, state.context_tokens, state.kv_tokens)
    assert zero == (0, 0, 0, 0)
    assert (state.uncomputed_tokens, state.prefill_seconds, state.remaining_output) == (0.0, 0.0, 0.0)


def test_crediting_twice_is_an_error() -> None:
    state = replica()
    state.credit(arrival("q"), 0, 0.0)
    with pytest.raises(ValueError, match="in flight"):
        state.credit(arrival("q"), 0, 0.0)


def test_load_counts_before_anything_is_heard() -> None:
    """smg #1714: load was counted only after the response had started."""
    state = replica()
    before = state.first_token_seconds(100, 0, 0.0)
    state.credit(arrival("q", 30_000), 0, 0.0)
    assert state.first_token_seconds(100, 0, 0.0) > before + 30_000 * COST.per_token


def test_load_is_drawn_down_while_tokens_stream() -> None:
    """llm-d-router #1724."""
    state = replica()
    state.credit(arrival("q", 100, output=50.0), 0, 0.0)
    state.tokens("q", 20, 0.1)
    assert state.remaining_output == pytest.approx(30.0)
    assert state.uncomputed_tokens == 0.0
    assert state.kv_tokens == 120


def test_a_silent_replica_is_believed_to_make_progress() -> None:
    state = replica()
    state.credit(arrival("q", 2000), 0, 0.0)
    state.advance(0.05)
    assert 500 < state.uncomputed_tokens < 1500
    state.advance(10.0)
    assert state.uncomputed_tokens == pytest.approx(0.0, abs=1e-6)


def test_an_answer_that_does_not_stream_draws_down_by_itself() -> None:
    state = replica()
    state.credit(arrival("q", 1000, output=50.0), 0, 0.0, streamed=False)
    state.advance(1.0)
    state.advance(1.2)
    assert state.decoding == 1
    assert 1.0 <= state.remaining_output < 50.0


def test_idle_prediction_is_the_step_cost() -> None:
    state = replica()
    assert state.first_token_seconds(1000, 0, 0.0) == pytest.approx(COST.seconds(1000, 1, 500_000), rel=1e-3)


def test_others_load_is_the_report_less_our_own_and_ages_out() -> None:
    """smg #1683: stale loads; smg #1621: one gateway of N sees 1/N."""
    state = replica()
    state.credit(arrival("q", 400, output=0.0), 0, 0.0)
    state.report(Report(0.0, queued_requests=3, running_requests=2, queued_tokens=1400))
    assert state.total_requests(0.0) == 5
    assert state.total_uncomputed(0.0) == pytest.approx(1400)
    assert state.total_requests(60.0) == pytest.approx(1.0, abs=1e-9)


def test_a_replica_that_claims_to_be_idle_keeps_what_we_sent() -> None:
    state = replica()
    state.credit(arrival("q", 400), 0, 0.0)
    state.report(Report(0.0))
    assert state.total_uncomputed(0.0) == 400


def test_our_own_drain_outlives_its_reports() -> None:
    """Health or load reports must not undo what was decided (vllm router #216)."""
    state = replica()
    state.draining = True
    state.report(Report(0.0, draining=False))
    assert state.draining
    assert not state.accepts(arrival("q"), 0.0)


def test_full_means_no_seat_or_no_memory() -> None:
    state = replica(kv_tokens=1000)
    assert state.accepts(arrival("a", 600, max_tokens=100), 0.0)
    state.credit(arrival("a", 600, max_tokens=100), 0, 0.0)
    assert not state.accepts(arrival("b", 600, max_tokens=100), 0.0)
    assert not state.fits(arrival("c", 600, max_tokens=500))


def test_a_failed_prompt_leaves_no_belief_in_its_cache() -> None:
    index = PrefixIndex()
    state = replica(index=index)
    request = arrival("q", 100, chain=(b"1" * 32, b"2" * 32))
    state.credit(request, 0, 0.0)
    assert state.cached_tokens(request) == 32
    state.release("q", 1.0)
    assert state.cached_tokens(request) == 0
