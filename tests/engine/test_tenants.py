"""Tenants share seats, memory and the line, whatever one of them sends; who is alone has everything."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake_model import Costs, Driver, make_request, make_scheduler, reference_output
from weighbridge.engine.request import Places, Request, RequestState
from weighbridge.engine.schedule import make as schedulers
from weighbridge.engine.schedule.fairness import MAX_IDLE_TENANTS, Seats, VirtualTokenCounters
from weighbridge.engine.schedule.places import Backlog
from weighbridge.engine.schedule.queue import FairQueue
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
from weighbridge.errors import BadInput, QueueFull

PATIENCE = 0.5


def make_driver(**options: object) -> Driver:
    defaults: dict[str, object] = {
        "num_blocks": 400,
        "max_sequences": 4,
        "speculate": False,
        "tenant_patience": PATIENCE,
    }
    return Driver(make_scheduler(**(defaults | options)))  # type: ignore[arg-type]


def several(
    tenant: str, number: int, max_tokens: int = 300, prompt: int = 3, **options: object
) -> list[Request]:
    return [
        make_request(
            f"{tenant}{i}", [i % 50, 1, *range(prompt - 2)], max_tokens, tenant=tenant, seed=i, **options
        )  # type: ignore[arg-type]
        for i in range(number)
    ]


def seated(requests: list[Request]) -> int:
    return sum(request.state is RequestState.RUNNING for request in requests)


def steps_until(driver: Driver, condition: object, limit: float) -> float:
    """Seconds until `condition()` holds; fails when it does not within `limit` seconds of the virtual clock."""
    began = driver.now
    while not condition():  # type: ignore[operator]
        driver.step()
        assert driver.now - began <= limit, "it never came to that"
    return driver.now - began


# -- prompts -------------------------------------------------------------------------------------------


def prompts_driver(**options: object) -> Driver:
    usual = {"num_blocks": 4000, "max_sequences": 32, "max_batch_tokens": 128, "enable_prefix_cache": False}
    return make_driver(**(usual | options))


def test_a_short_prompt_waits_for_no_backlog_of_another_tenants_long_ones() -> None:
    """Neither for those under way nor for those that wait: it has had less."""
    driver = prompts_driver()
    heavy = several("heavy", 12, 5, prompt=900)
    driver.add(*heavy)
    for _ in range(4):
        driver.step()
    light = make_request("light", [7] * 60, 5, tenant="light")
    driver.add(light)
    for _ in range(2):
        driver.step()
    assert light.num_output_tokens
    done = [request for request in heavy if request.num_output_tokens]
    assert len(done) <= 1
    while driver.scheduler.has_work():
        driver.step()
    driver.scheduler.check_integrity()
    assert not len(driver.scheduler._books.turns)  # type: ignore[attr-defined]


def test_prompts_alike_of_several_tenants_are_computed_one_after_another() -> None:
    driver = prompts_driver()
    requests = [make_request(f"r{i}", [i] * 500, 2, tenant=f"t{i}", arrival=float(i)) for i in range(5)]
    driver.add(*requests)
    ended: list[str] = []
    while driver.scheduler.has_work():
        batch, progress = driver.step()
        ended += [one.request.id for one in progress if one.request.num_output_tokens == 1]
        chunks = [piece for piece in batch.slices if piece.count > 1]
        assert sum(not piece.samples for piece in chunks) <= 1  # no more than one is under way
    assert ended == [request.id for request in requests]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 400)), min_size=1, max_size=24))
def test_a_tenants_prompts_take_no_longer_than_twice_what_they_would_alone(
    works: list[tuple[str, int]],
) -> None:
    """With two tenants each has half, whatever the other one sends; and what is under way is not taken back."""
    together, longest = _first_tokens(works), max(size for _, size in works)
    for tenant in "ab":
        alone = _first_tokens([work for work in works if work[0] == tenant])
        own = [at for at, work in zip(together, works, strict=True) if work[0] == tenant]
        for at, best in zip(own, alone, strict=True):
            assert at <= 2 * best + longest // 32 + 2


def _first_tokens(works: list[tuple[str, int]]) -> list[int]:
    """The iterations in which prompts that come at once get their first tokens, 32 tokens computed in each."""
    driver = prompts_driver(max_batch_tokens=32, itl_target=1000.0)
    requests = [
        make_request(f"r{i:02}", [i % 50] * size, 1, tenant=tenant) for i, (tenant, size) in enumerate(works)
    ]
    driver.add(*requests)
    ended: dict[str, int] = {}
    for step in range(1, 2000):
        if not driver.scheduler.has_work():
            break
        _, progress = driver.step()
        ended |= {one.request.id: step for one in progress if one.tokens}
    return [ended[request.id] for request in requests]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_turns_are_nothing_to_a_tenant_alone(sizes: list[int]) -> None:
    """Whoever is alone has its prompts computed in the order of their coming, as without turns."""
    driver = prompts_driver(max_sequences=4)
    turns = driver.scheduler._books.turns  # type: ignore[attr-defined]
    turns.due = turns.would_be_due = None
    turns.begin = turns.advance = lambda request, tokens: None
    driver.add(*(make_request(f"r{i:02}", [i % 50] * size, 3) for i, size in enumerate(sizes)))
    while driver.scheduler.has_work():
        driver.step()


# -- seats ---------------------------------------------------------------------------------------------


def test_a_tenant_with_thousands_of_prompts_keeps_nobody_waiting() -> None:
    driver = make_driver(max_sequences=16, num_blocks=4000)
    flood = several("a", 4096, max_tokens=2000)
    driver.add(*flood)
    driver.step()
    assert seated(flood) == 16
    late = several("b", 3)
    driver.add(*late)
    for number in range(1, 4):  # one seat for each patience
        steps_until(driver, lambda number=number: seated(late) == number, PATIENCE + 0.1)
    assert seated(flood) == 13
    driver.scheduler.check_integrity()


def test_seats_are_taken_over_until_both_hold_as_many_and_no_longer() -> None:
    driver = make_driver(max_sequences=7, num_blocks=9000)
    ours, theirs = several("a", 20, 4000), several("b", 20, 4000)
    driver.add(*ours)
    driver.step()
    driver.add(*theirs)
    steps_until(driver, lambda: seated(theirs) == 3, 4 * PATIENCE)
    given_way = sum(request.num_preemptions for request in ours)
    assert given_way == 3
    until = driver.now + 4 * PATIENCE
    while driver.now < until:
        driver.step()
        assert (seated(ours), seated(theirs)) == (4, 3)
    assert sum(request.num_preemptions for request in ours + theirs) == given_way


def test_a_lone_tenant_has_every_seat_and_never_gives_way() -> None:
    driver = make_driver()
    flood = several("a", 40, 30)
    driver.add(*flood)
    while driver.scheduler.has_work():
        batch, _ = driver.step()
        assert batch.num_sequences == 4
    assert not any(request.num_preemptions for request in flood)


def test_without_patience_a_seat_is_had_when_one_is_free() -> None:
    driver = make_driver(tenant_patience=math.inf)
    flood, late = several("a", 8, 200), several("b", 1)
    driver.add(*flood)
    driver.step()
    driver.add(*late)
    steps_until(driver, lambda: seated(late) == 1, 100.0)
    assert not any(request.num_preemptions for request in flood)
    assert len(driver.finished) >= 1


def test_an_urgent_class_gives_no_seat_to_a_patient_tenant_of_another() -> None:
    driver = make_driver(ageing_seconds=None)
    urgent, late = several("a", 8, 200), several("b", 1, priority=5)
    driver.add(*urgent)
    driver.step()
    driver.add(*late)
    while len(driver.finished) < 5:
        driver.step()
        assert len(driver.finished) > 4 or seated(late) == 0
    assert not any(request.num_preemptions for request in urgent)


def test_who_gave_way_goes_on_with_the_same_tokens() -> None:
    driver = make_driver(max_sequences=2, tenant_patience=0.0)
    requests = [*several("a", 4, 40), *several("b", 4, 40), *several("c", 4, 40)]
    for request in requests:
        driver.add(request)
        driver.step()
    driver.run()
    assert any(request.num_preemptions for request in requests)
    for request in requests:
        assert request.tokens[len(request.prompt) :] == reference_output(request)


@settings(max_examples=25, deadline=None)
@given(
    tenants=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 60), st.integers(3, 20)), min_size=2, max_size=5
    ),
    seats=st.integers(1, 9),
    blocks=st.integers(30, 200),
    share=st.sampled_from([1.0, 0.5, 0.2]),
)
def test_no_tenant_waits_for_a_first_seat_longer_than_its_patience(
    tenants: list[tuple[int, int, int]], seats: int, blocks: int, share: float
) -> None:
    """Whatever the others have sent before: as long as one of them holds two seats and there is memory."""
    driver = make_driver(max_sequences=seats, num_blocks=blocks, tenant_kv_share=share, max_model_len=90)
    lines: list[list[Request]] = []
    for number, (count, output, prompt) in enumerate(tenants):
        lines.append(several("abcde"[number], count, output, prompt))
        driver.add(*lines[-1])
        driver.step()
    waiting_since = dict.fromkeys(range(len(lines)), driver.now)
    slowest = 0.0
    while driver.scheduler.has_work():
        before = driver.now
        driver.step()
        driver.scheduler.check_integrity()
        slowest = max(slowest, driver.now - before)
        held = [seated(line) for line in lines]
        for number, line in enumerate(lines):
            waits = any(request.state is RequestState.WAITING for request in line)
            if held[number] or not waits or max(held) < 2 or driver.scheduler.pool.num_available < 30:
                waiting_since[number] = driver.now
            # Others may be due in the same moment: they come one after another, an iteration each at most.
            assert driver.now - waiting_since[number] <= PATIENCE + 8 * slowest + 0.1
    assert driver.finished.keys() == {request.id for line in lines for request in line}


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(2, 8), st.integers(1, 2), st.integers(10, 40))
def test_backlogged_tenants_get_their_share_of_seats_whatever_the_first_had(
    count: int, seats: int, times: int, output: int
) -> None:
    """Over many admissions each of them gets about as many as any other: equal requests, equal service."""
    driver = make_driver(max_sequences=seats, num_blocks=2000)
    lines = [several("abcd"[number], 16 * (times if number == 0 else 1), output) for number in range(count)]
    for line in lines:
        driver.add(*line)
        driver.step()
    ended: Counter[str] = Counter()
    while all(any(r.state is RequestState.WAITING for r in line) for line in lines):
        driver.step()
    for line in lines:
        ended[line[0].tenant] = sum(len(request.tokens) - len(request.prompt) for request in line)
    most, least = max(ended.values()), min(ended.values())
    assert most - least <= (2 * seats + 2) * (output + 3)


# -- memory --------------------------------------------------------------------------------------------


def held_blocks(driver: Driver, tenant: str) -> int:
    return driver.scheduler.pool.referenced_of(tenant)  # type: ignore[attr-defined]


def test_a_tenant_alone_fills_the_memory_whatever_its_share() -> None:
    driver = make_driver(num_blocks=100, max_sequences=16, tenant_kv_share=0.25)
    driver.add(*several("a", 20, 8, prompt=40))
    driver.step()
    assert held_blocks(driver, "a") > 75
    driver.run()


def test_memory_beyond_its_share_is_given_to_those_who_wait() -> None:
    """With seats alone nothing would be given: two against one are as equal as can be."""
    for share, gives in ((1.0, False), (0.3, True)):
        driver = make_driver(num_blocks=100, max_sequences=16, tenant_kv_share=share, tenant_patience=0.1)
        theirs = [make_request("b0", [7] * 4, 40, tenant="b"), make_request("b1", [8] * 96, 4, tenant="b")]
        driver.add(theirs[0], *several("a", 2, 100, prompt=148))
        for _ in range(3):
            driver.step()
        driver.add(theirs[1])
        until = driver.now + 0.15
        while driver.now < until and seated(theirs) < 2:
            driver.step()
        assert (seated(theirs) == 2) is gives
        assert (held_blocks(driver, "a") < 50) is gives
        driver.run()


def test_who_asks_for_more_than_a_share_waits_for_room_and_has_it_in_the_end() -> None:
    driver = make_driver(num_blocks=100, max_sequences=16, tenant_kv_share=0.25, tenant_patience=0.0)
    large = make_request("b", [8] * 200, 4, tenant="b")
    driver.add(*several("a", 9, 100, prompt=40))
    driver.step()
    driver.add(large)
    driver.run()
    assert large.num_preemptions == 0


def test_within_their_shares_others_go_first() -> None:
    driver = make_driver(num_blocks=100, max_sequences=16, tenant_kv_share=0.25, tenant_patience=math.inf)
    driver.add(*several("a", 3, 60, prompt=40))
    driver.step()
    more, theirs = several("aa", 0), several("b", 2, 4, prompt=60)
    more = [make_request(f"more{i}", [9] * 20, 4, tenant="a") for i in range(2)]
    driver.scheduler._queue.charge(theirs[0], input_tokens=10_000)  # type: ignore[attr-defined]
    driver.add(*more, *theirs)
    driver.step()
    assert seated(theirs) == 2
    driver.run()


# -- the line ------------------------------------------------------------------------------------------


def test_a_full_line_still_takes_those_who_have_less_than_their_share_in_it() -> None:
    driver = make_driver(max_queue_requests=10)
    flood = several("a", 14)
    driver.add(*flood[:4])
    driver.step()
    driver.add(*flood[4:])
    with pytest.raises(QueueFull):
        driver.add(*several("a9", 1)[:0], make_request("one more", [1], tenant="a"))
    others = several("b", 6)
    driver.add(*others[:5])
    with pytest.raises(QueueFull):
        driver.add(others[5])
    assert driver.scheduler.load().queued_requests == 15
    driver.run()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 30), st.booleans()), max_size=150),
    st.integers(1, 12),
    st.sampled_from([None, 40, 200]),
)
def test_the_line_is_bounded_and_nobody_with_less_than_a_share_is_kept_out(
    steps: list[tuple[str, int, bool]], bound: int, tokens_bound: int | None
) -> None:
    queue: FairQueue[Request] = FairQueue()
    for number, (tenant, size, leaves) in enumerate(steps):
        if leaves and len(queue):
            queue.take(next(iter(queue)), float(number))
        own, tenants = queue.backlog(tenant), {request.tenant for request in queue} | {tenant}
        full = queue.is_full_for(tenant, size, bound, tokens_bound)
        if len(queue) < bound and (tokens_bound is None or queue.num_tokens + size <= tokens_bound):
            assert not full
        if own.requests < bound // len(tenants) and (not own.requests or tokens_bound is None):
            assert not full
        if not full:
            queue.push(make_request(f"r{number}", [1], tenant=tenant), float(number), size)
        queue.check_integrity()
        assert len(queue) <= bound * sum(1 / n for n in range(1, 9))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(0, 20)), max_size=40),
    st.integers(1, 12),
)
def test_places_that_are_kept_count_as_if_somebody_waited_there(
    steps: list[tuple[str, int, int]], bound: int
) -> None:
    """Whether calls are queued at once or a request at a time between others: the same ones get in."""
    line: FairQueue[Request] = FairQueue()
    plain: FairQueue[Request] = FairQueue()
    left: list[Places] = []
    number = 0

    def come(places: Places) -> None:
        nonlocal number
        number += 1
        line.kept.give_back(places, 1)
        line.push(make_request(f"r{number}", [1], tenant=places.tenant), 0.0, 10)

    for tenant, requests, turns in steps:
        full = plain.is_full_for(tenant, 10 * requests, bound, None, requests)
        assert line.is_full_for(tenant, 10 * requests, bound, None, requests) == full
        if not full:
            left.append(line.kept.keep(tenant, requests, 10 * requests))
            for one in range(requests):
                plain.push(make_request(f"p{number}-{len(left)}-{one}", [1], tenant=tenant), 0.0, 10)
        for turn in range(turns):
            if waiting := [one for one in left if one.requests]:
                come(waiting[turn % len(waiting)])
        line.check_integrity()
        assert len(line) + line.kept.total.requests == len(plain)
        assert line.num_tokens + line.kept.total.tokens == plain.num_tokens
    for one in left:
        line.kept.give_back(one)
    assert (line.kept.total, line.kept.by_tenant) == (Backlog(), {})


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_a_call_gets_places_for_all_of_its_requests_or_for_none(batching: str) -> None:
    bound = SchedulerSettings(num_blocks=64, max_model_len=400, max_queue_requests=10, batching=batching)
    scheduler = schedulers.make_scheduler(bound, Costs())
    first = scheduler.keep_places("a", [(5, 5)] * 7)
    with pytest.raises(QueueFull, match="in 7 requests"):
        scheduler.keep_places("a", [(5, 5)] * 7)
    with pytest.raises(BadInput, match="brings 11 requests"):
        scheduler.keep_places("a", [(5, 5)] * 11)
    others = several("a", 4)
    for one in others[:3]:
        scheduler.add(one, 0.0)
    with pytest.raises(QueueFull):
        scheduler.add(others[3], 0.0)
    for one in several("x", 5):
        one.tenant = "a"
        scheduler.add(one, 0.0, first)
    assert scheduler.load().queued_requests == 8
    scheduler.give_back(first)
    scheduler.give_back(first)
    scheduler.add(others[3], 0.0)
    scheduler.check_integrity()


# -- what is counted -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_seats_are_those_of_plain_counting(steps: list[tuple[str, bool]]) -> None:
    seats, plain = Seats(), Counter[str]()
    for tenant, takes in steps:
        if takes:
            seats.take(tenant)
            plain[tenant] += 1
        elif plain[tenant]:
            seats.give_back(tenant)
            plain[tenant] -= 1
        seats.check_integrity({name: count for name, count in plain.items() if count})
        assert seats.most == max(plain.values(), default=0)
        assert seats.fullest is None or plain[seats.fullest] == seats.most
        assert all(seats.of(name) == plain[name] for name in "abcd")


def test_tenants_that_never_wait_leave_no_counters_behind() -> None:
    counters = VirtualTokenCounters()
    for number in range(3 * MAX_IDLE_TENANTS):
        counters.charge(f"t{number}", 1.0)
    assert len(counters._counters) == MAX_IDLE_TENANTS
    assert counters.counter(f"t{3 * MAX_IDLE_TENANTS - 1}") == 1.0
    counters.activate("t0")
    counters.deactivate("t0")
    assert len(counters._counters) == MAX_IDLE_TENANTS
