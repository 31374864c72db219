"""The nursery of a run: its tasks, what it opened, its clock. Nothing of it outlives the run."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import Any, Protocol, TypeVar

from weighbridge.flow.promise import Promise
from weighbridge.flow.step import current_execution, current_world

T = TypeVar("T")

#: Seconds that cancelled steps get to clean up before the run ends without them.
GRACE_SECONDS = 5.0


class Closing(Protocol):
    """Something a run opened, such as a connection pool."""

    async def close(self) -> None: ...


class Tasks:
    """Made inside the event loop on which the run's tasks live."""

    def __init__(self) -> None:
        self.closing = False
        self._loop = asyncio.get_running_loop()
        self.clock = self._loop.time
        self._context = contextvars.copy_context()
        self._context.run(current_world.set, None)
        self._context.run(current_execution.set, None)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._dispatching: deque[tuple[Callable[[Any], None], Promise[Any]]] | None = None
        self._resources: dict[Hashable, Closing] = {}

    async def reap(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel tasks and wait until they have ended, for at most `GRACE_SECONDS`."""
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

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this run, in the context of whoever called the flow."""
        task = self._loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn_child(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this run that belongs to the step that makes it."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def dispatch(self, callbacks: list[Callable[[Any], None]], promise: Promise[Any]) -> None:
        """Call back one after the other, not one inside the other: chains of promises may be long."""
        queue = self._dispatching
        if queue is not None:
            queue.extend((callback, promise) for callback in callbacks)
            return
        queue = self._dispatching = deque((callback, promise) for callback in callbacks)
        try:
            while queue:
                callback, settled = queue.popleft()
                callback(settled)
        finally:
            self._dispatching = None

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in a while, if the run is still going on then; its end does the same anyway."""
        self._loop.call_later(seconds, lambda: None if self.closing else action())

    def resource(self, key: Hashable, make: Callable[[], Closing]) -> Any:
        """Something opened once per run and closed with it."""
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
