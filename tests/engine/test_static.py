"""The baseline keeps the rules of classic static batching: no worse, and no better."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.fake_model import Costs, Driver, check_embedding, make_request, reference_output
from weighbridge.engine.request import FinishReason, Request
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
from weighbridge.engine.schedule.static import StaticScheduler
from weighbridge.errors import BadInput, DeadlineMissed, NeverFits


def make_driver(batch_size: int = 4, timeout: float = 1.0, **options: int) -> Driver:
    defaults = {"max_model_len": 200, "num_blocks": 300, "block_size": 4}
    return Driver(StaticScheduler(SchedulerSettings(**(defaults | options)), Costs(), batch_size, timeout))


def test_a_batch_starts_when_it_is_full() -> None:
    driver = make_driver(batch_size=2)
    driver.add(make_request("a", [1, 2]))
    assert not driver.schedule().slices
    assert driver.scheduler.wake_at() == 1.0
    driver.add(make_request("b", [1, 2]))
    assert [s.request.id for s in driver.schedule().slices] == ["a", "b"]


def test_a_batch_starts_when_its_first_request_waited_long_enough() -> None:
    driver = make_driver(batch_size=2)
    driver.add(make_request("a", [1, 2]))
    driver.now = 0.99
    assert not driver.schedule().slices
    driver.now = 1.0
    assert [s.request.id for s in driver.schedule().slices] == ["a"]


def test_the_prompts_run_as_a_padded_rectangle_and_all_sample_at_its_end() -> None:
    driver = make_driver(batch_size=3, max_batch_tokens=12)
    driver.add(*(make_request(name, [1] * length, 1) for name, length in (("a", 2), ("b", 9), ("c", 6))))
    batches = [driver.step()[0] for _ in range(3)]
    assert [batch.num_tokens for batch in batches] == [12, 12, 3]  # 3 rows x 9 columns
    assert [[(s.request.id, s.count, s.padding) for s in batch.slices] for batch in batches] == [
        [("b", 4, 4), ("c", 1, 3)],  # b carries the padding of a's row, which has no token here
        [("a", 1, 3), ("b", 4, 0), ("c", 4, 0)],
        [("a", 1, 0), ("b", 1, 0), ("c", 1, 0)],
    ]
    assert [s.samples for batch in batches for s in batch.slices] == [False] * 5 + [True] * 3


def test_nobody_leaves_or_joins_before_the_longest_member_is_done() -> None:
    driver = make_driver(batch_size=2)
    driver.add(make_request("short", [1, 2], 2), make_request("long", [1, 2], 9))
    driver.add(make_request("next", [1, 2], 1), make_request("next too", [1, 2], 1))
    widths = [driver.step()[0].num_sequences for _ in range(9)]
    assert widths == [2] * 9
    assert driver.finished == {"short": FinishReason.LENGTH, "long": FinishReason.LENGTH}
    assert [s.request.id for s in driver.schedule().slices] == ["next", "next too"]


def test_tokens_are_delivered_as_they_come() -> None:
    driver = make_driver(batch_size=1)
    request = make_request("a", [1, 2], 3)
    driver.add(request)
    assert [item.tokens for _ in range(3) for item in driver.step()[1]] == [
        [token] for token in reference_output(request)
    ]


def test_every_seat_reserves_the_longest_sequence() -> None:
    driver = make_driver(batch_size=4, num_blocks=12, max_model_len=24)
    driver.add(*(make_request(f"r{i}", [1], 2) for i in range(4)))
    # 24 - 1 tokens are 6 blocks: two seats fill the pool, although each request needs a single block.
    assert driver.schedule().num_sequences == 2
    assert driver.scheduler.load().running_requests == 2
    assert driver.scheduler.load().kv_blocks_used == 12


def test_a_pool_for_less_than_the_longest_sequence_is_one_seat() -> None:
    driver = make_driver(batch_size=4, num_blocks=4)
    driver.add(make_request("a", [1] * 10, 7), make_request("b", [1] * 10, 7))
    assert [driver.step()[0].num_sequences for _ in range(14)] == [1] * 14
    assert len(driver.finished) == 2


def test_an_idle_seat_stays_inside_the_context() -> None:
    driver = make_driver(batch_size=2, max_model_len=40)
    driver.add(make_request("a", [1] * 30, 5), make_request("b", [1] * 5, 30))
    batches = []
    while driver.scheduler.has_work():
        batches.append(driver.step()[0])  # the driver checks every position against the context
    assert [batch.num_sequences for batch in batches] == [2] * 30
    assert max(s.start for batch in batches for s in batch.slices) == 39  # the last of 40


def test_a_client_that_left_still_keeps_its_seat_busy() -> None:
    driver = make_driver(batch_size=2)
    driver.add(make_request("a", [1, 2], 5), make_request("b", [1, 2], 5))
    driver.step()
    batch = driver.schedule()
    driver.abort("a")  # while it is computed
    assert [item.request.id for item in driver.complete(batch)] == ["b"]
    assert driver.step()[0].num_sequences == 2
    driver.abort("b")
    assert driver.scheduler.load().kv_blocks_used == 0
    assert not driver.scheduler.has_work()


def test_refusals_are_those_of_the_continuous_scheduler() -> None:
    driver = make_driver(num_blocks=4)
    with pytest.raises(NeverFits, match="need 5 KV blocks"):
        driver.add(make_request("a", [1] * 10, 8))
    with pytest.raises(BadInput):
        StaticScheduler(driver.scheduler.settings, Costs(), 0, 1.0)


def accepted(driver: Driver, request: Request) -> bool:
    """Add `request`; False when its deadline cannot be met and it is refused."""
    try:
        driver.add(request)
    except DeadlineMissed:
        return False
    return True


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_outputs_are_right_and_everything_returns_to_zero(data: st.DataObject) -> None:
    driver = make_driver(
        batch_size=data.draw(st.integers(1, 5)),
        timeout=data.draw(st.sampled_from([0.0, 0.05])),
        num_blocks=data.draw(st.integers(10, 60)),
        max_batch_tokens=data.draw(st.integers(1, 40)),
        max_model_len=40,
    )
    requests = [
        make_request(
            f"r{i}",
            [1] * data.draw(st.integers(1, 20)),
            data.draw(st.integers(1, 20)),
            seed=i,
            stops=data.draw(st.booleans()),
            deadline=data.draw(st.sampled_from([None, None, 0.2])),
            embeds=data.draw(st.sampled_from([False, False, True])),
        )
        for i in range(data.draw(st.integers(1, 12)))
    ]
    requests = [request for request in requests if accepted(driver, request)]
    left = data.draw(st.sets(st.integers(0, 11)))
    failing = data.draw(st.sets(st.integers(0, 11), max_size=2))
    driver.model.fail.update(f"r{i}" for i in failing)
    waiting = data.draw(st.sets(st.integers(0, 11), max_size=3))
    for turn in range(10_000):
        if not driver.scheduler.has_work():
            break
        batch = driver.schedule()
        if turn in left:
            driver.abort(f"r{turn}")
        if turn % 2:
            driver.model.defer.update(f"r{i}" for i in waiting)
        driver.complete(batch)
        driver.scheduler.check_integrity()
        if not batch.slices:
            driver.now = max(driver.now, driver.scheduler.wake_at() or 0.0)
    load = driver.scheduler.load()
    assert driver.finished.keys() == {request.id for request in requests}
    assert (load.queued_requests, load.queued_tokens, load.running_requests, load.kv_blocks_used) == (
        0,
        0,
        0,
        0,
    )
    for request in requests:
        if request.embeds:
            check_embedding(driver, request)
            continue
        output = request.tokens[request.num_prompt_tokens :]
        expected = reference_output(request, 40)
        complete = request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert output == (expected if complete else expected[: len(output)])
