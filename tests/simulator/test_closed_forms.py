"""Queueing theory's closed forms against the simulator: each inside its 99 % confidence interval."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from tests.simulator.queueing import (
    Interval,
    constant_step,
    fleet_of,
    poisson,
    runs,
    single_server,
    sojourn,
    waiting,
)
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedReplicaSpec, Simulation

SIZES = tuple(range(5, 60, 5)) * 3 + tuple(range(80, 400, 40)) + (600, 800)  # skewed, CV² near 1.5
STEP = 0.02


def draw(rng: random.Random) -> int:
    return rng.choice(SIZES)


def moments(sizes: Sequence[int], step: float) -> tuple[float, float]:
    times = [size * step for size in sizes]
    return sum(times) / len(times), sum(time * time for time in times) / len(times)


def erlang_c(servers: int, load: float) -> float:
    """Mean wait over mean service of M/M/c."""
    offered = servers * load
    total = sum(offered**k / math.factorial(k) for k in range(servers))
    last = offered**servers / math.factorial(servers) / (1.0 - load)
    return last / (total + last) / (servers * (1.0 - load))


@pytest.mark.parametrize("load", [0.7])
def test_single_server_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    mean, square = moments(SIZES, STEP)
    rate = load / mean
    expected = rate * square / (2.0 * (1.0 - load))
    found = runs(
        fleet_of(single_server(STEP)), lambda seed: poisson(rate, 2000, draw, seed), 5, waiting(STEP)
    )
    assert found.holds(expected), f"{expected:.4g} is not in {found}"
    assert found.half < 0.5 * found.mean


def test_shortest_job_first_by_priority_in_the_gateway_queue() -> None:
    """Non-preemptive priorities, one class per length: W_k = R / ((1 - s_(k-1)) (1 - s_k))."""
    load = 0.7
    mean, square = moments(SIZES, STEP)
    rate = load / mean
    residual, below, expected = rate * square / 2.0, 0.0, 0.0
    for size in sorted(set(SIZES)):
        share = SIZES.count(size) / len(SIZES)
        above = below + rate * share * size * STEP
        expected += share * residual / ((1.0 - below) * (1.0 - above))
        below = above
    found = runs(
        fleet_of(single_server(STEP, concurrency=1)),
        lambda seed: poisson(rate, 2000, draw, seed, priority=lambda output: output),
        5,
        waiting(STEP),
    )
    assert found.holds(expected), f"{expected:.4g} is not in {found}"
    assert found.mean < 0.8 * rate * square / (2.0 * (1.0 - load))  # it helps


@pytest.mark.parametrize(("servers", "load"), [(4, 0.8)])
def test_one_queue_before_several_servers_waits_as_erlang_says(servers: int, load: float) -> None:
    step, tokens = 0.005, 200.0
    service = step * tokens

    def geometric(rng: random.Random) -> int:
        return int(math.log(1.0 - rng.random()) / math.log(1.0 - 1.0 / tokens)) + 1

    rate = servers * load / service
    fleet = fleet_of(*(single_server(step, concurrency=1),) * servers)
    found = runs(fleet, lambda seed: poisson(rate, 2000, geometric, seed), 5, waiting(step))
    expected = erlang_c(servers, load) * service
    assert found.holds(expected), f"{expected:.4g} is not in {found}"


@pytest.mark.parametrize(("rate", "expected"), [(5.0, 0.150), (8.0, 0.300)])
def test_prefill_alone_is_an_m_d_1_queue(rate: float, expected: float) -> None:
    """DistServe's TTFT = D + R D² / 2 (1 - R D) with D = 100 ms."""
    found = runs(
        fleet_of(single_server(0.1)),
        lambda seed: poisson(rate, 2000, lambda rng: 1, seed),
        5,
        lambda run: float(run.outcomes.ttft.mean()),
    )
    assert found.holds(expected), f"{expected:.4g} is not in {found}"


