"""What an iteration holds, who waits, who gives way, and what is refused at the door."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.engine.fake_model import (
    COST,
    STOP,
    Costs,
    Driver,
    make_request,
    make_scheduler,
    reference_output,
)
from weighbridge.engine.batch import Batch, Sampled
from weighbridge.engine.request import SPARE_CLASS, FinishReason, Request, TokenLogprob
from weighbridge.engine.schedule.admission import min_seconds
from weighbridge.engine.schedule.plan import Plan
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
from weighbridge.errors import BadInput, DeadlineMissed, NeverFits, QueueFull


def make_driver(**options: object) -> Driver:
    return Driver(make_scheduler(**({"speculate": False} | options)))  # type: ignore[arg-type]


def counts(batch: Batch) -> dict[str, int]:
    return {piece.request.id: piece.count for piece in batch.slices}


def decoding(driver: Driver, number: int, max_tokens: int = 1000) -> list[Request]:
    """`number` requests that have their first token already."""
    requests = [make_request(f"d{i}", [i, 1, 2], max_tokens, seed=i) for i in range(number)]
    driver.add(*requests)
    driver.step()
    return requests


# -- one iteration -------------------------------------------------------------------------------------


def test_alone_a_prompt_runs_at_the_full_budget() -> None:
    driver = make_driver(num_blocks=1000, max_batch_tokens=512)
    driver.add(make_request("a", [1] * 1300, 2))
    assert [counts(driver.step()[0]) for _ in range(4)] == [{"a": 512}, {"a": 512}, {"a": 276}, {"a": 1}]


def test_decodes_come_first_and_prompts_fill_the_iteration_up_to_the_itl_target() -> None:
    driver = make_driver(num_blocks=1000, itl_target=0.05)
    decoding(driver, 4)
    driver.add(make_request("p", [1] * 500, 2))
    batch, _ = driver.step()
    assert [piece.request.id for piece in batch.slices] == ["d0", "d1", "d2", "d3", "p"]
    seconds = COST.seconds(*batch.work)
    assert 0.045 < seconds <= 0.05


def test_every_iteration_beside_decodes_keeps_the_target_until_the_prompt_is_done() -> None:
    driver = make_driver(num_blocks=1000, itl_target=0.03)
    decoding(driver, 4)
    driver.add(make_request("p", [1] * 500, 2))
    steps = 0
    while "p" not in driver.finished:
        batch, _ = driver.step()
        steps += 1
        assert COST.seconds(*batch.work) <= 0.03
        assert batch.num_sequences >= 4
    assert steps < 40


def test_a_prompt_gets_a_block_per_iteration_even_when_decodes_alone_miss_the_target() -> None:
    driver = make_driver(num_blocks=1000, itl_target=0.0001, block_size=8)
    decoding(driver, 4)
    driver.add(make_request("p", [1] * 80, 2), make_request("q", [2] * 80, 2))
    assert [counts(driver.step()[0]).get("p") for _ in range(10)] == [8] * 10
    assert counts(driver.step()[0])["q"] == 8


def test_streams_of_a_less_urgent_class_hold_up_no_prompt() -> None:
    """They get a token in each iteration, and do not bound its length; a stream of the same class does."""
    driver = make_driver(num_blocks=1000, max_batch_tokens=256, itl_target=0.03)
    decoding(driver, 4)
    driver.add(make_request("p", [1] * 240, 9, priority=-1))
    batch, _ = driver.step()
    assert counts(batch) == {"d0": 1, "d1": 1, "d2": 1, "d3": 1, "p": 240}
    driver.add(make_request("q", [2] * 240, 2, priority=-1), make_request("r", [3] * 240, 2))
    batch, _ = driver.step()
    assert 0 < counts(batch)["q"] < 240
    assert "r" not in counts(batch)
    assert COST.seconds(*batch.work) <= 0.03


def test_a_prompt_beside_a_stream_of_a_more_urgent_class_gets_a_token_an_iteration_at_least() -> None:
    driver = make_driver(num_blocks=1000, itl_target=0.0001)
    driver.add(make_request("s", [1, 2, 3], 1000, priority=-1))
    driver.step()
    driver.add(make_request("p", [1] * 20, 2))
    assert [counts(driver.step()[0]) for _ in range(20)] == [{"s": 1, "p": 1}] * 20


def test_the_chunk_follows_the_step_cost_as_it_is_refined() -> None:
    costs = Costs()
    driver = Driver(make_scheduler(costs, num_blocks=1000, itl_target=0.05, speculate=False))
    decoding(driver, 4)
    driver.add(make_request("p", [1] * 500, 2))
    before = counts(driver.step()[0])["p"]
    costs.cost = COST.scaled(2.0)
    assert counts(driver.step()[0])["p"] <= before / 2


def test_chunks_take_all_of_the_budget() -> None:
    driver = make_driver(num_blocks=1000, max_batch_tokens=50, block_size=16)
    driver.add(make_request("a", [1] * 120, 2))
    assert [counts(driver.step()[0]) for _ in range(3)] == [{"a": 50}, {"a": 50}, {"a": 20}]


@pytest.mark.parametrize("budget", [64, 50, 7])
def test_a_burst_with_one_system_prompt_computes_it_once(budget: int) -> None:
    driver = make_driver(num_blocks=1000, max_batch_tokens=budget)
    system = list(range(200))
    requests = [make_request(f"r{i}", [*system, i, i + 1], 4) for i in range(16)]
    driver.add(*requests)
    driver.run()
    assert driver.model.tokens_run <= 200 + 16 * (2 + 4)
    assert sum(request.num_cached_tokens for request in requests) == 15 * 200


def test_without_the_cache_nothing_is_shared() -> None:
    driver = make_driver(num_blocks=1000, enable_prefix_cache=False)
    requests = [make_request(f"r{i}", [*range(200), i], 4) for i in range(3)]
    driver.add(*requests)
    driver.run()
    assert driver.model.tokens_run >= 3 * 201
    assert {request.num_written_tokens for request in requests} == {0}
    assert driver.scheduler.load().kv_blocks_free == 1000


def test_an_answer_is_cached_for_the_next_turn_of_the_conversation() -> None:
    driver = make_driver()
    first = make_request("a", [*range(10)], 12)
    driver.add(first)
    driver.run()
    second = make_request("b", [*first.tokens, 1, 2], 4)
    driver.add(second)
    driver.run()
    assert second.num_cached_tokens == 21  # 21 tokens of the first are computed, the last it produced is not
    written = [request.num_written_tokens for request in (first, second)]
    assert written == [
        10 // 4 * 4,
        len(second.prompt) // 4 * 4 - 21,
    ]  # what fills blocks of four, and was not there


# -- memory --------------------------------------------------------------------------------------------


def test_a_prompt_is_admitted_only_when_all_of_it_has_room() -> None:
    driver = make_driver(num_blocks=10, enable_prefix_cache=False)
    driver.add(make_request("a", [1] * 20, 8), make_request("b", [2] * 20, 8))
    assert counts(driver.step()[0]) == {"a": 20}  # 5 blocks and 5, but one is kept for a's growth
    driver.run()


def test_when_memory_runs_out_the_latest_gives_way_and_nothing_is_lost() -> None:
    driver = make_driver(num_blocks=14)
    early, late = (
        make_request(n, [s] * 16, 32, arrival=s, seed=s + 1) for s, n in enumerate(("early", "late"))
    )
    driver.add(early, late)
    driver.run()
    assert early.num_preemptions == 0
    assert late.num_preemptions >= 1
    assert late.tokens[16:] == reference_output(late)


def test_urgency_outranks_arrival_when_memory_runs_out() -> None:
    driver = make_driver(num_blocks=14)
    early = make_request("early", [1] * 16, 32, arrival=0.0, priority=1)
    late = make_request("late", [2] * 16, 32, arrival=1.0, priority=0)
    driver.add(early, late)
    driver.run()
    assert late.num_preemptions == 0
    assert early.num_preemptions >= 1


@pytest.mark.parametrize("shortage", [{"max_sequences": 2}, {"num_blocks": 12}])
def test_the_urgent_take_seats_and_blocks_from_lower_classes(shortage: dict[str, int]) -> None:
    driver = make_driver(**shortage)
    batch_jobs = [make_request(f"low{i}", [i] * 12, 20, priority=5, arrival=i, seed=i) for i in range(2)]
    driver.add(*batch_jobs)
    driver.step()
    urgent = make_request("urgent", [9] * 18, 4, arrival=7.0)
    driver.add(urgent)
    batch, _ = driver.step()
    assert counts(batch)["urgent"] == 18
    assert [request.num_preemptions for request in batch_jobs] == [0, 1]  # no more than it takes
    driver.run()
    assert all(request.finish_reason is FinishReason.LENGTH for request in batch_jobs)


@pytest.mark.parametrize("decodes", [0, 2])
def test_a_long_prompt_of_a_lower_class_does_not_keep_the_urgent_out(decodes: int) -> None:
    driver = make_driver(num_blocks=1000, max_batch_tokens=32, itl_target=0.001)
    decoding(driver, decodes)
    low = make_request("low", [1] * 640, 2, priority=5)
    driver.add(low)
    driver.step()
    driver.add(make_request("urgent", [2] * 8, 2, arrival=driver.now))
    batch, _ = driver.step()
    assert counts(batch).get("urgent", 0) >= 4  # although `low` alone would take all there is
    driver.run()
    assert low.num_preemptions == 0


def test_the_last_class_keeps_its_place_and_advances_only_while_nobody_else_runs() -> None:
    driver = make_driver(num_blocks=1000, ageing_seconds=0.001)
    spare = [make_request(f"s{i}", [i, 1, 2], 12, seed=i, priority=SPARE_CLASS) for i in range(2)]
    driver.add(*spare)
    driver.step()
    late = make_request("s2", [5] * 40, 2, priority=SPARE_CLASS)
    driver.add(make_request("u", [7] * 9, 6, arrival=1.0), late)
    assert counts(driver.step()[0]) == {"s0": 1, "s1": 1, "u": 9}  # planned before it was let in
    for _ in range(5):
        assert counts(driver.step()[0]) == {"u": 1}
    assert counts(driver.step()[0]).keys() == {"s0", "s1", "s2"}
    driver.run()
    assert all(one.tokens[one.num_prompt_tokens :] == reference_output(one) for one in [*spare, late])
    assert not any(one.num_preemptions for one in spare)


def test_equals_do_not_displace_each_other() -> None:
    driver = make_driver(max_sequences=1)
    first, second = make_request("a", [1] * 12, 20), make_request("b", [1] * 12, 20)
    driver.add(first, second)
    driver.run()
    assert (first.num_preemptions, second.num_preemptions) == (0, 0)


def test_nobody_is_preempted_when_it_would_not_help() -> None:
    driver = make_driver(num_blocks=20)
    old = make_request("old", [1] * 40, 20, priority=0)
    low = make_request("low", [2] * 8, 20, priority=5)
    driver.add(old, low)
    driver.step()
    driver.add(make_request("big", [3] * 60, 4, priority=1))
    driver.step()
    assert low.num_preemptions == 0


def test_two_thousand_requests_through_a_pool_that_fits_five() -> None:
    driver = make_driver(num_blocks=20, speculate=True, max_queue_requests=2000)
    generator = random.Random(1)
    requests = [
        make_request(
            f"r{i}",
            [generator.randrange(5) for _ in range(generator.randint(1, 16))],
            generator.randint(1, 24),
            arrival=float(i),
            tenant=f"t{generator.randrange(9)}",
            priority=generator.randrange(3),
            seed=i,
            stops=i % 2 == 0,
        )
        for i in range(2000)
    ]
    driver.add(*requests)
    driver.run()
    assert len(driver.finished) == 2000
    assert sum(request.num_preemptions for request in requests) > 0
    assert all(request.tokens[len(request.prompt) :] == reference_output(request) for request in requests)
    load = driver.scheduler.load()
    driver.scheduler.check_integrity()
    assert (load.queued_tokens, load.running_tokens, load.kv_blocks_used) == (0, 0, 0)


def test_no_request_starves_under_an_endless_stream_of_smaller_and_more_urgent_ones() -> None:
    driver = make_driver(num_blocks=24, ageing_seconds=0.5, max_batch_tokens=64)
    big = make_request("big", [1] * 60, 20, tenant="big", priority=3)
    driver.add(big)
    for number in range(4000):
        if big.finish_reason is not None:
            break
        if driver.scheduler.load().queued_requests < 8:
            for choice in range(2):
                name = f"s{number}-{choice}"
                driver.add(make_request(name, [number % 5] * 6, 6, arrival=driver.now, priority=choice))
        driver.step()
    assert big.finish_reason is FinishReason.LENGTH
    assert driver.now < 10.0


def test_nobody_is_admitted_in_the_iteration_that_had_to_preempt() -> None:
    driver = make_driver(num_blocks=14, enable_prefix_cache=False)
    early, late = (
        make_request(n, [s] * 16, 32, arrival=s, seed=s + 1) for s, n in enumerate(("early", "late"))
    )
    driver.add(early, late)
    while not late.num_preemptions:
        driver.add(make_request(f"small{driver.now}", [3], 1, arrival=9.0, tenant="other"))
        batch, _ = driver.step()
    assert counts(batch) == {"early": 1}
    driver.run()


@pytest.mark.parametrize(("running", "num_blocks", "reserve"), [(0, 64, 0), (3, 64, 3), (1, 1000, 10)])
def test_memory_is_kept_for_the_growth_of_what_runs(running: int, num_blocks: int, reserve: int) -> None:
    assert make_driver(num_blocks=num_blocks).scheduler._reserve(running) == reserve  # type: ignore[attr-defined]


def test_a_preempted_slice_returns_its_budget_and_computes_nothing_for_others() -> None:
    plan = Plan(100)
    kept, dropped = make_request("kept", [1] * 9), make_request("dropped", [2] * 30)
    plan.add_decode(kept, 8)
    plan.add_chunk(dropped, 10, 20, [b"x"])
    assert plan.computes(b"x")
    plan.drop(dropped)
    plan.drop(dropped)
    assert (plan.budget, plan.work) == (99, (1, 1, 9, 0))
    assert not plan.computes(b"x")


def test_tenants_are_charged_for_what_is_computed_not_for_what_is_shared() -> None:
    driver = make_driver(num_blocks=1000, max_batch_tokens=64)
    system = list(range(200))
    driver.add(*(make_request(n, [*system, i], 2, tenant=n) for i, n in enumerate(("first", "second"))))
    driver.run()
    counters = driver.scheduler._queue._classes[0].counters  # type: ignore[attr-defined]
    assert counters.counter("first") == 201 + 2 * 2
    assert counters.counter("second") == 201 + 2 * 2 - 200 + 0  # lifted to no one's level: nobody waited


def test_a_tenant_with_long_prompts_gets_fewer_of_them_admitted() -> None:
    driver = make_driver(max_sequences=1, enable_prefix_cache=False)
    driver.add(*(make_request(f"long{i}", [1] * 60, 1, tenant="long") for i in range(6)))
    driver.add(*(make_request(f"short{i}", [2] * 10, 1, tenant="short") for i in range(12)))
    order = []
    while driver.scheduler.has_work():
        order += list(counts(driver.step()[0]))
    assert order[:7] == ["long0", *(f"short{i}" for i in range(6))]


def test_a_running_prompt_does_not_starve_under_an_endless_stream_of_urgent_ones() -> None:
    driver = make_driver(num_blocks=1000, max_batch_tokens=32, ageing_seconds=0.5)
    low = make_request("low", [1] * 320, 2, priority=5)
    driver.add(low)
    driver.step()
    assert 0 < low.num_computed_tokens < 320
    for number in range(3000):
        if low.finish_reason is not None:
            break
        if driver.scheduler.load().queued_requests < 4:
            prompt = [number % 5, number // 5 % 5, number // 25 % 5] * 20
            driver.add(make_request(f"u{number}", prompt, 1, arrival=driver.now))
        driver.step()
    assert low.finish_reason is FinishReason.LENGTH
    assert driver.now < 5.0


# -- ends ----------------------------------------------------------------------------------------------


def feed(driver: Driver, request: Request, tokens: list[int]) -> FinishReason | None:
    """Run `request` with these tokens as the model's output; returns why it ended."""
    driver.add(request)
    for token in tokens:
        batch = driver.scheduler.schedule(0.0)
        logprobs = [[TokenLogprob(token, -1.0)]] if request.params.logprobs is not None else [None]
        (progress,) = driver.scheduler.update(batch, Sampled([[token]], logprobs), 0.0)
        assert progress.tokens == [token]
        if progress.finish_reason is not None:
            return progress.finish_reason
    return None


