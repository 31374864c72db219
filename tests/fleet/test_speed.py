"""What is learned of a replica's speed from what is seen of it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from weighbridge.cost import DEFAULT_STEP_COST
from weighbridge.fleet.load.own_load import is_plausible
from weighbridge.fleet.load.speed import Observed, SpeedLearner

seen = st.builds(
    Observed,
    seconds=st.floats(1e-4, 100.0),
    firsts=st.sampled_from([0.0, 1.0]),
    prompt_tokens=st.floats(0.0, 5000.0),
    steps=st.floats(1.0, 100.0),
    beside=st.floats(0.0, 500.0),
)
calm = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def learned(rows: list[Observed]) -> SpeedLearner:
    learner = SpeedLearner()
    for row in rows:
        learner.observe(row)
    return learner


def engine(rng: random.Random, token: float, step: float, beside: float, noise: float = 0.05) -> Observed:
    """One observation of an engine of that truth."""
    prompt, streams = rng.uniform(10, 1000), rng.randint(0, 4)
    first = rng.random() < 0.5
    steps = 1.0 if first else rng.randint(5, 30)
    prompts = prompt if first else 0.0
    seconds = token * prompts + step * steps + beside * steps * streams
    return Observed(seconds * math.exp(rng.gauss(0, noise)), float(first), prompts, steps, steps * streams)


@calm
@given(st.lists(seen, max_size=80))
def test_whatever_is_seen_what_is_learned_is_a_time(rows: list[Observed]) -> None:
    learner = learned(rows)
    cost = learner.cost()
    assert (cost is not None) == learner.known
    if cost is not None:
        assert all(0.0 <= value < math.inf for value in cost.as_dict().values())
        assert cost.decode_seconds(1, 0) > 0.0
        assert 0.0 <= learner.answer < math.inf
        assert 1.0 <= learner.error() < math.inf


@calm
@given(st.integers(0, 1000), st.floats(0.1, 10.0))
@example(648, 2.0)  # first tokens alone made a step nothing, and all else with it
def test_who_takes_so_many_times_as_long_is_predicted_to(seed: int, factor: float) -> None:
    """No unit is built in: a machine that is slower in everything is slower by that in every prediction."""
    rng = random.Random(seed)
    rows = [engine(rng, 1e-3, 0.05, 0.002, 0.3) for _ in range(40)]
    one = learned(rows)
    other = learned([replace(row, seconds=row.seconds * factor) for row in rows])
    work = (1.0, 300.0, 10.0, 20.0, 0.0)
    before, after = one.seconds(work), other.seconds(work)
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        assert after == pytest.approx(factor * before, rel=1e-2, abs=1e-8)


@calm
@given(st.integers(0, 1000), st.floats(1.0, 20.0), st.sampled_from([0.05, 0.5]))
def test_a_slower_last_observation_never_makes_it_look_faster(seed: int, factor: float, noise: float) -> None:
    rng = random.Random(seed)
    *rows, last = [engine(rng, 1e-3, 0.05, 0.002, noise) for _ in range(50)]
    quick, slow = learned([*rows, last]), learned([*rows, replace(last, seconds=last.seconds * factor)])
    before, after = quick.seconds(last.row), slow.seconds(last.row)
    assert before is not None
    assert after is not None
    assert after >= before * (1.0 - 1e-3)


@calm
@given(st.integers(0, 1000))
def test_the_order_of_equal_observations_matters_little(seed: int) -> None:
    rng = random.Random(seed)
    rows = [engine(rng, 1e-3, 0.05, 0.002) for _ in range(30)]
    shuffled = rows[:]
    rng.shuffle(shuffled)
    work = (1.0, 300.0, 10.0, 20.0, 0.0)
    before, after = learned(rows).seconds(work), learned(shuffled).seconds(work)
    assert before is not None
    assert after == pytest.approx(before, rel=0.2)


@pytest.mark.parametrize("token", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("step", [1e-3, 0.1])
def test_within_twenty_observations_it_is_known_whatever_the_machine(token: float, step: float) -> None:
    rng = random.Random(1)
    learner = learned([engine(rng, token, step, 0.05 * step) for _ in range(20)])
    for work in ((1.0, 50.0, 1.0, 0.0, 0.0), (1.0, 900.0, 1.0, 2.0, 0.0), (0.0, 0.0, 20.0, 40.0, 0.0)):
        truth = token * work[1] + step * work[2] + 0.05 * step * work[3]
        assert learner.seconds(work) == pytest.approx(truth, rel=0.3)


@pytest.mark.parametrize("factor", [3.0, 0.4])
def test_a_change_is_noticed_within_ten_observations(factor: float) -> None:
    rng = random.Random(2)
    rows = [engine(rng, 1e-3, 0.05, 0.002) for _ in range(200)]
    rows += [
        replace(row, seconds=row.seconds * factor)
        for row in [engine(rng, 1e-3, 0.05, 0.002) for _ in range(20)]
    ]
    learner = learned(rows)
    assert learner.scaled
    truth = factor * (0.3 + 0.5 + 0.04)
    assert learner.seconds((1.0, 300.0, 10.0, 20.0, 0.0)) == pytest.approx(truth, rel=0.25)


def test_what_observations_do_not_tell_apart_keeps_its_proportion() -> None:
    """Streams alone say nothing of prompts: a prompt token stays the hundredth of a step that it is likely to be."""
    learner = learned([Observed(1.0, 0.0, 0.0, 10.0, 10.0) for _ in range(50)])
    assert not learner.known
    learner.observe(Observed(0.1, 1.0, 1.0, 1.0, 0.0))
    cost = learner.cost()
    assert cost is not None
    assert 0.002 < cost.per_token / cost.overhead < 0.05


def test_long_prompts_are_predicted_by_what_their_tokens_attend_to() -> None:
    """A line through prompts of all lengths would predict the longest at half."""
    rng = random.Random(4)
    token, step, pair = 1e-4, 0.05, 5e-7
    rows = []
    for _ in range(60):
        prompt = 1000.0 * rng.lognormvariate(0.0, 0.6)
        pairs = 0.5 * prompt * prompt
        seconds = (step + token * prompt + pair * pairs) * rng.uniform(0.95, 1.05)
        rows += [Observed(seconds, 1.0, prompt, 1.0, 0.0, pairs), Observed(0.5, 0.0, 0.0, 10.0, 0.0)]
    cost = learned(rows).cost()
    assert cost is not None
    truth = token * 4000 + 0.5 * pair * 4000 * 4000
    assert cost.prefill_work(4000) == pytest.approx(truth, rel=0.15)


def test_one_stall_is_no_speed() -> None:
    rng = random.Random(3)
    rows = [engine(rng, 1e-3, 0.05, 0.002) for _ in range(100)]
    work = (1.0, 300.0, 1.0, 2.0, 0.0)
    before = learned(rows).seconds(work)
    after = learned([*rows, Observed(60.0, 1.0, 300.0, 1.0, 2.0)]).seconds(work)
    assert before is not None
    assert after is not None
    assert after < 1.5 * before


def test_a_cost_without_a_price_of_prompts_is_none() -> None:
    """As a fit comes out that saw no prompt larger than another."""
    assert is_plausible(DEFAULT_STEP_COST)
    assert not is_plausible(replace(DEFAULT_STEP_COST, per_token=0.0))
