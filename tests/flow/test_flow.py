"""Flows as their users see them: parallel by data dependency, structured, ordinary outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.flow import (
    Budget,
    BudgetExceeded,
    FlowTimeout,
    NotDone,
    StepTimeout,
    flow,
    guess,
    step,
)
from weighbridge.flow.replay.virtual_time import Stuck, run_virtual

T = TypeVar("T")


def timed(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """Result and virtual seconds; nothing may be left running."""

    async def main() -> tuple[T, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        result = await work
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result, round(loop.time() - began, 6)

    return run_virtual(main())


@step(effect="read")
async def weather(city: str) -> str:
    await asyncio.sleep(0.3)
    return f"sun in {city}"


@step(effect="read")
async def flights(city: str) -> str:
    await asyncio.sleep(0.3)
    return f"flights to {city}"


@step(effect="pure")
async def synthesise(*parts: str) -> str:
    await asyncio.sleep(0.2)
    return "; ".join(parts)


async def trip_plain(city: str) -> str:
    sky = weather(city)
    ways = flights(city)
    return await synthesise(await sky, await ways)


def test_steps_and_guesses_are_ordinary_outside_a_flow() -> None:
    async def main() -> str:
        return await guess(weather("Oslo"))

    assert timed(main()) == ("sun in Oslo", 0.3)
    assert timed(trip_plain("Oslo"))[1] == 0.8


def test_a_decorator_makes_it_parallel() -> None:
    assert timed(flow(trip_plain)("Oslo")) == ("sun in Oslo; flights to Oslo", 0.5)


def test_a_promise_passed_to_a_step_is_an_edge() -> None:
    @flow
    async def trip(city: str) -> str:
        return await synthesise(weather(city), flights(city))  # type: ignore[arg-type]

    assert timed(trip("Oslo")) == ("sun in Oslo; flights to Oslo", 0.5)


def test_promises_inside_lists_are_edges_too() -> None:
    @step(effect="pure")
    async def join(parts: list[str]) -> str:
        return "+".join(parts)

    @flow
    async def trip() -> str:
        return await join([weather(c) for c in "ab"])  # type: ignore[misc]

    assert timed(trip()) == ("sun in a+sun in b", 0.3)


def test_no_barrier_between_chains() -> None:
    @step(effect="pure")
    async def wait(seconds: float, after: Any = None) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @flow
    async def two_chains() -> None:
        slow, quick = wait(5.0, wait(1.0)), wait(1.0, wait(5.0))
        await slow
        await quick

    assert timed(two_chains())[1] == 6.0


def test_sync_callers_run() -> None:
    @step(effect="pure")
    async def double(n: int) -> int:
        return 2 * n

    @flow
    async def twice(n: int) -> int:
        return await double(await double(n))

    assert twice.run(3) == 12


def test_identical_calls_in_flight_are_one() -> None:
    ran = []

    @step(effect="read")
    async def look(key: str) -> str:
        ran.append(key)
        await asyncio.sleep(1)
        return key

    @flow
    async def both() -> str:
        one, two = look("k"), look("k")
        return await one + await two + await look("k")

    assert timed(both()) == ("kkk", 2.0)
    assert ran == ["k", "k"], "the third call was made after the first two had ended: it looks again"


def test_a_guess_overlaps_what_follows_and_writes_wait() -> None:
    sent: list[tuple[str, float]] = []

    @step(effect="pure")
    async def classify(question: str) -> str:
        await asyncio.sleep(1)
        return "refund"

    @step(effect="read")
    async def rules(intent: str) -> str:
        await asyncio.sleep(1)
        return f"rules of {intent}"

    @step
    async def send(text: str) -> str:
        sent.append((text, asyncio.get_running_loop().time()))
        return text

    def support(predicted: str) -> Any:
        @flow
        async def body(question: str) -> str:
            intent = await guess(classify(question), by=lambda _: predicted)
            return await send(await rules(intent))

        return body

    assert timed(support("refund")("q")) == ("rules of refund", 1.0)
    assert sent.pop() == ("rules of refund", 1.0)
    lie = support("spam")
    assert timed(lie("q")) == ("rules of refund", 2.0)
    assert sent.pop() == ("rules of refund", 2.0)
    assert not sent
    assert [span.status for span in lie.last.spans] == ["committed", "shadow", "committed", "committed"]
    assert "lost" in lie.explain()


def test_a_guess_as_an_edge_does_not_block_the_body() -> None:
    @step(effect="pure")
    async def wait(seconds: float, value: int, after: int = 0) -> int:
        await asyncio.sleep(seconds)
        return value

    @flow
    async def body() -> int:
        first = wait(2.0, 1)
        second = wait(2.0, 2, guess(first, by=lambda *_: 1))  # type: ignore[arg-type]
        third = wait(2.0, 3, guess(second, by=lambda *_: 2))  # type: ignore[arg-type]
        return await third

    assert timed(body()) == (3, 2.0)


def test_guesses_in_a_loop_nest() -> None:
    @step(effect="pure")
    async def following(n: int) -> int:
        await asyncio.sleep(1)
        return n + 1

    @flow
    async def count() -> int:
        n = 0
        for _ in range(10):
            n = await guess(following(n), by=lambda n: n + 1)
        return n

    result, seconds = timed(count())
    assert result == 10
    assert seconds <= 2.0
    assert count.last is not None
    assert count.last.outcomes()["lost"] == 0


def test_history_learns_to_predict() -> None:
    @step(effect="pure")
    async def classify(question: str) -> str:
        await asyncio.sleep(1)
        return "refund"

    @step(effect="read")
    async def rules(intent: str) -> str:
        await asyncio.sleep(1)
        return intent

    @flow
    async def support(question: str) -> str:
        return await rules(await guess(classify(question)))

    first = timed(support("a"))
    assert first == ("refund", 2.0)
    later = timed(support("b"))
    assert later == ("refund", 1.0)


def test_remote_steps_start_early_only_by_opt_in() -> None:
    @step(effect="pure")
    async def think() -> int:
        await asyncio.sleep(1)
        return 1

    def asking(**options: Any) -> Any:
        @step(effect="remote", **options)
        async def ask(n: int) -> int:
            await asyncio.sleep(1)
            return n

        @flow
        async def body() -> int:
            return await ask(await guess(think(), by=lambda: 1))

        return body

    assert timed(asking()())[1] == 2.0
    assert timed(asking(speculate=True)())[1] == 1.0


def test_effects_keep_their_order() -> None:
    log: list[str] = []

    @step(effect="read", resource="table")
    async def look() -> str:
        await asyncio.sleep(1)
        log.append("look")
        return "seen"

    @step(resource="table")
    async def change(text: str) -> None:
        await asyncio.sleep(0.5)
        log.append(text)

    @step(resource="mail")
    async def mail() -> None:
        log.append("mail")

    @flow
    async def body() -> None:
        look()
        change("first")
        change("second")
        mail()
        await look()

    assert timed(body())[1] == 3.0
    assert log == ["mail", "look", "first", "second", "look"]


def test_a_failed_write_that_nobody_awaited_is_not_lost() -> None:
    @step
    async def save() -> None:
        raise ValueError("disk full")

    @flow
    async def body() -> int:
        save()
        return 1

    with pytest.raises(ValueError, match="disk full"):
        timed(body())


def test_undo_takes_back_in_reverse_when_the_flow_fails() -> None:
    log: list[str] = []

    async def cancel(booking: str) -> None:
        log.append(f"cancel {booking}")

    @step(effect="undo", undo=cancel)
    async def book(what: str) -> str:
        log.append(f"book {what}")
        return what

    @flow
    async def trip() -> None:
        await book("hotel")
        await book("flight")
        raise RuntimeError("card refused")

    with pytest.raises(RuntimeError, match="card refused"):
        timed(trip())
    assert log == ["book hotel", "book flight", "cancel flight", "cancel hotel"]


def test_retries_time_out_and_give_up() -> None:
    tries: list[float] = []

    @step(effect="read", timeout=1.0, retries=2)
    async def hangs() -> None:
        tries.append(asyncio.get_running_loop().time())
        await asyncio.sleep(60)

    @flow
    async def body() -> None:
        await hangs()

    with pytest.raises(StepTimeout, match=r"hangs took longer than its timeout of 1 s"):
        timed(body())
    assert len(tries) == 3


def test_a_write_is_tried_again_only_when_it_says_it_did_nothing() -> None:
    tries: list[str] = []

    @step(retries=3)
    async def pay(error: str) -> str:
        tries.append(error)
        if len(tries) > 1:
            return "paid"
        raise NotDone("busy") if error == "not done" else ValueError("unclear")

    @flow
    async def body(error: str) -> str:
        return await pay(error)

    assert timed(body("not done"))[0] == "paid"
    tries.clear()
    with pytest.raises(ValueError, match="unclear"):
        timed(body("unclear"))
    assert len(tries) == 1


def test_budgets_stop_a_flow() -> None:
    @step(effect="pure", usd=0.04)
    async def costly(n: int) -> int:
        await asyncio.sleep(1)
        return n

    @flow(budget=Budget(usd=0.1))
    async def spend() -> None:
        for n in range(5):
            await costly(n)

    with pytest.raises(BudgetExceeded, match=r"spent \$0.08 of its budget of \$0.1"):
        timed(spend())

    @flow(budget=Budget(seconds=1.5))
    async def dawdle() -> None:
        for n in range(5):
            await costly(n)

    with pytest.raises(FlowTimeout, match=r"budget of 1.5 s"):
        timed(dawdle())


def test_limits_bound_what_runs_at_once_and_bets_make_way() -> None:
    running, most = 0, 0

    @step(effect="read", resource="api")
    async def ask(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(1)
        finally:
            running -= 1
        return n

    @flow(limits={"api": 2})
    async def many() -> int:
        return sum([await one for one in [ask(n) for n in range(6)]])

    assert timed(many()) == (15, 3.0)
    assert most == 2

    @step(effect="pure")
    async def think() -> int:
        await asyncio.sleep(0.5)
        return 1

    @flow(limits={"api": 1})
    async def wrong() -> int:
        n = await guess(think(), by=lambda: 99)
        return await ask(n)

    assert timed(wrong()) == (1, 1.5), "the shadow's call held the only place and had to leave it"


def test_a_bet_that_had_to_make_way_and_was_right_is_done_again() -> None:
    @step(effect="read", resource="api")
    async def look(n: int) -> int:
        await asyncio.sleep(2)
        return n

    @step(resource="api")
    async def send(n: int) -> int:
        await asyncio.sleep(1)
        return n

    @flow(limits={"api": 1})
    async def body() -> int:
        sent = await guess(send(look(1)), by=lambda _: 1)  # type: ignore[arg-type]
        return await think(sent)

    @step(effect="pure", resource="api")
    async def think(n: int) -> int:
        await asyncio.sleep(3)
        return n

    assert timed(body()) == (1, 6.0), "it had the slot when the write came, and lost it"
    assert [span.status for span in body.last.spans].count("cancelled") == 1  # type: ignore[union-attr]


def test_a_flow_inside_a_flow_is_part_of_it() -> None:
    @flow
    async def inner(city: str) -> str:
        return await weather(city)

    @flow
    async def outer() -> str:
        sky = weather("a")
        return await inner("b") + await sky

    assert timed(outer())[1] == 0.3
    assert inner.last is None


def test_cache_keeps_results_between_runs() -> None:
    ran = []

    @step(effect="read", cache=10)
    async def look(key: str) -> str:
        ran.append(key)
        return key

    @flow
    async def body() -> str:
        return await look("k")

    async def main() -> None:
        await body()
        await body()
        assert ran == ["k"]
        await asyncio.sleep(11)
        await body()
        assert ran == ["k", "k"]

    run_virtual(main())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: step(effect="wrote")(weather.function), "effect='wrote' must be one of"),
        (lambda: step(timeout=0)(weather.function), "timeout=0 must be more than 0"),
        (lambda: step(hedge=0.1)(weather.function), "never hedged"),
        (lambda: step(effect="undo")(weather.function), "undo=function belong together"),
        (lambda: step(lambda: 1), "must be an async function"),
        (lambda: flow(lambda: 1), "must be an async function"),
        (lambda: flow(limits={"x": 0})(trip_plain), "must be a number, 1 or more"),
        (lambda: flow(mode="fast")(trip_plain), "must be one of sequential"),
    ],
)
def test_bad_declarations_say_what_to_change(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


def test_a_step_may_not_hide_a_stronger_effect() -> None:
    @step
    async def send() -> None: ...

    @step(effect="read")
    async def sneaky() -> None:
        await send()

    @flow
    async def body() -> None:
        await sneaky()

    with pytest.raises(BadInput, match="declare effect='write' on sneaky"):
        timed(body())


def test_a_step_that_cancels_itself_is_an_error() -> None:
    @step(effect="pure")
    async def odd() -> None:
        raise asyncio.CancelledError

    @flow
    async def body() -> None:
        await odd()

    with pytest.raises(WeighbridgeError, match="cancelled from inside"):
        timed(body())


def test_virtual_time_says_when_nothing_can_happen() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck):
        run_virtual(main())


@pytest.mark.parametrize("limit_us", [500, pytest.param(50, marks=pytest.mark.proof)])
def test_a_thousand_trivial_steps_are_cheap(limit_us: int) -> None:
    @step(effect="pure")
    async def trivial(n: int) -> int:
        return n

    @flow
    async def many() -> None:
        for n in range(1000):
            await trivial(n)

    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        many.run()
        seconds.append(time.perf_counter() - began)
    assert min(seconds) * 1e3 < limit_us, f"{min(seconds) * 1e3:.0f} us a step"
