"""Long work on what came from outside, off the event loop: by turns among those whose it is, the shorter first.

One thread takes long work, one what is short, so that a chat never waits for a body of megabytes to be read. There are
no more, so that the event loop never waits for the interpreter behind many of them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

#: Bytes from which work is long: some 10 ms of it.
LONG_WORK = 256 << 10
#: Callers without work of whom it is known what they have had.
MOST_AHEAD = 4096

#: Whose the request is that this task works on: a tenant once that is known, an address before.
whose: ContextVar[str] = ContextVar("whose", default="")


@dataclass(slots=True)
class _Line(Generic[Item]):
    """What waits of one caller. `served`: bytes done for it, or what others had when it came."""

    served: int
    waiting: list[tuple[int, int, int, Item]] = field(
        default_factory=list
    )  # a heap: when due, number, size, item


class Turns(Generic[Item]):
    """Who is next: the caller who has had the least and whose next work is short; of one caller, the shorter first.

    What is long waits for no more of its caller's later work than it is long itself.
    """

    def __init__(self) -> None:
        self._lines: dict[str, _Line[Item]] = {}  # of callers with work that waits
        self._ahead: dict[str, int] = {}  # what callers have had who have no more work, while others wait
        self._numbers = itertools.count()
        self._now = 0  # bytes that a caller who always had work has had

    def __len__(self) -> int:
        return sum(len(line.waiting) for line in self._lines.values())

    def add(self, caller: str, size: int, item: Item) -> None:
        """Let work of so many bytes wait."""
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = _Line(max(self._now, self._ahead.pop(caller, 0)))
        heapq.heappush(line.waiting, (line.served + size, next(self._numbers), size, item))

    def take(self) -> Item | None:
        """The next work, which waits no longer; None: there is none."""
        if not self._lines:
            return None
        caller, line = min(self._lines.items(), key=lambda one: one[1].served + one[1].waiting[0][2])
        _, _, size, item = heapq.heappop(line.waiting)
        self._now = max(self._now, line.served)
        line.served += size
        if not line.waiting:
            del self._lines[caller]
            self._ahead[caller] = line.served
        if not self._lines or len(self._ahead) > MOST_AHEAD:
            self._ahead.clear()
        return item


@dataclass(frozen=True, slots=True)
class _Work:
    run: Callable[[], Any]
    future: Future[Any]

    def do(self) -> None:
        if not self.future.set_running_or_notify_cancel():  # nobody waits for it any more
            return
        try:
            self.future.set_result(_tidily(self.run))
        except BaseException as error:
            self.future.set_exception(error)


class ReaderThreads:
    """Two threads, and who is next in each of them."""

    def __init__(self) -> None:
        self._threads = {
            is_long: ThreadPoolExecutor(1, thread_name_prefix="readers") for is_long in (False, True)
        }
        self._turns: dict[bool, Turns[_Work]] = {False: Turns(), True: Turns()}
        self._lock = threading.Lock()

    async def run(self, size: int, work: Callable[[], Any]) -> Any:
        """What `work` of about so many bytes returns or raises, once it is its caller's turn."""
        is_long, future = size >= LONG_WORK, Future[Any]()
        with self._lock:
            self._turns[is_long].add(whose.get(), size, _Work(work, future))
        self._threads[is_long].submit(self._next, is_long)
        return await asyncio.wrap_future(future)

    def _next(self, is_long: bool) -> None:
        with self._lock:
            work = self._turns[is_long].take()
        if work is not None:
            work.do()


def _tidily(work: Callable[[], Any]) -> Any:
    """Do `work`; an error takes none of its variables along."""
    try:
        return work()
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise
