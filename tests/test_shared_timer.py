"""One timer for all who wait: each is told when its time has come, nobody sooner, whoever else comes or goes."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from weighbridge.shared_timer import SharedTimer


class Loop:
    """A clock, and the one timer that is asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: float | None = None
        self.set = 0

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call: object) -> Loop:
        self.at, self.call, self.set = at, call, self.set + 1
        return self

    def cancel(self) -> None:
        self.at = None

    def run_until(self, now: float) -> None:
        while self.at is not None and self.at <= now:
            self.now, self.at = max(self.now, self.at), None
            self.call()  # type: ignore[operator]
        self.now = now


class Waiting:
    def __init__(self, loop: Loop, again: float | None = None) -> None:
        self.loop, self.again = loop, again
        self.told: list[float] = []

    def overdue(self, now: float) -> float | None:
        self.told.append(now)
        again, self.again = self.again, None
        return None if again is None else now + again


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "discard", "pass"]), st.integers(0, 5), st.integers(1, 20)),
        max_size=40,
    )
)
def test_who_is_due_is_told_once_at_its_time_and_nobody_else(steps: list[tuple[str, int, int]]) -> None:
    loop = Loop()
    timer = SharedTimer(loop)  # type: ignore[arg-type]
    all_of_them = [Waiting(loop) for _ in range(6)]
    due: dict[int, float] = {}
    expected: dict[int, list[float]] = {who: [] for who in range(6)}
    for what, who, span in [*steps, ("pass", 0, 30)]:
        if what == "set":
            due[who] = loop.now + span
            timer.set(all_of_them[who], due[who])
        elif what == "discard":
            due.pop(who, None)
            timer.discard(all_of_them[who])
        else:
            until = loop.now + span
            for late in [one for one, at in due.items() if at <= until]:
                expected[late].append(due.pop(late))
            loop.run_until(until)
    assert [one.told for one in all_of_them] == list(expected.values())
    assert len(timer) == 0


def test_who_wants_to_be_told_again_is() -> None:
    loop = Loop()
    timer = SharedTimer(loop)  # type: ignore[arg-type]
    one = Waiting(loop, again=5.0)
    timer.set(one, 2.0)
    loop.run_until(20.0)
    assert one.told == [2.0, 7.0]


def test_many_requests_with_the_same_patience_set_one_timer() -> None:
    loop = Loop()
    timer = SharedTimer(loop)  # type: ignore[arg-type]
    for step in range(100):
        loop.run_until(step / 100)
        one = Waiting(loop)
        timer.set(one, loop.now + 60.0)
        timer.set(one, loop.now + 30.0)
        timer.discard(one)
    assert loop.set <= 2


async def test_on_a_real_loop() -> None:
    timer = SharedTimer(asyncio.get_running_loop())
    told = asyncio.Event()

    class One:
        def overdue(self, now: float) -> None:
            told.set()

    timer.set(One(), asyncio.get_running_loop().time() + 0.01)
    await asyncio.wait_for(told.wait(), 10)
    timer.close()