def test_a_stop_id_ends_but_not_before_min_tokens() -> None:
    assert feed(make_driver(), make_request("a", [1], 9, stops=True), [1, STOP, 1]) is FinishReason.STOP
    request = make_request("b", [1], 9, stops=True, min_tokens=2)
    assert feed(make_driver(), request, [STOP, STOP, STOP, 1]) is FinishReason.STOP
    assert request.tokens == [1, STOP, STOP, STOP]


def test_a_stop_among_accepted_drafts_commits_no_block_behind_it() -> None:
    driver = make_driver(speculate=True, block_size=2)
    request = make_request("a", [0, 1, 2] * 4, 30, stops=True, seed=3)
    driver.add(request)
    for _ in range(2):
        batch = driver.scheduler.schedule(0.0)
        drafts = batch.slices[0].drafts
        sampled = [STOP, *drafts[1:], 0] if drafts else [0]
        driver.scheduler.update(batch, Sampled([sampled], [None]), 0.0)
    assert len(drafts) >= 4
    assert request.tokens[12:] == [0, STOP]
    assert request.num_computed_tokens <= request.num_tokens
    driver.scheduler.check_integrity()


def test_max_tokens_and_the_context_end_a_request() -> None:
    assert feed(make_driver(), make_request("a", [1], 2), [1, 2, 3]) is FinishReason.LENGTH
    driver = make_driver(max_model_len=12)
    request = make_request("b", [1] * 10, 2)
    assert feed(driver, request, [1, 2]) is FinishReason.LENGTH
    assert request.num_tokens == 12


