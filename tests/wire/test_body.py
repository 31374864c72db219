"""Bodies are read by several threads at once, from the first one on, by turns, and within a bound."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from weighbridge.wire.body import BodyRoom
from weighbridge.wire.readers import ReaderThreads, Turns, whose

AT_ONCE = """
from __future__ import annotations
import sys, threading
import msgspec
from weighbridge.wire.body import decode

sys.setswitchinterval(1e-6)
for number in range(100):
    class Inner(msgspec.Struct):
        field: int | None = None
        other: list[str] | None = None

    class Kind(msgspec.Struct):
        part: Inner | None = None
        parts: list[Inner] | None = None
        many: dict[str, Inner] | None = None

    ready, found = threading.Barrier(4), []

    def read() -> None:
        ready.wait()
        found.append(decode(b'{"part": {"field": 1}}', Kind))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.part.field for one in found] == [1] * 4
"""


def test_a_type_that_several_threads_meet_at_once_crashes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=40)


@given(st.lists(st.tuples(SIZES, st.booleans()), min_size=2, max_size=4))
def test_callers_who_always_have_work_get_the_same_whether_they_send_all_at_once_or_one_by_one(
    callers: list[tuple[list[int], bool]],
) -> None:
    turns: Turns[tuple[str, int]] = Turns()
    left, served = {}, dict.fromkeys(map(str, range(len(callers))), 0)
    for number, (sizes, at_once) in enumerate(callers):
        for size in sizes if at_once else sizes[:1]:
            turns.add(str(number), size, (str(number), size))
        left[str(number)] = [] if at_once else sizes[1:]
    works = sum(len(sizes) for sizes, _ in callers)
    unserved = {str(number): len(sizes) for number, (sizes, _) in enumerate(callers)}
    for _ in range(works):
        found = turns.take()
        assert found is not None
        caller, size = found
        served[caller] += size
        unserved[caller] -= 1
        if left[caller]:
            following = left[caller].pop(0)
            turns.add(caller, following, (caller, following))
        busy = [served[one] for one, count in unserved.items() if count]
        assert max(busy, default=0) - min(busy, default=0) <= 2 * 1000
    assert turns.take() is None


@given(st.integers(1, 500), st.lists(st.integers(1, 50), max_size=200))
def test_long_work_waits_for_no_more_of_its_callers_later_work_than_it_is_long(
    size: int, later: list[int]
) -> None:
    turns: Turns[int] = Turns()
    turns.add("a", size, 0)
    before = 0
    for one in later:
        turns.add("a", one, one)
        found = turns.take()
        if found == 0:
            break
        before += found or 0
        assert before <= size


async def test_a_chat_does_not_wait_for_the_bodies_of_others_nor_for_the_long_ones_of_its_own() -> None:
    threads, gate = ReaderThreads(), threading.Event()
    order: list[str] = []
    with contextlib.ExitStack() as ended:
        ended.callback(gate.set)
        whose.set("heavy")
        long = [asyncio.create_task(threads.run(8 << 20, gate.wait)) for _ in range(12)]
        await asyncio.sleep(0)
        own = asyncio.create_task(threads.run(20 << 10, lambda: order.append("its own")))
        await asyncio.wait_for(own, 30)
        whose.set("light")
        await asyncio.wait_for(threads.run(20 << 10, lambda: order.append("another's")), 30)
        last = asyncio.create_task(threads.run(1 << 20, lambda: order.append("another's long one")))
        await asyncio.sleep(0)
        long[5].cancel()
        for task in long[6:]:
            task.add_done_callback(lambda _: order.append("heavy"))
        gate.set()
        await asyncio.wait({*long, last})
    assert order[:3] == ["its own", "another's", "another's long one"]  # one of twelve was under way
    assert order.count("heavy") == 6


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=80), st.randoms())
def test_bodies_have_a_bound_together_and_a_caller_without_any_finds_room(
    wanted: list[tuple[str, int]], draw: Random
) -> None:
    room, held = BodyRoom(1000), dict[str, list[int]]()
    for caller, size in wanted:
        if held.get(caller) and draw.random() < 0.2:
            room.give_back(caller, held[caller].pop())
        mine = sum(held.get(caller, []))
        if room.take(caller, size, 1):
            held.setdefault(caller, []).append(size)
        else:
            assert mine + size > 1000 - room.total - size  # it has as much as it would leave
            assert mine + size > 1000 // (len(held) + 1) - 40
        assert room.total == sum(map(sum, held.values())) <= 1000
        assert room.held == Counter({name: sum(sizes) for name, sizes in held.items() if sizes})
    assert room.take("new", 1, 1)
    for caller, sizes in held.items():
        for size in sizes:
            room.give_back(caller, size)
    room.give_back("new", 1)
    assert (room.total, dict(room.held)) == (0, {})
