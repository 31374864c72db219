"""Policies: pure, blind to the truth, indifferent to order; weigh beats the others where it should."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.arrivals import COST, arrival, replica
from tests.fleet.small_fleet import Job, SmallFleet
from weighbridge.errors import BadInput
from weighbridge.fleet.api import Capacity, Report
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies import POLICIES, make_policy
from weighbridge.fleet.policies.explain import explain

FIXED = ("least_requests", "least_tokens", "new_prefill_x_batch", "prefix_affinity", "weigh")


def mixed_jobs(seed: int, number: int, rate: float) -> list[Job]:
    rng, now, jobs = random.Random(seed), 0.0, []
    for index in range(number):
        now += rng.expovariate(rate)
        prompt = int(min(max(rng.lognormvariate(6.3, 1.2), 8), 12_000))
        output = int(min(max(rng.lognormvariate(4.5, 0.9), 1), 1000))
        jobs.append(Job(replace(arrival(f"q{index}", prompt, 130.0, max_tokens=2000), arrived=now), output))
    return jobs


def run(policy: str, jobs: list[Job], gateways: int = 1, period: float = 0.0) -> list[Job]:
    capacities = [Capacity(COST.scaled(2.0 if i < 2 else 1.0), kv_tokens=200_000) for i in range(8)]
    policies = [make_policy(policy, random.Random(seed)) for seed in range(gateways)]
    outcome = SmallFleet(capacities, policies, itl_target=0.15, period=period).run(jobs)
    for state in outcome.states:
        state.check_integrity()
        assert state.requests == 0
    assert len(outcome.jobs) == len(jobs)
    return outcome.jobs


def p99_ttft(jobs: list[Job]) -> float:
    return sorted(job.ttft for job in jobs)[int(0.99 * len(jobs))]


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(BadInput, match="weigh"):
        make_policy("best", random.Random(0))


@given(
    st.sampled_from(FIXED),
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 300)), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_replicas_does_not_matter(
    name: str, loads: list[tuple[int, int]], rng: random.Random
) -> None:
    states = []
    for number, (prompt, produced) in enumerate(loads):
        state = replica(f"r{number}", slower=1.0 + number)
        state.credit(arrival("q", prompt), 0, 0.0)
        state.tokens("q", produced, 0.0)
        states.append(state)
    shuffled = list(states)
    rng.shuffle(shuffled)
    new = arrival("new", 700)
    first = make_policy(name, random.Random(0)).choose(new, states, 0.0)
    second = make_policy(name, random.Random(0)).choose(new, shuffled, 0.0)
    assert {k: pytest.approx(v) for k, v in first.scores.items()} == second.scores
    chosen = first.scores[second.replica]
    if name != "prefix_affinity":
        assert chosen == pytest.approx(min(first.scores.values()))
    else:
        assert first.replica == second.replica


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_reads_the_true_output_length(name: str) -> None:
    """Two runs that differ only in truths not yet revealed make the same decisions until one is revealed."""
    short, long = mixed_jobs(3, 40, 1e6), mixed_jobs(3, 40, 1e6)
    for job in long:
        job.output = 1900
    placed = [
        [(j.arrival.id, j.replica) for j in sorted(run(name, jobs), key=lambda j: j.arrival.id)]
        for jobs in (short, long)
    ]
    assert placed[0] == placed[1]


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_lost_and_counters_drain(name: str) -> None:
    run(name, mixed_jobs(1, 300, 60.0))


def test_weigh_halves_the_tail_of_round_robin_and_beats_counting() -> None:
    tails = {
        name: p99_ttft(run(name, mixed_jobs(5, 2500, 40.0)))
        for name in ("round_robin", "least_requests", "new_prefill_x_batch", "weigh")
    }
    assert tails["weigh"] <= 0.5 * tails["round_robin"]
    assert tails["weigh"] <= 0.8 * tails["least_requests"]
    assert tails["weigh"] <= 0.8 * tails["new_prefill_x_batch"]


def test_weigh_prefers_the_warm_replica_until_its_line_is_longer_than_the_saving() -> None:
    """sglang #14305 (affinity to a hot spot), #32195 (one hot worker turns affinity off for everybody)."""
    index = PrefixIndex()
    warm, cold = replica("warm", index=index), replica("cold", index=index)
    chain = tuple(bytes([n]) * 32 for n in range(100))
    index.enter("warm", chain)
    policy = make_policy("weigh", random.Random(0))
    request = arrival("q", 1700, chain=chain)
    assert policy.choose(request, [warm, cold], 0.0).replica == "warm"
    warm.credit(arrival("hog", 8000), 0, 0.0)
    assert policy.choose(request, [warm, cold], 0.0).replica == "cold"
    warm.release("hog", 0.0)
    assert policy.choose(request, [warm, cold], 0.0).replica == "warm"  # released per request


