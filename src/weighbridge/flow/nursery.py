"""The nursery of a run: its tasks and what it opened. Nothing in it outlives the run."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import Any, Protocol, TypeVar

from weighbridge.flow.step import current_execution, current_world

T = TypeVar("T")

#: Seconds that cancelled steps get to clean up before the run ends without them.
GRACE_SECONDS = 5.0


class Closable(Protocol):
    """Something a run opened, such as a connection pool."""

    async def close(self) -> None: ...


class Nursery:
    """Made inside the event loop on which its tasks live."""

    def __init__(self) -> None:
        self.closing = False
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self._context = contextvars.copy_context()
        self._context.run(current_world.set, None)
        self._context.run(current_execution.set, None)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._resources: dict[Hashable, Closable] = {}

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task in the context of whoever called the flow."""
        task = self._loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn_child(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that belongs to the step that makes it."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def reap(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel tasks and wait until they have ended, for `GRACE_SECONDS` at most."""
        pending = {task for task in tasks if not task.done()}
        for task in pending:
            task.cancel()
        ends = self.clock() + GRACE_SECONDS
        interrupted = False
        while pending and self.clock() < ends:
            try:
                _, pending = await asyncio.wait(pending, timeout=ends - self.clock())
            except asyncio.CancelledError:
                interrupted = True
        if interrupted:
            raise asyncio.CancelledError

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call back in a while, if the run still goes on then."""
        self._loop.call_later(seconds, lambda: None if self.closing else action())

    def resource(self, key: Hashable, make: Callable[[], Closable]) -> Any:
        """Return something that is opened once per run and closed with it."""
        if key not in self._resources:
            self._resources[key] = make()
        return self._resources[key]

    async def end(self) -> None:
        """Cancel whatever still runs, wait until it has ended, and close what was opened."""
        cancelled = False
        try:
            await self.reap(self._tasks)
        except asyncio.CancelledError:
            cancelled = True
        for resource in self._resources.values():
            await resource.close()
        if cancelled:
            raise asyncio.CancelledError


async def first_success(tasks: list[asyncio.Task[Any]]) -> Any:
    """Return the result of the first task that succeeds; raise the last error when none does."""
    waiting = set(tasks)
    error: BaseException | None = None
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=tasks.index):
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                return task.result()
    raise error if error is not None else asyncio.CancelledError
