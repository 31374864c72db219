"""A resumed run sees what it saw before in the same order, or it stops before it does anything."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.flow import (
    Diverged,
    Flow,
    InDoubt,
    NotDone,
    StepTimeout,
    first,
    flow,
    recorded,
    step,
)
from weighbridge.flow.journal.order import RecordedOrder
from weighbridge.flow.replay.virtual_time import run_virtual


class Crash(BaseException):
    """Stands for the end of the process."""


class Shop:
    """Sellers that take some seconds to quote, and a record of what was bought."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.bought: list[str] = []
        self.asked: list[str] = []

        @step(effect="read", name="quote")
        async def quote(seller: str) -> str:
            self.asked.append(seller)
            await asyncio.sleep(self.seconds[seller])
            return seller

        @step(name="buy")
        async def buy(seller: str) -> str:
            self.bought.append(seller)
            return seller

        @step(effect="read", name="after")
        async def after() -> str:
            await asyncio.sleep(1)
            return "after"

        self.quote, self.buy, self.after = quote, buy, after


Body = Callable[[Shop], Awaitable[str]]


async def by_as_completed(shop: Shop) -> str:
    for quote in asyncio.as_completed([shop.quote("a"), shop.quote("b"), shop.quote("c")]):
        return await quote
    raise AssertionError


async def by_queue(shop: Shop) -> str:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def feed(seller: str) -> None:
        await queue.put(await shop.quote(seller))

    feeding = [asyncio.create_task(feed(seller)) for seller in "abc"]
    got = await queue.get()
    await asyncio.gather(*feeding)
    return got


async def by_callback(shop: Shop) -> str:
    order: list[str] = []
    tasks = []
    for seller in "abc":
        task = asyncio.ensure_future(_value(shop.quote(seller)))
        task.add_done_callback(lambda done: order.append(done.result()))
        tasks.append(task)
    await asyncio.wait(tasks)
    await asyncio.sleep(0)
    return order[0]


async def by_wait(shop: Shop) -> str:
    tasks = {asyncio.ensure_future(_value(shop.quote(seller))) for seller in "abc"}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


async def by_timeout(shop: Shop) -> str:
    """The first seller gets a second, then the next one is asked."""
    for seller in "ab":
        try:
            return await asyncio.wait_for(_value(shop.quote(seller)), 1.5)
        except TimeoutError:
            continue
    return await shop.quote("c")


async def by_race(shop: Shop) -> str:
    return await first(shop.quote("a"), shop.quote("b"), shop.quote("c"))


async def _value(call: Awaitable[str]) -> str:
    return await call


