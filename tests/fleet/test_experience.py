"""What a replica is seen to do: how many it serves at a time, and whether what it tells is gone by."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.cost.step import StepCost
from weighbridge.cost.weight import OutputEstimate, Weight
from weighbridge.fleet.api import Arrival, Capacity, Report
from weighbridge.fleet.load.experience import ServedAtOnce, ToldSpeed
from weighbridge.fleet.load.in_flight import ExpectedFirst
from weighbridge.fleet.load.speed import Observed
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.requests import SimulatedRequest, Span

COST = StepCost(overhead=0.01, memory=0.03, per_token=1e-3, per_context_token=0.0, per_sequence=1e-3)
calm = settings(max_examples=60, deadline=None)


def observed(rng: random.Random, cost: StepCost) -> Observed:
    """A stream beside others, with no prompt, as an engine of that cost takes."""
    steps, streams = rng.randint(4, 30), rng.randint(1, 6)
    seconds = steps * cost.decode_seconds(streams, 0) * rng.uniform(0.95, 1.05)
    return Observed(seconds, 0.0, 0.0, steps, steps * streams)


def sent(state: ReplicaState, name: str, now: float, output: int = 40, prompt: int = 100) -> None:
    weight = Weight(prompt, 4 * output, OutputEstimate(float(output), output, output))
    first = state.first_token_seconds(prompt, 0, now)
    assert first is not None
    state.credit(Arrival(name, "m", weight, now), 0, now, forecast=ExpectedFirst(first, first))


def test_one_wait_for_a_seat_says_how_many_there_are() -> None:
    seats = ServedAtOnce()
    for streams in (1, 2, 3):
        seats.first_token(streams, waited=False)
    assert (seats.count, seats.expected) == (None, 4)
    seats.first_token(3, waited=True)
    assert (seats.count, seats.expected) == (3, 3)
    seats.first_token(4, waited=False)  # there are more after all
    assert (seats.count, seats.expected) == (None, 5)


def test_where_many_are_served_one_wait_says_little() -> None:
    seats = ServedAtOnce()
    seats.first_token(40, waited=False)
    for _ in range(4):
        seats.first_token(40, waited=True)
        assert seats.count is None
    seats.first_token(40, waited=True)
    assert seats.count == 40


def test_fewer_seats_than_there_once_were_are_noticed() -> None:
    seats = ServedAtOnce()
    seats.first_token(8, waited=True)
    for _ in range(32):
        seats.first_token(3, waited=True)
    assert seats.count == 3


def test_how_many_slots_it_says_it_has_is_not_learned_otherwise() -> None:
    """llama-server on a busy machine: of its four two were believed, from first tokens late after an end."""
    seats = ServedAtOnce()
    seats.tell(4)
    for _ in range(40):
        seats.first_token(2, waited=True)
        assert (seats.count, seats.expected) == (4, 4)
    seats.tell(None)
    seats.first_token(2, waited=True)
    assert seats.count == 2


@calm
@given(st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=200))
def test_never_fewer_seats_than_one_and_never_more_than_were_seen(seen: list[tuple[int, bool]]) -> None:
    seats = ServedAtOnce()
    for streams, waited in seen:
        seats.first_token(streams, waited=waited)
        assert seats.count is None or 1 <= seats.count <= max(number for number, _ in seen)
        assert seats.expected >= 1


@pytest.mark.parametrize("factor", [0.05, 0.2, 5.0, 20.0])
def test_a_cost_that_is_told_wrong_is_doubted_after_a_few_streams(factor: float) -> None:
    rng, trust = random.Random(1), ToldSpeed()
    for _ in range(6 if factor < 1.0 else 2):
        trust.hold(observed(rng, COST), COST.scaled(factor))
    assert trust.doubted


@calm
@given(st.integers(0, 1000), st.floats(0.7, 1.4))
def test_a_cost_that_is_told_about_right_is_never_doubted(seed: int, factor: float) -> None:
    rng, trust = random.Random(seed), ToldSpeed()
    for _ in range(40):
        trust.hold(observed(rng, COST.scaled(factor)), COST)
    assert not trust.doubted


def test_a_stall_is_no_reason_to_doubt() -> None:
    rng, trust = random.Random(2), ToldSpeed()
    for number in range(30):
        seen = observed(rng, COST)
        trust.hold(replace(seen, seconds=60.0) if number == 20 else seen, COST)
    assert not trust.doubted


def busy(seats: int) -> tuple[ReplicaState, float]:
    """A replica that tells its cost, with as many streams as it has seats and one that waits for a seat."""
    state, now = ReplicaState("r", Capacity(COST)), 0.0
    for number in range(seats):
        sent(state, f"q{number}", now)
        now += COST.prefill_seconds(100)
        state.tokens(f"q{number}", 1, now)
    sent(state, "waits", now)
    return state, now


def test_who_lets_one_wait_for_long_is_sent_no_more_until_somebody_ends() -> None:
    state, now = busy(3)
    before = state.first_token_seconds(100, 0, now)
    later = now + 2.0
    for number in range(3):
        state.tokens(f"q{number}", 10, later)
    after = state.first_token_seconds(100, 0, later)
    assert before is not None
    assert after is not None
    assert after > before + 0.3  # about 30 steps of three streams, two of which have to end


def test_waiting_for_a_seat_is_not_taken_for_slow_prompts() -> None:
    state, now = busy(3)
    for number in range(3):
        state.tokens(f"q{number}", 39, now + 3.0)
    assert state.release("q0", now + 3.0)
    state.tokens("waits", 1, now + 3.0 + COST.prefill_seconds(100))
    assert state.experience.seats.count == 3
    assert state.stretch == 1.0
    assert state.believed


@settings(calm)
@given(st.integers(1, 6), st.floats(0.0, 0.05), st.floats(0.1, 60.0))
def test_who_waited_for_a_seat_is_not_overdue_the_moment_there_is_one(
    seats: int, after: float, waits: float
) -> None:
    """Its wait began long ago, its prompt with the end that gave it the seat; and a prompt of next to no work takes an
    iteration all the same. A replica of six was expected to take 6e8 seconds for want of both."""
    cost = replace(COST, per_token=1e-9)
    state, now = ReplicaState("r", Capacity(cost, max_sequences=100)), 0.0
    state.experience.seats.tell(seats)
    for number in range(seats):
        sent(state, f"q{number}", now)
        now += cost.prefill_seconds(100)
        state.tokens(f"q{number}", 1, now)
    sent(state, "first in line", now)
    sent(state, "second in line", now)
    now += waits
    for number in range(seats):
        state.tokens(f"q{number}", 10, now)
    assert state.release("q0", now)
    expected = state.first_token_seconds(100, 0, now + after)
    assert expected is not None
    assert expected < 40 * 3 * cost.decode_seconds(seats, 0) + 1.0  # three whole answers, with room


def test_a_burst_does_not_drown_one_that_tells_its_speed_but_not_its_seats() -> None:
    """Prompts so short that their line takes no time: until a first token was late, all of them went there."""
    state, now = ReplicaState("two seats", Capacity(COST, max_sequences=100)), 0.0
    for number in range(2):
        sent(state, f"q{number}", now)
        now += COST.prefill_seconds(100)
        state.tokens(f"q{number}", 1, now)
    expected = []
    for number in range(6):
        first = state.first_token_seconds(2, 0, now)
        assert first is not None
        expected.append(first)
        sent(state, f"burst {number}", now, prompt=2)
    assert expected[1] < 0.2  # four are taken for granted
    assert expected[2] > 0.2  # then somebody has to end
    assert expected[5] > 2.0 * expected[2]


def test_those_of_other_gateways_take_no_seat_that_only_ours_were_counted_in() -> None:
    state = ReplicaState("shared", Capacity(COST, max_sequences=100))
    now = COST.prefill_seconds(100)
    sent(state, "ours", 0.0)
    state.tokens("ours", 1, now)
    state.report(Report(now, queued_requests=0, running_requests=30))
    first = state.first_token_seconds(100, 0, now)
    assert first is not None
    assert first < 4.0 * COST.prefill_seconds(100)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_within_twenty_requests_the_speeds_of_a_fleet_are_known(seed: int) -> None:
    """Nobody tells a speed; replicas are 1, 2 and 4 times as slow, and serve four at a time."""
    settings = SimulatedEngine(profile="vllm", max_sequences=4, enable_prefix_cache=False).settings()
    fleet = SimulatedFleet(
        replicas=tuple(
            SimulatedReplicaSpec(
                cost=COST.scaled(slower), settings=settings, concurrency=256, tells_speed=False
            )
            for slower in (1.0, 2.0, 4.0)
        ),
        prefix_index=False,
    )
    rng = random.Random(seed)
    requests = [
        SimulatedRequest(f"q{n}", 0.5 * n, (Span(n + 1, rng.randint(50, 500)),), 20, 80, answer=n)
        for n in range(20)
    ]
    run = Simulation(fleet, requests)
    run.run()
    for name, slower in (("r0", 1.0), ("r1", 2.0), ("r2", 4.0)):
        learned, truth = run.gateway.states[name].step_cost, COST.scaled(slower)
        assert learned is not None
        assert learned.decode_seconds(2, 0) == pytest.approx(truth.decode_seconds(2, 0), rel=0.3)
        assert learned.prefill_seconds(300) == pytest.approx(truth.prefill_seconds(300), rel=0.3)
