"""Load of a replica: conserved through any history, credited first, corrected by reports that age."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.arrivals import COST, arrival, replica
from weighbridge.fleet.api import Capacity, Report
from weighbridge.fleet.load.in_flight import UNPROVEN
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.state import ReplicaState

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["credit", "silent", "first", "tokens", "release", "report", "wait"]),
        st.integers(0, 5),
        st.integers(1, 3000),
    ),
    max_size=60,
)


@given(STEPS, st.booleans())
def test_every_counter_is_conserved_and_returns_to_zero(
    steps: list[tuple[str, int, int]], known: bool
) -> None:
    """ray #61755, sglang #15473: counters that some path forgets to decrement. A speed may be told in between."""
    capacity = Capacity(COST if known else None, kv_tokens=100_000)
    state, now = ReplicaState("r", capacity, PrefixIndex()), 0.0
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
            cost = COST.scaled(2.0) if number > 2 else None
            state.report(Report(now, number, number, amount, amount, amount, step_cost=cost))
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
    assert state.uncomputed_tokens == pytest.approx(UNPROVEN * 2000)  # late is not done
    state.first_token("q", 10.0)
    assert state.uncomputed_tokens == 0.0


def test_a_replica_slower_than_its_step_cost_says_is_found_out() -> None:
    """An engine that spreads prompts over more iterations than thought: predictions follow what it does."""
    state, now = replica(), 0.0
    before = state.first_token_seconds(4000, 0, now)
    for number in range(200):
        state.credit(arrival(f"q{number}", 4000), 0, now)
        now += 2.0 * before
        state.first_token(f"q{number}", now)
        state.release(f"q{number}", now)
    assert state.first_token_seconds(4000, 0, now) == pytest.approx(2.0 * before, rel=0.1)


def test_a_line_that_others_are_in_or_that_was_left_teaches_no_pace() -> None:
    state = replica()
    for number, disturb in enumerate(("leave", "others")):
        state.credit(arrival("a", 4000), 0, 100.0 * number)
        state.credit(arrival("b", 4000), 0, 100.0 * number)
        if disturb == "leave":
            state.release("a", 100.0 * number + 1.0)
        else:
            state.report(Report(100.0 * number + 1.0, queued_requests=9, queued_tokens=30_000))
        state.first_token("b", 100.0 * number + 50.0)
        state.release("a", 100.0 * number + 51.0)
        state.release("b", 100.0 * number + 51.0)
    assert state.pace.stretch == 1.0


def test_the_last_token_comes_after_an_iteration_for_each() -> None:
    state = replica()
    expected = 0.5 + 100 * COST.seconds(1, 1, 250)
    assert state.last_token_seconds(0.5, 200, 101.0) == pytest.approx(expected, rel=1e-3)
    slow = replica(slower=2.0)
    assert slow.last_token_seconds(0.5, 200, 101.0) > state.last_token_seconds(0.5, 200, 101.0)


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


def test_what_a_replica_tells_of_its_context_is_taken_over_and_kept() -> None:
    state = replica()
    state.report(Report(0.0, max_model_len=4096))
    state.report(Report(1.0))
    assert state.capacity.max_model_len == 4096
    assert state.fits(arrival("q", 1000))
    assert not state.fits(arrival("q", 4096))


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


