"""Two copies of one request: the first to bring a byte wins, the other is cancelled before anything else happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from weighbridge.fleet.attempt import AttemptFailed, OpenedAttempt
from weighbridge.fleet.dispatch import Lease
from weighbridge.fleet.member import Member

Open = Callable[[Lease], Coroutine[Any, Any, OpenedAttempt]]


async def race(
    open_on: Open,
    lease: Lease,
    delay: float,
    copy: Callable[[Lease], Lease | None],
    lost: Callable[[Member], None],
) -> OpenedAttempt:
    """The answer on `lease`, or on a copy that starts when nothing came within `delay` seconds.

    A copy that fails leaves the race to the other. `lost` is told where a copy was cancelled, so that it can be
    verified. Raises AttemptFailed when both fail.
    """
    runners = {asyncio.create_task(open_on(lease)): lease}
    try:
        done, _ = await asyncio.wait(runners, timeout=delay)
        if not done and (second := copy(lease)) is not None:
            runners[asyncio.create_task(open_on(second))] = second
        return await _winner(runners)
    finally:
        for task, runner in runners.items():
            await _stop(task)
            if task.cancelled():
                lost(runner.member)


async def _winner(runners: dict[asyncio.Task[OpenedAttempt], Lease]) -> OpenedAttempt:
    """Take the winner out of `runners`; what stays there is to be stopped."""
    pending = set(runners)
    failure: AttemptFailed | None = None
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in (task for task in runners if task in done):  # the original first, if both came at once
            error = task.exception()
            if error is None:
                del runners[task]
                return task.result()
            if not isinstance(error, AttemptFailed):
                raise error
            failure = error
    assert failure is not None
    raise failure


async def _stop(task: asyncio.Task[OpenedAttempt]) -> None:
    """Cancel a runner, or close the answer it brought too late."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, AttemptFailed):
            await task
        if not task.done():  # we were cancelled while waiting for it
            return
    if not task.cancelled() and task.exception() is None:
        opened = task.result()
        await opened.close(time.monotonic())
