"""A replica that becomes slower under way: noticed from what is open, not from what has ended."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.cost.step import StepCost
from weighbridge.cost.weight import OutputEstimate, Weight
from weighbridge.fleet.api import Arrival, Capacity
from weighbridge.fleet.load.in_flight import ExpectedFirst
from weighbridge.fleet.load.speed import OFF, Observed, SpeedChange, SpeedLearner
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies import make_policy
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.requests import SimulatedRequest, Span

COST = StepCost(0.006, 0.014, 6e-4, 2e-7, 6e-4)
calm = settings(max_examples=60, deadline=None)


# -- when a change is believed ---------------------------------------------------------------------------


@calm
@given(st.floats(-50.0, 50.0), st.floats(0.2, 1.0))
def test_one_observation_alone_is_a_stall_and_no_change(off: float, usual: float) -> None:
    assert SpeedChange().see(off, usual) == 0.0


@calm
@given(st.floats(0.7, 2.0), st.sampled_from([1.0, -1.0]), st.floats(0.2, 0.3))
def test_what_goes_on_is_believed_after_a_few_and_by_what_it_is(off: float, way: float, usual: float) -> None:
    change = SpeedChange()
    found = [change.see(way * off, usual) for _ in range(6)]
    assert any(found)
    assert next(one for one in found if one) == pytest.approx(way * off)


@calm
@given(st.lists(st.floats(-math.log(OFF), math.log(OFF)), max_size=200), st.floats(0.2, 1.0))
def test_what_is_off_by_less_is_no_change_however_long_it_lasts(offs: list[float], usual: float) -> None:
    change = SpeedChange()
    assert not any(change.see(off, usual) for off in offs)


@pytest.mark.parametrize("usual", [0.2, 0.4])
def test_usual_noise_is_seldom_taken_for_a_change(usual: float) -> None:
    rng, change = random.Random(1), SpeedChange()
    found = [change.see(rng.gauss(0.0, usual), usual) for _ in range(5000)]
    assert sum(map(bool, found)) <= 10  # one in five hundred


def learner(count: int = 40) -> SpeedLearner:
    rng, made = random.Random(3), SpeedLearner()
    for number in range(count):
        prompt, steps = rng.randint(20, 400), rng.randint(4, 16)
        if number % 2:
            made.observe(Observed(COST.prefill_seconds(prompt), 1.0, prompt, 1.0, 0.0))
        else:
            made.observe(Observed(steps * COST.decode_seconds(1, 0), 0.0, 0.0, steps, steps))
    return made


def test_more_work_than_may_have_been_is_needed_to_explain_a_time_before_it_says_anything() -> None:
    made = learner()
    steps = 8.0
    seen = Observed(4.0 * steps * COST.decode_seconds(1, 0), 0.0, 0.0, steps, steps)
    most = Observed(seen.seconds, 0.0, 10_000.0, steps, steps)
    for _ in range(20):
        made.bounded(seen, most)
    assert made.scaled == 0
    for _ in range(4):
        made.bounded(seen, seen)
    assert made.scaled == 1
    cost = made.cost()
    assert cost is not None
    assert cost.decode_seconds(1, 0) == pytest.approx(4.0 * COST.decode_seconds(1, 0), rel=0.2)


# -- one replica -----------------------------------------------------------------------------------------


def streaming(told: bool) -> tuple[ReplicaState, float]:
    """A replica that has served a while, with two streams and one prompt in line."""
    state, now = ReplicaState("r", Capacity(COST if told else None)), 0.0
    for number in range(24):
        now = served(state, f"w{number}", now)
    for number in range(2):
        send(state, f"q{number}", now)
        now += COST.prefill_seconds(100)
        state.tokens(f"q{number}", 1, now)
    send(state, "waits", now)
    return state, now


def send(state: ReplicaState, name: str, now: float) -> None:
    first = state.first_token_seconds(100, 0, now)
    forecast = None if first is None else ExpectedFirst(first, first)
    state.credit(
        Arrival(name, "m", Weight(100, 80, OutputEstimate(20.0, 20, 20)), now), 0, now, forecast=forecast
    )


def served(state: ReplicaState, name: str, now: float) -> float:
    send(state, name, now)
    now += COST.prefill_seconds(100)
    state.tokens(name, 1, now)
    for _ in range(20):
        now += COST.decode_seconds(1, 0)
        state.tokens(name, 1, now)
    state.release(name, now)
    return now


@pytest.mark.parametrize("told", [True, False])
def test_streams_that_come_slowly_tell_before_any_of_them_ends(told: bool) -> None:
    """Five tokens, each eight times as late as they should be, beside a prompt of which nothing is heard."""
    state, now = streaming(told)
    before = state.step_cost
    assert before is not None
    for _ in range(10):
        now += 8.0 * COST.decode_seconds(2, 0)
        for number in range(2):
            state.tokens(f"q{number}", 1, now)
    assert not state.believed
    assert state.step_cost is not None
    assert state.step_cost.decode_seconds(2, 0) > 3.0 * before.decode_seconds(2, 0)
    state.check_integrity()


@calm
@given(st.booleans(), st.lists(st.floats(0.0, 2.0), min_size=1, max_size=8))
def test_the_longer_nothing_comes_the_longer_it_is_expected_to_take(told: bool, waits: list[float]) -> None:
    """Whoever waits for a first token is evidence before it comes."""
    state, now = streaming(told)
    now += 2.0  # ten times what explains itself
    before = state.first_token_seconds(100, 0, now)
    assert before is not None
    for wait in waits:
        now += wait
        found = state.first_token_seconds(100, 0, now)
        assert found is not None
        assert found >= before * (1.0 - 1e-9)
        before = found


# -- a fleet ---------------------------------------------------------------------------------------------

CLIENTS, BEFORE, AFTER = 12, 60, 120


def after_the_change(policy: str, told: bool, seed: int) -> tuple[float, float]:
    """The slowest first token, but for one in a hundred, and the mean time to the end, of what was sent after the
    quicker of two replicas has become four times as slow. Twelve clients send one request after the other."""
    engine = SimulatedEngine(profile="vllm", max_sequences=8, enable_prefix_cache=False).settings()
    replicas = tuple(
        SimulatedReplicaSpec(cost=COST.scaled(slower), settings=engine, concurrency=256, tells_speed=told)
        for slower in (3.0, 1.5)
    )
    rng, ended, changed = random.Random(seed), 0, math.inf
    requests = [
        SimulatedRequest(f"q{n}", 0.0, (Span(n + 1, rng.randint(15, 60)),), 12, 48, answer=n)
        for n in range(BEFORE + AFTER)
    ]

    def observe(request: SimulatedRequest, outcome: object, now: float) -> None:
        nonlocal ended, changed
        ended += 1
        if ended == BEFORE:
            changed = now
            run.replicas["r1"].slow(4.0, now)
            run.clock.watch(run.replicas["r1"])

    run = Simulation(
        SimulatedFleet(replicas=replicas, prefix_index=False),
        requests,
        policy=make_policy(policy, random.Random(seed)),
        clients=CLIENTS,
        observe=observe,
    )
    outcomes = run.run().outcomes
    arrived = np.asarray(outcomes.arrived)
    after = arrived >= changed
    first, last = np.asarray(outcomes.first) - arrived, np.asarray(outcomes.finished) - arrived
    return float(np.quantile(first[after], 0.99)), float(last[after].mean())


@pytest.mark.parametrize("told", [True, False])
def test_where_one_becomes_slower_the_slowest_wait_half_as_long_as_where_requests_are_counted(
    told: bool,
) -> None:
    ratios = []
    for seed in range(3):
        (first, last), (other_first, other_last) = (
            after_the_change(policy, told, seed) for policy in ("weigh", "least_requests")
        )
        ratios.append((first / other_first, last / other_last))
    first, last = np.exp(np.log(ratios).mean(axis=0))
    assert first < 0.55
    assert last < 0.9
