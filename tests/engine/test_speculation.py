"""Prompt lookup finds what repeats, learns whom to trust, and stops when it does not pay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake_model import COST, Costs, Driver, make_request, make_scheduler, reference_output
from weighbridge.cost import StepCost
from weighbridge.engine.request import Guide, Request, SamplingParams
from weighbridge.engine.schedule.plan import Plan
from weighbridge.engine.schedule.speculation import (
    INDEX_STEP,
    Acceptance,
    NgramIndex,
    Speculator,
    may_speculate,
)


def follow_by_search(tokens: list[int], count: int) -> list[int]:
    """What `NgramIndex` looks up, by plain search: the longest of 4, 3 or 2 tokens, the latest such place."""
    for length in (4, 3, 2):
        if len(tokens) <= length:
            continue
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                return [tokens[place + i % (len(tokens) - place)] for i in range(count)]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 7))
@settings(max_examples=400, deadline=None)
def test_lookup_finds_the_latest_longest_match(tokens: list[int], step: int) -> None:
    index = NgramIndex()
    for end in range(0, len(tokens) + 1, step):
        seen = tokens[:end]
        index.extend(seen, 1000)
        found, wanted = index.follow(seen, 5), follow_by_search(seen, 5)
        if end < 20:  # few candidates: exact
            assert bool(found) == bool(wanted)
        if found and index._previous.count(0) >= end - 8:
            assert found == wanted


def test_a_match_that_overlaps_the_end_repeats_its_period() -> None:
    index = NgramIndex()
    tokens = [9, 1, 2, 3, 1, 2, 3, 1, 2]
    index.extend(tokens, 100)
    assert index.follow(tokens, 7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_long_prompt_is_indexed_in_bounded_pieces() -> None:
    speculator, plan = Speculator(4), one_decode([1, 2] * 1000)
    request = next(iter(plan.decodes))
    looked_up = []
    for _ in range(5):
        assert speculator.worthwhile(COST, plan)
        looked_up.append(speculator.propose(request, 4, COST, plan))
    assert 3 * INDEX_STEP < 2000
    assert [bool(drafts) for drafts in looked_up] == [False, False, False, True, True]


def one_decode(tokens: list[int], others: int = 0) -> Plan:
    plan = Plan(1000)
    for number in range(others + 1):
        request = make_request(f"r{number}", list(tokens), 100)
        plan.add_decode(request, len(tokens) - 1)
    return plan


def drafts_at(others: int, acceptance: float, cost: StepCost = COST) -> int:
    speculator, plan = Speculator(8), one_decode([1, 2, 3] * 5, others)
    request = next(iter(plan.decodes))
    speculator.propose(request, 0, cost, plan)
    evidence = speculator._guessers[request].acceptance
    evidence.right, evidence.wrong = acceptance, 1.0 - acceptance
    return len(speculator.propose(request, 8, cost, plan))


def test_drafts_pay_at_small_batches_only() -> None:
    alone, few, many = drafts_at(0, 0.8), drafts_at(5, 0.8), drafts_at(60, 0.8)
    assert alone == 8
    assert alone > few > 0
    assert many == 0


def test_unreliable_guesses_are_not_drafted_where_they_cost() -> None:
    compute_bound = replace(COST, memory=0.0)
    assert drafts_at(0, 0.95, compute_bound) > 0
    assert drafts_at(0, 0.3, compute_bound) == 0


@given(st.integers(0, 30), st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_what_is_drafted_raises_the_expected_rate(others: int, chance: float) -> None:
    """Tokens per second of the whole batch, with the drafts against without."""
    count = drafts_at(others, chance)
    plan = one_decode([1, 2, 3] * 5, others)
    tokens, sequences, context, pairs = plan.work
    before = sequences / COST.seconds(*plan.work)
    pairs += sum(15 + i for i in range(count))
    seconds = COST.seconds(tokens + count, sequences + count, context + count, pairs)
    gained = sum(chance ** (i + 1) for i in range(count))
    assert (plan.sequences + gained) / seconds >= before * (1.0 - 1e-9)


def test_acceptance_is_learned_from_what_comes() -> None:
    evidence = Acceptance()
    for _ in range(30):
        evidence.observe([1, 2, 3, 4], [1, 2, 3, 4, 5])
    assert evidence.mean > 0.95
    for _ in range(30):
        evidence.observe([1, 2, 3, 4], [7])
    assert evidence.mean < 0.06
    before = evidence.mean
    evidence.observe([1, 2], [1])  # one token came: it says nothing about the second
    assert evidence.mean > before


def test_guesses_are_compared_also_when_none_is_drafted() -> None:
    speculator, plan = Speculator(4), one_decode([1, 2, 3] * 5)
    request = next(iter(plan.decodes))
    before = Acceptance().mean
    assert speculator.propose(request, 0, COST, plan) == ()
    speculator.observe(request, [1])
    assert speculator._guessers[request].acceptance.mean > before


@pytest.mark.parametrize(
    "params",
    [
        {"guide": Guide("regex", "a*")},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"min_tokens": 3},
    ],
)
def test_what_cannot_be_verified_is_not_proposed(params: dict[str, object]) -> None:
    assert may_speculate(SamplingParams(max_tokens=5, logprobs=3, temperature=0.7))
    assert not may_speculate(SamplingParams(max_tokens=5, **params))  # type: ignore[arg-type]


def output(request: Request, speculate: bool, **options: object) -> tuple[list[int], int]:
    driver = Driver(make_scheduler(Costs(), speculate=speculate, **options))
    driver.add(request)
    driver.run()
    return request.tokens[len(request.prompt) :], len(driver.batches)


def test_speculation_saves_iterations_and_changes_no_token() -> None:
    def request() -> Request:
        return make_request("r", [0, 1, 2] * 4, 60, seed=3)

    plain, plain_steps = output(request(), speculate=False)
    drafted, drafted_steps = output(request(), speculate=True)
    assert plain == drafted == reference_output(request())
    assert drafted_steps < plain_steps / 4


def test_drafts_never_exceed_what_may_still_be_produced() -> None:
    request = make_request("r", [0, 1, 2] * 4, 5, seed=3)
    driver = Driver(make_scheduler())
    driver.add(request)
    while driver.scheduler.has_work():
        batch, _ = driver.step()
        for piece in batch.slices:
            assert piece.start + piece.count <= request.max_total_tokens - 1
    assert request.num_drafted_tokens == request.num_accepted_tokens == 3