def test_tokens_behind_a_stop_id_are_dropped_with_their_logprobs() -> None:
    driver = make_driver(speculate=True)
    request = make_request("a", [0, 1, STOP] * 4, 30, stops=True, seed=3)
    request.params = replace(request.params, logprobs=0)
    driver.add(request)
    driver.schedule()
    batch = Batch()
    for _ in range(2):
        batch = driver.scheduler.schedule(0.0)
        tokens = [0, *batch.slices[0].drafts] if not batch.slices[0].drafts else [1, STOP, 0]
        logprobs = [TokenLogprob(token, -1.0) for token in tokens]
        (progress,) = driver.scheduler.update(batch, Sampled([tokens], [logprobs]), 0.0)
    assert progress.tokens == [1, STOP]
    assert [entry.token for entry in progress.logprobs or []] == [1, STOP]
    assert progress.finish_reason is FinishReason.STOP
    assert request.tokens[12:] == [0, 1, STOP]
    driver.scheduler.check_integrity()


def test_an_error_ends_only_the_request_it_belongs_to() -> None:
    driver = make_driver()
    driver.model.fail = {"b"}
    requests = [make_request(name, [1, 2], 4, seed=i) for i, name in enumerate("abc")]
    driver.add(*requests)
    _, progress = driver.step()
    assert [(item.request.id, item.error) for item in progress if item.finish_reason] == [
        ("b", "broken on purpose")
    ]
    driver.run()
    assert [driver.finished[name] for name in "abc"] == ["length", "error", "length"]