WAYS: list[Body] = [by_as_completed, by_queue, by_callback, by_wait, by_timeout, by_race]
SPEEDS = [dict(zip("abc", seconds, strict=True)) for seconds in [(3, 2, 1), (2, 1, 3), (1, 2, 3), (1, 3, 2)]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", SPEEDS)
@pytest.mark.parametrize("later", [0.0, 2.5])
def test_what_was_bought_is_not_bought_again_when_others_are_quicker(
    tmp_path: Path, way: Body, before: dict[str, float], later: float
) -> None:
    """The process dies after the purchase, at once or when all have answered; then everybody answers in reverse."""
    shop, crashes = Shop(before), True

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> str:
        chosen = await way(shop)
        got = await shop.buy(chosen)
        if crashes:
            await asyncio.sleep(later)
            raise Crash
        return f"{got} {await shop.after()}"

    with pytest.raises(Crash):
        run_virtual(body())
    assert len(shop.bought) == 1
    chosen = shop.bought[0]
    crashes = False
    shop.seconds = {seller: 4.0 - seconds for seller, seconds in before.items()}
    assert run_virtual(body()) == f"{chosen} after"
    assert shop.bought == [chosen]
    assert run_virtual(body()) == f"{chosen} after"


@pytest.mark.parametrize("tasks", [1, 40])
def test_many_calls_side_by_side_are_seen_in_their_order(tmp_path: Path, tasks: int) -> None:
    rng = random.Random(7)
    seconds = {n: rng.uniform(0.1, 9) for n in range(tasks)}
    ran: list[int] = []
    orders: list[list[int]] = []
    crashes = True

    @step(effect="read", name="ask")
    async def ask(n: int) -> int:
        ran.append(n)
        await asyncio.sleep(seconds[n])
        return n

    @step(name="note")
    async def note(order: list[int]) -> None:
        pass

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> None:
        order: list[int] = []

        async def one(n: int) -> None:
            order.append(await ask(n))

        await asyncio.gather(*(one(n) for n in range(tasks)))
        orders.append(order)
        await note(order)
        if crashes:
            raise Crash

    with pytest.raises(Crash):
        run_virtual(body())
    crashes = False
    run_virtual(body())
    assert orders[0] == orders[1] == sorted(seconds, key=lambda n: seconds[n])
    assert len(ran) == tasks


def run_twice(
    tmp_path: Path, body: Callable[[], Coroutine[Any, Any, Any]], again: Callable[[], None]
) -> Flow[[], Any]:
    """Crash in the first life; return the flow to be resumed."""
    journaled: Flow[[], Any] = Flow(body, journal=tmp_path / "j.sqlite", run_id="r1", name="body")
    with pytest.raises(Crash):
        run_virtual(journaled())
    again()
    return journaled


def test_a_flow_that_goes_another_way_stops_before_it_does_anything(tmp_path: Path) -> None:
    """It draws a number, as a body should not."""
    shop, drawn = Shop({}), iter("abc")
    crashes = True

    async def body() -> None:
        await shop.buy(next(drawn))
        if crashes:
            raise Crash

    def again() -> None:
        nonlocal crashes
        crashes = False

    journaled = run_twice(tmp_path, body, again)
    with pytest.raises(Diverged, match="buy has happened and was not called again; so buy was not started"):
        run_virtual(journaled())
    assert shop.bought == ["a"]


def test_a_flow_that_ends_without_what_it_had_done_says_so(tmp_path: Path) -> None:
    shop, goes_on = Shop({}), True

    async def body() -> None:
        if goes_on:
            await shop.buy("a")
            raise Crash

    def again() -> None:
        nonlocal goes_on
        goes_on = False

    journaled = run_twice(tmp_path, body, again)
    with pytest.raises(Diverged, match="was not called again before the flow ended"):
        run_virtual(journaled())


def test_a_new_write_waits_for_one_that_comes_again_later(tmp_path: Path) -> None:
    """Two tasks: what one had waited for is there at once in the second life, so that it would be early."""
    done: list[str] = []
    crashes = True

    @step(effect="read", name="look")
    async def look() -> int:
        await asyncio.sleep(4)
        return 1

    @step(name="one", resource="one")
    async def one() -> None:
        done.append("one")

    @step(name="two", resource="two")
    async def two() -> None:
        done.append("two")

    async def body() -> None:
        async def left() -> None:
            await asyncio.sleep(5)
            await one()
            if crashes:
                raise Crash

        async def right() -> None:
            await look()
            await asyncio.sleep(2)
            await two()

        await asyncio.gather(left(), right())

    def again() -> None:
        nonlocal crashes
        crashes = False

    journaled = run_twice(tmp_path, body, again)
    assert done == ["one"]
    run_virtual(journaled())
    assert done == ["one", "two"]


@pytest.mark.parametrize("error", [ValueError("sold out"), KeyError("a", 3), OSError(2, "gone")])
def test_an_error_that_a_purchase_rests_on_is_seen_again(tmp_path: Path, error: Exception) -> None:
    shop, fails = Shop({"a": 1.0, "b": 1.0}), True
    seen: list[Exception] = []

    @step(effect="read", name="stock")
    async def stock() -> str:
        if fails:
            raise error
        return "a"

    async def body() -> None:
        try:
            seller = await stock()
        except type(error) as found:
            seen.append(found)
            seller = "b"
        await shop.buy(seller)
        if fails:
            raise Crash

    def again() -> None:
        nonlocal fails
        fails = False

    journaled = run_twice(tmp_path, body, again)
    run_virtual(journaled())
    assert shop.bought == ["b"]
    assert [(type(one), one.args) for one in seen] == [(type(error), error.args)] * 2


def test_an_error_that_nothing_rests_on_is_tried_again(tmp_path: Path) -> None:
    shop, fails = Shop({}), True

    @step(effect="read", name="stock")
    async def stock() -> str:
        if fails:
            raise ValueError("not now")
        return "b"

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> None:
        await shop.buy("a")
        await shop.buy(await stock())

    with pytest.raises(ValueError, match="not now"):
        run_virtual(body())
    fails = False
    run_virtual(body())
    assert shop.bought == ["a", "b"]


def test_a_write_that_was_not_done_is_not_done_later_when_the_flow_took_another_way(tmp_path: Path) -> None:
    shop, full = Shop({}), True

    @step(name="reserve")
    async def reserve() -> str:
        if full:
            raise NotDone("no room")
        shop.bought.append("reserved")
        return "reserved"

    async def body() -> None:
        try:
            await reserve()
        except NotDone:
            await shop.buy("elsewhere")
        if full:
            raise Crash

    def again() -> None:
        nonlocal full
        full = False

    journaled = run_twice(tmp_path, body, again)
    run_virtual(journaled())
    assert shop.bought == ["elsewhere"]


def test_a_step_that_timed_out_times_out_again(tmp_path: Path) -> None:
    shop, slow = Shop({}), True

    @step(effect="read", timeout=1, name="ask")
    async def ask() -> str:
        await asyncio.sleep(5 if slow else 0)
        return "a"

    async def body() -> None:
        try:
            seller = await ask()
        except StepTimeout:
            seller = "b"
        await shop.buy(seller)
        if slow:
            raise Crash

    def again() -> None:
        nonlocal slow
        slow = False

    journaled = run_twice(tmp_path, body, again)
    run_virtual(journaled())
    assert shop.bought == ["b"]


def test_clocks_random_numbers_and_queues_are_recorded(tmp_path: Path) -> None:
    shop, crashes = Shop({}), True
    numbers = iter([0.25, 0.75])
    queue: asyncio.Queue[str] = asyncio.Queue()
    queue.put_nowait("x")
    queue.put_nowait("y")

    async def body() -> list[Any]:
        drawn = await recorded(lambda: next(numbers), "drawn")
        got = await recorded(queue.get)
        await shop.buy(f"{drawn} {got}")
        if crashes:
            raise Crash
        return [drawn, got]

    def again() -> None:
        nonlocal crashes
        crashes = False

    journaled = run_twice(tmp_path, body, again)
    assert run_virtual(journaled()) == [0.25, "x"]
    assert shop.bought == ["0.25 x"]
    assert queue.qsize() == 1


LIVES = iter(range(10**6))
ORDERS = [list(order) for order in permutations("abcdef")]
#: What a body may look at beside its steps; each differs from life to life.
OUTSIDE: dict[str, Callable[[], Any]] = {
    "uuid4": lambda: uuid.uuid4().hex,
    "the clock": time.time_ns,
    "a date": lambda: datetime.now(UTC).isoformat(),
    "a random number": random.SystemRandom().random,
    "a secret": lambda: secrets.token_hex(8),
    "the order of a set": lambda: ORDERS[next(LIVES) % len(ORDERS)],
    "the process": lambda: next(LIVES),
}


@pytest.mark.parametrize("looks_at", OUTSIDE)
@pytest.mark.parametrize("where", ["purchase", "quote", "task", "caught"])
def test_what_is_not_recorded_stops_a_resumed_run_before_it_buys_again(
    tmp_path: Path, looks_at: str, where: str
) -> None:
    observe, bought, crashes = OUTSIDE[looks_at], [], True

    @step(effect="read", name="quote")
    async def quote(of: Any) -> str:
        return f"quote of {of}"

    @step(name="buy")
    async def buy(what: Any) -> str:
        bought.append(what)
        return "bought"

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> str:
        if where == "quote":
            got = await buy(await quote(observe()))
        elif where == "task":
            got = await asyncio.create_task(_value(buy(observe())))
        else:
            try:
                got = await buy(observe())
            except Exception:
                if where != "caught":
                    raise
                got = await buy("something else")
        if crashes:
            raise Crash
        return got

    with pytest.raises(Crash):
        run_virtual(body())
    crashes = False
    for _ in range(2):
        with pytest.raises(Diverged):
            run_virtual(body())
    assert len(bought) == 1


def test_outside_a_flow_recorded_is_what_it_is_given() -> None:
    async def main() -> tuple[int, str]:
        async def later() -> str:
            return "b"

        return await recorded(lambda: 1), await recorded(later)

    assert asyncio.run(main()) == (1, "b")


def test_a_write_in_doubt_stays_so_whatever_the_order(tmp_path: Path) -> None:
    shop = Shop({"a": 1.0, "b": 2.0})

    @step(name="send")
    async def send() -> None:
        shop.bought.append("sent")
        raise ValueError("the line went dead")

    @flow(journal=tmp_path / "j.sqlite", run_id="r1")
    async def body() -> None:
        await asyncio.gather(_value(shop.quote("b")), _value(shop.quote("a")))
        await send()

    with pytest.raises(ValueError, match="went dead"):
        run_virtual(body())
    with pytest.raises(InDoubt):
        run_virtual(body())
    assert shop.bought == ["sent"]


# -- the core ------------------------------------------------------------------------------------------------


@given(st.data())
def test_recorded_results_come_in_their_order_and_others_after_them(data: st.DataObject) -> None:
    recorded_keys = [str(n) for n in range(data.draw(st.integers(0, 6)))]
    others = [f"new {n}" for n in range(data.draw(st.integers(0, 4)))]
    arriving = data.draw(st.permutations(recorded_keys + others))
    gone = data.draw(st.sets(st.sampled_from(recorded_keys))) if recorded_keys else set()
    order, seen = RecordedOrder(recorded_keys), list[str]()
    for key in arriving:
        if key in gone:
            order.let_go(key)
        else:
            order.arrives(key, lambda key=key: seen.append(key))  # type: ignore[misc]
        while (go_on := order.take()) is not None:
            go_on()
    assert order.next_key is None
    assert seen == [key for key in recorded_keys if key not in gone]
    for go_on in order.rest():
        go_on()
    assert seen[len(recorded_keys) - len(gone) :] == [key for key in arriving if key in others]
