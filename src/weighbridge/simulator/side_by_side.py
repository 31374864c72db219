"""Runs side by side, each in a process of its own. They share nothing, so results are those of one after another."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Mapper(Protocol):
    """Yield results in the order of the jobs, as the built-in `map` does."""

    def __call__(self, work: Callable[[Job], Result], jobs: Iterable[Job], /) -> Iterator[Result]: ...


@contextmanager
def mapping(processes: int) -> Iterator[Mapper]:
    """Yield a `map` over so many processes; with one process it is `map` itself.

    Leaving early, by Ctrl-C for one, ends them at once.
    What is mapped, and what comes of it, must be picklable. Raises BrokenProcessPool where a process was killed.
    """
    if processes <= 1:
        yield map
        return
    others = set(multiprocessing.active_children())
    # Started anew instead of forked: a fork copies the locks of other threads, such as that of a progress bar.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_end_on_interrupt)
    try:
        yield pool.map
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    pool.shutdown()


def _end_on_interrupt() -> None:
    """End silently: the parent says what happened."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