def test_a_request_that_ends_in_flight_keeps_its_blocks_until_the_iteration_is_over() -> None:
    driver = make_driver()
    request = make_request("a", [1, 2, 3], 9)
    driver.add(request)
    batch = driver.schedule()
    table = list(request.block_table)
    driver.abort("a")
    assert not driver.scheduler.has_work()
    assert request.block_table == table  # the runner is reading it
    assert driver.complete(batch) == []
    assert driver.scheduler.load().kv_blocks_used == 0


def test_its_id_may_be_used_again_at_once() -> None:
    driver = make_driver()
    driver.add(make_request("a", [1, 2, 3], 9))
    batch = driver.schedule()
    driver.abort("a")
    again = make_request("a", [4, 5], 3)
    driver.scheduler.add(again, driver.now)
    assert driver.complete(batch) == []
    driver.finished.clear()
    driver.run()
    assert again.tokens[2:] == reference_output(again)


def test_unknown_ids_and_second_ends_are_ignored() -> None:
    driver = make_driver()
    assert driver.scheduler.abort("nobody") is None
    request = make_request("a", [1], 3)
    driver.add(request)
    assert driver.scheduler.finish("a", FinishReason.STOP) is request
    assert driver.scheduler.abort("a") is None
    assert request.finish_reason is FinishReason.STOP