def test_affinity_spills_for_one_request_and_returns() -> None:
    states = [replica(f"r{n}") for n in range(4)]
    policy = make_policy("prefix_affinity", random.Random(0))
    request = arrival("q", chain=(b"k" * 32,))
    home = policy.choose(request, states, 0.0).replica
    state = next(s for s in states if s.name == home)
    for n in range(6):
        state.credit(arrival(f"x{n}"), 0, 0.0)
    assert policy.choose(request, states, 0.0).replica != home
    for n in range(6):
        state.release(f"x{n}", 0.0)
    assert policy.choose(request, states, 0.0).replica == home


def test_equal_prompts_are_spread_by_load_not_by_name() -> None:
    """vllm-router: prompts of equal length all hashed to one worker."""
    states = [replica(f"r{n}") for n in range(4)]
    policy = make_policy("weigh", random.Random(0))
    for n in range(16):
        choice = policy.choose(arrival(f"q{n}", 500), states, 0.0)
        next(s for s in states if s.name == choice.replica).credit(arrival(f"q{n}", 500), 0, 0.0)
    assert [state.requests for state in states] == [4, 4, 4, 4]


def test_several_gateways_do_not_herd() -> None:
    """dynamo #589: N routers sent a burst to the one replica their last report called best."""
    report = Report(0.0, queued_requests=20, queued_tokens=20_000, running_requests=10)
    better = replace(report, queued_tokens=19_000)
    chosen = []
    for gateway in range(32):
        states = [ReplicaState(f"r{n}", Capacity(COST)) for n in range(8)]
        for number, state in enumerate(states):
            state.report(better if number == 0 else report)
        policy = make_policy("weigh", random.Random(gateway))
        chosen.append(policy.choose(arrival("q"), states, 0.1).replica)
    assert max(chosen.count(name) for name in set(chosen)) <= 12


def test_the_choice_is_explained() -> None:
    states = [replica("fast"), replica("slow", slower=3.0)]
    choice = make_policy("weigh", random.Random(0)).choose(arrival("q", 900), states, 0.0)
    lines = explain(choice, "weigh")
    assert choice.replica == "fast"
    assert re.search(r"first token in about \d+ ms, last in about [\d.]+ s", lines[0])
    assert lines[1].startswith("slow: ")
    assert lines[1].endswith("more")


def unknown(name: str, index: PrefixIndex | None = None) -> ReplicaState:
    return ReplicaState(name, Capacity(), index)


@pytest.mark.parametrize("slower", [0.01, 1.0, 100.0])
def test_whose_speed_is_unknown_gets_a_few_to_find_it_out(slower: float) -> None:
    """A default in its place would win or lose against everything that is measured."""
    states = [replica("told", slower=slower), unknown("silent")]
    policy = make_policy("weigh", random.Random(0))
    for n in range(20):
        choice = policy.choose(arrival(f"q{n}", 500), states, 0.0)
        next(s for s in states if s.name == choice.replica).credit(arrival(f"q{n}", 500), 0, 0.0)
    assert states[1].requests == 4  # enough to be found out by


