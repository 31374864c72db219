"""Stalls are measured and, once a minute at most, said with their place."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest

from weighbridge.engine.api import Turn
from weighbridge.server.watching.watchdog import INTERVAL, LOOP_LIMIT, QUIET, TURN_LIMIT, Watchdog


class Lines(logging.Handler):
    """What is logged, and an event for the first line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.said = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.said.set()


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, log = Lines(), logging.getLogger("weighbridge.server")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


async def test_a_loop_that_stands_still_is_measured_and_its_place_said(lines: Lines) -> None:
    beats: list[tuple[str, float]] = []
    late = asyncio.Event()

    def hear(thread: str, seconds: float) -> None:
        beats.append((thread, seconds))
        if seconds > LOOP_LIMIT - INTERVAL:
            late.set()

    watchdog = Watchdog(hear, {})

    def hold_everybody_up() -> None:
        assert lines.said.wait(60)

    watchdog.start()
    try:
        asyncio.get_running_loop().call_soon(hold_everybody_up)
        async with asyncio.timeout(60):
            await late.wait()
    finally:
        watchdog.stop()
    assert {thread for thread, _ in beats} == {"loop"}
    [line] = lines.lines
    assert "the event loop has kept everybody waiting" in line
    assert "hold_everybody_up" in line
    assert "test_watchdog.py" in line


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_thread_is_said_once_a_minute_and_each_by_itself(lines: Lines) -> None:
    clock, began = Clock(), threading.get_ident()
    watchdog = Watchdog(lambda *_: None, {}, clock=clock)
    for step in range(100):  # five minutes
        clock.now = step * 3.0
        watchdog._look("engine", Turn(began, clock.now - TURN_LIMIT - 1), TURN_LIMIT)
        watchdog._look("engine", Turn(began, clock.now - 1), TURN_LIMIT)
        watchdog._look("loop", Turn(began, clock.now - 1), LOOP_LIMIT)
        watchdog._look("idle", None, TURN_LIMIT)
    assert len(lines.lines) == 2 * 300 // QUIET
    assert sum("the engine's thread" in line for line in lines.lines) == 300 // QUIET
    assert all("test_a_thread_is_said_once" in line for line in lines.lines)


async def test_it_ends_with_the_server() -> None:
    watchdog = Watchdog(lambda *_: None, {})
    watchdog.start()
    watchdog.stop()
    assert not watchdog._thread.is_alive()