def test_deadlines_end_the_waiting_and_the_running() -> None:
    driver = make_driver(max_sequences=1)
    running = make_request("running", [1, 2], 200, deadline=0.1)
    waiting = make_request("waiting", [1, 2], 5, deadline=0.05)
    driver.add(running, waiting)
    driver.run()
    assert driver.finished == {"running": FinishReason.DEADLINE, "waiting": FinishReason.DEADLINE}
    assert waiting.num_computed_tokens == 0
    assert 0.1 <= driver.now < 0.15


def test_a_waiting_request_that_cannot_make_it_any_more_is_not_started() -> None:
    driver = make_driver(max_sequences=1, num_blocks=200)
    driver.add(make_request("first", [1, 2], 5))
    late = make_request("late", [3] * 400, 1, deadline=0.45)  # about 0.4 s of prefill
    driver.add(late)
    driver.run()
    assert late.finish_reason is FinishReason.DEADLINE
    assert driver.now < 0.2


# -- the door ------------------------------------------------------------------------------------------


def test_what_never_fits_is_refused_with_the_numbers() -> None:
    driver = make_driver(num_blocks=10, max_model_len=1000)
    with pytest.raises(
        NeverFits, match="60 prompt tokens and max_tokens 2000 make 2060, but the context is 1000"
    ):
        driver.add(make_request("a", [1] * 60, 2000))
    with pytest.raises(NeverFits, match="need 11 KV blocks of 4 tokens, but the pool has 10"):
        driver.add(make_request("b", [1] * 20, 22))
    driver.add(make_request("c", [1] * 20, 21))  # 40 tokens are computed, the last one is only sent
    driver.run()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "what"), [([], 5, "no tokens"), ([1], -1, "max_tokens is -1")]
)
def test_malformed_requests_are_bad_input(prompt: list[int], max_tokens: int, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        make_driver().add(make_request("a", prompt, max_tokens))


def test_ids_must_differ() -> None:
    driver = make_driver()
    driver.add(make_request("a", [1], 5))
    with pytest.raises(BadInput, match="'a' is here already"):
        driver.add(make_request("a", [1], 5))


def test_a_full_queue_says_when_to_come_back() -> None:
    def retry_after(waiting: int) -> float:
        driver = make_driver(max_queue_requests=waiting)
        driver.add(*(make_request(f"r{i}", [1] * 50, 10) for i in range(waiting)))
        with pytest.raises(QueueFull, match=f"{waiting} requests with") as caught:
            driver.add(make_request("x", [1], 1))
        assert caught.value.retry_after is not None
        return caught.value.retry_after

    assert 0.0 < retry_after(5) < retry_after(50)


def test_the_queue_may_be_limited_in_tokens() -> None:
    driver = make_driver(max_queue_tokens=100)
    driver.add(make_request("a", [1] * 200, 10))  # one always fits
    with pytest.raises(QueueFull, match="at most 100 tokens"):
        driver.add(make_request("b", [1] * 10, 10))


def test_a_deadline_that_cannot_be_met_is_refused_before_it_costs_anything() -> None:
    driver = make_driver(num_blocks=500)
    prompt = [*range(1000)]
    with pytest.raises(DeadlineMissed, match="takes at least"):
        driver.add(make_request("a", prompt, 5, deadline=0.5))
    driver.add(make_request("b", prompt, 5, deadline=2.0))
    driver.run()
    driver.add(make_request("c", prompt, 5, deadline=driver.now + 0.5))  # now its prompt is cached
    driver.run()
    assert driver.finished == {"b": FinishReason.LENGTH, "c": FinishReason.LENGTH}
    assert not driver.scheduler._tables._chains


def test_the_least_time_counts_the_attention_over_what_is_cached() -> None:
    request = make_request("a", [1] * 100, 9, min_tokens=3)
    settings = SchedulerSettings(max_model_len=1000, num_blocks=100)
    expected = COST.prefill_seconds(60, 40) + 2 * COST.seconds(1, 1, 100)
    assert min_seconds(request, 40, settings, COST) == pytest.approx(expected, rel=1e-12)


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"num_blocks": 0}, {"itl_target": 0.0}, {"max_draft_tokens": -1}, {"max_batch_tokens": 0}):
        with pytest.raises(BadInput):
            SchedulerSettings(**({"max_model_len": 10, "num_blocks": 10} | wrong))  # type: ignore[arg-type]