@given(st.integers(1, 9000), st.integers(1, 90), st.integers(0, 300), st.none() | st.integers(1, 9000))
def test_an_idle_replica_accepts_what_fits_and_nothing_else(
    prompt: int, texts: int, most: int, context: int | None
) -> None:
    """Else a request waits for ever: what can never be sent is refused at the door by `fits`."""
    state = replica(kv_tokens=5000)
    state.report(Report(0.0, max_model_len=context))
    one = arrival("q", prompt, max_tokens=most)
    one = replace(one, weight=replace(one.weight, prompts=texts))
    assert state.accepts(one, 0.0) == state.fits(one)
    assert state.fits(one) == (prompt // texts + most <= min(5000, context or 5000))


def test_a_failed_prompt_leaves_no_belief_in_its_cache() -> None:
    index = PrefixIndex()
    state = replica(index=index)
    request = arrival("q", 100, chain=(b"1" * 32, b"2" * 32))
    state.credit(request, 0, 0.0)
    assert state.cached_tokens(request) == 32
    state.release("q", 1.0)
    assert state.cached_tokens(request) == 0


def test_the_next_turn_finds_the_answer_too() -> None:
    """A conversation that goes on sends the answer back; a replica that gave it holds its blocks as well."""
    index = PrefixIndex()
    state = replica(index=index)
    chain = tuple(bytes([n]) * 32 for n in range(12))
    turn = arrival("q", 100, chain=chain[:6])
    state.credit(turn, 0, 0.0)
    state.tokens("q", 61, 1.0)
    state.release("q", 2.0)
    assert (
        state.cached_tokens(arrival("next", 192, chain=chain)) == 160
    )  # 96 of the prompt's, 64 of the answer's
    assert state.cached_tokens(arrival("other", 90, chain=chain[:5])) == 80


def test_of_a_replica_of_unknown_speed_nothing_is_predicted_but_all_is_counted() -> None:
    state = ReplicaState("r", Capacity(kv_tokens=100_000))
    state.credit(arrival("a", 1000, output=50.0), 0, 0.0)
    state.credit(arrival("b", 500, output=50.0), 0, 0.0, streamed=False)
    state.advance(60.0)
    assert not state.speed_known
    assert state.first_token_seconds(100, 0, 60.0) is None
    assert state.last_token_seconds(None, 100, 50.0) is None
    assert state.line_seconds(60.0) is None
    assert (state.uncomputed_tokens, state.outstanding_tokens) == (
        1500,
        1600,
    )  # nothing says they were computed
    state.tokens("a", 10, 61.0)
    assert (state.decoding, state.uncomputed_tokens, state.outstanding_tokens) == (1, 500, 590)
    state.check_integrity()
    state.release("a", 62.0)
    state.release("b", 62.0)
    assert (state.requests, state.outstanding_tokens) == (0, 0.0)
    state.check_integrity()


def test_once_a_speed_is_told_what_is_in_line_counts_in_seconds_too() -> None:
    state, told = ReplicaState("r", Capacity()), replica()
    for one in (state, told):
        one.credit(arrival("a", 8000), 0, 10.0)
        one.credit(arrival("b", 2000), 500, 10.0)
    state.report(Report(10.0, step_cost=COST, kv_tokens_total=100_000))
    assert state.prefill_seconds == pytest.approx(told.prefill_seconds)
    assert state.first_token_seconds(700, 0, 10.0) == pytest.approx(told.first_token_seconds(700, 0, 10.0))
    state.check_integrity()
    state.advance(10.2)
    assert state.uncomputed_tokens < 9500
    state.first_token("a", 10.6)
    state.release("a", 11.0)
    state.release("b", 11.0)
    state.check_integrity()


#: A mixture: its experts are half of what a decode step takes.
MIXTURE = replace(
    COST,
    per_expert=2e-5,
    experts=1024.0,
    expert_layers=16.0,
    expert_top_k=8.0,
    expert_skew=0.5,
    expert_overlap=0.1,
)


@pytest.mark.parametrize("streams", [1, 16, 40])
def test_a_mixture_is_predicted_as_the_scheduler_predicts_it(streams: int) -> None:
    """The balancer's own copies of the formula forgot the experts: 15.6 ms a step where the step cost says 30."""
    state = ReplicaState("r", Capacity(MIXTURE))
    for number in range(streams):
        state.credit(arrival(f"q{number}", 200), 0, 0.0)
        state.first_token(f"q{number}", 0.0)
    step = MIXTURE.seconds(streams, streams, 200 * streams)
    assert step > 1.2 * COST.seconds(streams, streams, 200 * streams)
    first, last = state.first_token_seconds(1000, 0, 0.0), state.last_token_seconds(1.0, 200, 101.0)
    assert last == pytest.approx(1.0 + 100 * MIXTURE.seconds(streams + 1, streams + 1, 200 * streams + 250))
    whole = MIXTURE.seconds(1000 + streams, 1 + streams, 200 * streams, 500_000)
    assert first == pytest.approx(whole + 0.5 * step, rel=0.02)


def test_the_prompts_of_a_mixture_advance_as_its_iterations_allow() -> None:
    dense, mixture = replica(), ReplicaState("r", Capacity(MIXTURE))
    for state in (dense, mixture):
        state.credit(arrival("q", 8000), 0, 0.0)
        state.advance(0.2)
    iteration = {
        cost: cost.seconds(2048, 0, 0) for cost in (COST, MIXTURE)
    }  # full of prompts, nothing beside
    advanced = [8000 - state.uncomputed_tokens for state in (dense, mixture)]
    assert advanced[1] / advanced[0] == pytest.approx(iteration[COST] / iteration[MIXTURE], rel=0.01)
    assert advanced[1] < 0.9 * advanced[0]
