"""A resumed run on its way through what it has already seen.

It sees results in the order in which it saw them before, and what comes in this life after all of that: so a race
has the same winner. A flow that goes another way all the same (it asked a clock, or its code has changed) is stopped:
no new write starts while one that has happened was not called again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weighbridge.flow.hooks import CallView, GoOn, RunView
from weighbridge.flow.journal.order import RecordedOrder
from weighbridge.flow.runtime import Diverged

log = logging.getLogger("weighbridge.flow")

#: Turns of the event loop after which everything has run that a result wakes: tasks that wait for tasks included.
TURNS = 32
#: Seconds beyond the time of its earlier life that a call, or a write, gets to come again.
SLACK_SECONDS = 1.0

_ADVICE = "What differs from run to run (clocks, random numbers, queues, time-outs) belongs in steps, or in `recorded`"


@dataclass(frozen=True, slots=True)
class Seen:
    """Something of an earlier life, and how many seconds after its beginning it was there."""

    what: str
    elapsed: float


class Replay:
    """A resumed run on its way through what it has already seen."""

    def __init__(
        self, run_id: str, seen: Sequence[Seen], writes: Mapping[str, Seen], *, is_paced: bool
    ) -> None:
        """`seen`: the keys of settled calls, in order. `writes`: by key, the names of those that may have happened.

        `is_paced`: results come no sooner than they came then, not as soon as it is their turn.
        """
        self._run_id = run_id
        self._order = RecordedOrder([one.what for one in seen])
        self._due = {one.what: one.elapsed for one in seen}
        self._last_due = max((one.elapsed for one in seen), default=0.0)
        self._uncalled = dict(writes)
        self._starts: list[GoOn] = []  # of new writes, which wait for those
        self._has_waited = False
        self._last: int | None = (
            None  # the call whose result was let through, while it may not have been seen
        )
        self._progress = 0  # results let through
        self._is_watched = False  # whether the next result comes in time
        self._ahead = 0.0  # seconds that were saved on the way here
        self._diverged: Diverged | None = None
        self.is_paced = is_paced
        self.is_lost = False  # the recorded order was given up
        self.over = not seen

    def elapsed(self, run: RunView) -> float:
        """Return the seconds that the run has taken, over all of its lives."""
        return max(run.now() + self._ahead, self._last_due)

    # -- results ---------------------------------------------------------------------------------------

    def arrives(self, call: CallView, key: str, go_on: GoOn) -> None:
        """A result is there, which the flow sees when its turn comes."""

        def let_through() -> None:
            self._last = call.number
            go_on()

        self._order.arrives(key, let_through)
        self._advance(call.run)

    def awaited(self, call: CallView) -> None:
        """The body has seen a result: where it did so itself, the next one may come."""
        if not self.over and self._last == call.number and call.run.in_body():
            self._last = None
            self._advance(call.run)

    def let_go(self, call: CallView, key: str) -> None:
        """Nobody waits for this call any more."""
        self._order.let_go(key)
        self._advance(call.run)

    def _advance(self, run: RunView) -> None:
        while not self.over and self._last is None:
            key = self._order.next_key
            if key is None:
                self._ahead = max(self._last_due - run.now(), 0.0)
                self._finish()
                return
            if self.is_paced and (early := self._due[key] - run.now()) > 0.0:
                run.later(early, lambda: self._advance(run))
                return
            go_on = self._order.take()
            if go_on is None:
                self._wait(run)
                return
            self._progress += 1
            go_on()
            if self._last is not None:
                self._after_turns(run, self._progress, TURNS)

    def _after_turns(self, run: RunView, progress: int, turns: int) -> None:
        """Go on when all that the last result has woken has run, unless that was seen to happen before."""
        if self._progress != progress or self._last is None:
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._after_turns, run, progress, turns - 1)
            return
        self._last = None
        self._advance(run)

    def _wait(self, run: RunView) -> None:
        """Give the next recorded call the time that it took before, and some more; then do without the order."""
        key = self._order.next_key
        if key is None or self._is_watched:
            return
        self._is_watched = True

        def look() -> None:
            self._is_watched = False
            if self.over:
                return
            if self._order.next_key != key:  # it came: now it is another's turn
                self._wait(run)
                return
            log.info("run %s does not make the calls that it made before, in their order", run.run_id)
            self.is_lost = bool(self._uncalled)
            self._finish()

        run.later(max(self._due[key] - run.now(), 0.0) + SLACK_SECONDS, look)

    def _finish(self) -> None:
        self.over = True
        for go_on in self._order.rest():
            go_on()

    # -- writes ----------------------------------------------------------------------------------------

    def called(self, key: str) -> None:
        """A write is called (again)."""
        if self._uncalled.pop(key, None) is not None and not self._uncalled:
            self._release()

    def holds_start(self, run: RunView, go_on: GoOn) -> bool:
        """Tell whether a new write has to wait for those that have happened to be called again."""
        if not self._uncalled or self._has_waited:
            return False
        if not self._starts:
            due = max(write.elapsed for write in self._uncalled.values())
            run.later(max(due - run.now(), 0.0) + SLACK_SECONDS, self._release)
        self._starts.append(go_on)
        return True

    def _release(self) -> None:
        self._has_waited = True
        starts, self._starts = self._starts, []
        for go_on in starts:
            go_on()

    def check_write(self, call: CallView) -> None:
        """Raises Diverged where a new write would start past one that has happened; the run is over then."""
        if self._diverged is None and self._uncalled:
            text = f"{self._text()}; so {call.step.name} was not started"
            self._diverged = call.run.diverged = Diverged(f"{text}. {_ADVICE}")
        if self._diverged is not None:
            raise self._diverged

    def check_end(self) -> None:
        """Raises Diverged where the flow has ended past a write that has happened."""
        if self._uncalled:
            raise Diverged(f"{self._text()} before the flow ended. {_ADVICE}")

    def _text(self) -> str:
        names = ", ".join(sorted({write.what for write in self._uncalled.values()})[:5])
        return (
            f"run {self._run_id} goes another way than before: {names} has happened and was not called again"
        )