# -- what it tells -------------------------------------------------------------------------------------


def test_the_load_weighs_work_still_to_be_computed() -> None:
    driver = make_driver(max_sequences=1, num_blocks=100, max_batch_tokens=32)
    driver.add(make_request("a", [1] * 40, 10), make_request("b", [2] * 30, 200))
    driver.step()
    load = driver.scheduler.load()
    assert (load.running_requests, load.running_tokens) == (1, 8 + 10)
    assert (load.queued_requests, load.queued_tokens) == (
        1,
        30 + 128,
    )  # 128: what outputs are first expected to be
    assert (load.kv_blocks_used, load.kv_blocks_free, load.kv_blocks_total) == (10, 90, 100)


def history(seed: int) -> list[list[tuple[str, int, int]]]:
    """All batches of a random workload."""
    driver = make_driver(num_blocks=30, speculate=True, max_sequences=6)
    generator = random.Random(seed)
    for number in range(60):
        prompt = [generator.randrange(5) for _ in range(generator.randint(1, 20))]
        tenant, priority = f"t{generator.randrange(3)}", generator.randrange(2)
        options = {"arrival": driver.now, "tenant": tenant, "priority": priority, "seed": number}
        driver.add(make_request(f"r{number}", prompt, 20, **options))  # type: ignore[arg-type]
        for _ in range(generator.randrange(3)):
            driver.step()
    driver.run()
    return driver.batches


def test_same_input_same_decisions() -> None:
    assert history(1) == history(1)
    assert history(1) != history(2)


def test_no_decision_depends_on_an_output_that_is_still_to_come() -> None:
    """Two models that agree for a while are scheduled alike for that while, whatever they will say later."""

    def run(end_all_at: int) -> list[list[tuple[str, int, int]]]:
        driver = make_driver(num_blocks=30, max_sequences=4, speculate=True)
        driver.add(*(make_request(f"r{i}", [i % 5] * (5 + i), 30, seed=i, stops=True) for i in range(12)))
        for step in range(end_all_at + 1):
            batch = driver.schedule()
            tokens = [[STOP if step == end_all_at else 0] if piece.samples else [] for piece in batch.slices]
            driver.scheduler.update(batch, Sampled(tokens, [None] * len(tokens)), driver.now)
        return driver.batches

    long_run = run(40)
    for end_all_at in (0, 5, 12, 30):
        assert run(end_all_at) == long_run[: end_all_at + 1]
