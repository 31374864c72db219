"""Ctrl-C in a conversation: it ends the line that is written, or stops the answer, and is never lost between."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: Seconds until a read looks again for a Ctrl-C that came while it was not waiting.
LOOKS_EVERY_S = 0.1


class Interrupts:
    """What Ctrl-C does, by what is going on. To be entered and used in the main thread, while a loop runs.

    One handler stands for the whole conversation: with one for lines and one for answers, what is pressed while they
    change places would end the program.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._raises = False
        self._pressed = False  # for the answer that runs, or is about to

    def __enter__(self) -> Interrupts:
        with suppress(NotImplementedError):  # Windows: there the handler alone wakes the loop
            self._loop.add_signal_handler(
                signal.SIGINT, self._stop
            )  # for what it has C do: wake a loop that waits
        signal.signal(signal.SIGINT, self._taken)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(NotImplementedError):
            self._loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Have Ctrl-C raise KeyboardInterrupt, once, while a line is read."""
        with _looked_for():
            try:
                self._pressed, self._raises = False, True
                yield
            finally:
                self._raises = False

    @contextmanager
    def cancelling(self, task: asyncio.Task[None]) -> Iterator[None]:
        """Have Ctrl-C cancel a task and nothing else, each time, also if it was pressed just before."""
        self._task = task
        self._stop()
        try:
            yield
        finally:
            self._task, self._pressed = None, False

    def _taken(self, number: int, frame: FrameType | None) -> None:
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt
        self._pressed = True
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._pressed and self._task is not None:
            self._pressed = False
            self._task.cancel()


@contextmanager
def _looked_for() -> Iterator[None]:
    """Have a read that waits woken now and then.

    readline waits for keys with select, and looks for signals when one interrupts that. A signal that comes just
    before, while it draws the last key, interrupts nothing and is found with the next key: the terminal seems to hang.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    loops = signal.set_wakeup_fd(-1)  # it would be told of each, and reads nothing meanwhile
    before: Any = signal.signal(signal.SIGALRM, _nothing)
    signal.setitimer(signal.ITIMER_REAL, LOOKS_EVERY_S, LOOKS_EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signal.set_wakeup_fd(loops)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Be there: what has no handler interrupts no wait."""