def test_of_equally_many_requests_the_fewest_tokens_decide() -> None:
    index = PrefixIndex()
    warm, cold, told = unknown("warm", index), unknown("cold", index), replica("told", index=index)
    chain = tuple(bytes([n]) * 32 for n in range(100))
    index.enter("warm", chain)
    policy = make_policy("weigh", random.Random(0))
    request = arrival("q", 1700, chain=chain)
    choice = policy.choose(request, [cold, told, warm], 0.0)
    assert (choice.replica, choice.cached_tokens) == ("warm", 1600)
    warm.credit(arrival("other", 10), 0, 0.0)
    assert policy.choose(request, [cold, told, warm], 0.0).replica != "warm"
    cold.credit(arrival("long", 5000), 0, 0.0)
    assert policy.choose(request, [cold, warm], 0.0).replica == "warm"


def test_a_choice_without_speeds_says_what_is_not_learned() -> None:
    states = [replica("told"), unknown("silent")]
    states[0].credit(arrival("there", 100), 0, 0.0)
    choice = make_policy("weigh", random.Random(0)).choose(arrival("q", 900, output=0.0), states, 0.0)
    lines = explain(choice, "weigh")
    assert choice.replica == "silent"
    assert "the speed of silent is not learned yet" in lines[0]
    assert " ms" not in lines[0]
    assert lines[1] == "told: 1 requests, 1 requests more"


def test_without_speeds_several_gateways_do_not_herd_either() -> None:
    report = Report(0.0, queued_requests=20, queued_tokens=20_000, running_requests=10)
    better = replace(report, queued_requests=19)
    chosen = []
    for gateway in range(32):
        states = [unknown(f"r{n}") for n in range(8)]
        for number, state in enumerate(states):
            state.report(better if number == 0 else report)
        policy = make_policy("weigh", random.Random(gateway))
        chosen.append(policy.choose(arrival("q"), states, 0.1).replica)
    assert max(chosen.count(name) for name in set(chosen)) <= 12


def test_once_all_speeds_are_told_seconds_are_compared() -> None:
    states = [replica("quick"), unknown("slow")]
    policy = make_policy("weigh", random.Random(0))
    states[1].report(Report(0.0, step_cost=COST.scaled(50.0)))
    choice = policy.choose(arrival("q", 500), states, 0.0)
    assert (choice.replica, choice.unit) == ("quick", "s")


def find_slow(slow: ReplicaState) -> float:
    """Let first tokens come late six times; return when the last of them came."""
    now = 0.0
    for number in range(6):
        request = arrival(f"late {number}", 100)
        slow.credit(request, 0, now)
        now += 30.0
        slow.first_token(request.id, now)
        slow.release(request.id, now, 0)
    return now


def test_one_found_slow_is_tried_again_by_one_request() -> None:
    """It was late twice with what it tells; nobody would learn that it is not any more."""
    states = [replica("steady"), replica("was slow")]
    policy = make_policy("weigh", random.Random(0))
    slow = states[1]
    now = find_slow(slow)
    assert not slow.believed
    states[0].credit(arrival("busy", 100), 0, now)
    reasons = []
    for number in range(40):
        now += 0.5
        request = arrival(f"q{number}", 100)
        choice = policy.choose(request, states, now)
        if choice.replica == "was slow":
            slow.credit(request, 0, now)
            reasons.append(choice.reason)
    assert len(reasons) == 1
    assert "tried again" in reasons[0]


def test_a_long_prompt_does_not_pay_for_finding_out_unless_no_other_comes() -> None:
    steady, slow = states = [replica("steady"), replica("was slow")]
    policy, now = make_policy("weigh", random.Random(0)), find_slow(slow)
    steady.credit(arrival("busy", 100), 0, now)
    assert policy.choose(arrival("long", 2000), states, now + 10.0).replica == "steady"
    assert policy.choose(arrival("usual", 100), states, now + 10.0).replica == "was slow"
    assert policy.choose(arrival("long at last", 2000), states, now + 21.0).replica == "was slow"


def test_what_stood_still_once_is_believed_on() -> None:
    """All that was in flight came late together: that is one observation, and no speed."""
    state, now = replica("stalled"), 0.0
    requests = [arrival(f"q{number}", 100) for number in range(6)]
    for request in requests:
        state.credit(request, 0, now)
    for request in requests:
        state.first_token(request.id, 60.0)
    for request in requests:
        state.release(request.id, 61.0, 1)
    assert state.believed