@pytest.mark.parametrize(
    ("servers", "load", "number", "seeds"),
    [
        (30, 0.7, 1200, 4),
        pytest.param(250, 0.7, 30_000, 4, marks=[pytest.mark.proof, pytest.mark.timeout(900)]),
        pytest.param(250, 0.9, 60_000, 4, marks=[pytest.mark.proof, pytest.mark.timeout(900)]),
    ],
)
def test_two_choices_beat_one(servers: int, load: float, number: int, seeds: int) -> None:
    """Power of two choices: T = sum of load^(2^i - 2) as servers grow many (Mitzenmacher); one choice is M/M/1."""
    step = 0.02

    def exponential(rng: random.Random) -> int:
        return int(math.log(1.0 - rng.random()) / math.log(1.0 - step)) + 1

    replicas = (single_server(step),) * servers

    def sojourns(policy: str) -> Interval:
        fleet = fleet_of(*replicas, policy=policy)
        return runs(fleet, lambda seed: poisson(servers * load, number, exponential, seed), seeds, sojourn)

    limit = sum(load ** (2**i - 2) for i in range(1, 12))
    two = sojourns("power_of_two")
    # Of finitely many servers, two draws find a shorter line a little less often: a bias of the order of 1 / N.
    assert abs(two.mean / limit - 1.0) < 1.0 / servers + two.half / limit, f"{limit:.4g} is not near {two}"
    if servers < 100:  # the fleet starts empty, and a single queue at 90 % takes long to fill
        one = sojourns("random")
        assert one.holds(1.0 / (1.0 - load)), f"{1.0 / (1.0 - load):.4g} is not in {one}"


def test_kv_in_use_is_little_s_law_in_tokens() -> None:
    """Mean tokens held = rate x step x E[s o + o (o - 1) / 2]: a prompt, then one token more with each step."""
    step, rate = 0.01, 4.0
    settings = SimulatedEngine(
        profile="vllm",
        kv_tokens=2_000_000,
        max_model_len=30_000,
        max_sequences=1000,
        enable_prefix_cache=False,
    ).settings()
    replica = SimulatedReplicaSpec(cost=constant_step(step), settings=settings)

    def prompt(rng: random.Random) -> int:
        return rng.randrange(100, 2000)

    # Arrivals wait for the iteration that is running; the prompt, whole in the next one, yields a token.
    spans = [(size, 1049.5) for size in SIZES]
    area = sum(s * o + o * (o - 1) / 2 for o, s in spans) / len(spans)
    found = runs(
        fleet_of(replica),
        lambda seed: poisson(rate, 800, draw, seed, prompts=prompt),
        5,
        lambda run: sum(work.context_seconds for work in run.work.values()) / run.seconds,
    )
    assert found.holds(rate * step * area), f"{rate * step * area:.5g} is not in {found}"


@pytest.mark.parametrize(("share", "stable"), [(0.8, True), (1.3, False)])
def test_waits_grow_beyond_the_kv_bound_and_not_below(share: float, stable: bool) -> None:
    """Nie, Si and Zhou: the fleet is overloaded if rate > pool / (step E[area]), stable somewhat below."""
    step, pool = 0.03, 40_000
    area = sum(300 * o + o * (o + 1) / 2 for o in SIZES) / len(SIZES)
    bound = pool / (step * area)
    settings = SimulatedEngine(
        profile="vllm", kv_tokens=pool, max_model_len=30_000, max_sequences=1000, enable_prefix_cache=False
    ).settings()
    fleet = fleet_of(SimulatedReplicaSpec(cost=constant_step(step), settings=settings, concurrency=1 << 30))
    number = 2500
    outcomes = (
        Simulation(fleet, poisson(share * bound, number, draw, 1, prompts=lambda rng: 300), 1).run().outcomes
    )
    last = sorted(zip(outcomes.arrived, outcomes.ttft, strict=True))[-number // 10 :]
    waited = sum(ttft for _, ttft in last) / len(last)
    # What the last tenth waits if requests are served at the rate of the bound.
    fluid = 0.95 * number * (1.0 / bound - 1.0 / (share * bound))
    if stable:
        assert waited < 0.05 * number / bound
    else:
        assert waited > 0.7 * fluid
