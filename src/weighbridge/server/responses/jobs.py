"""Responses that are made in the background: their events are kept, and told to whoever asks, from any point on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from weighbridge.errors import words_of
from weighbridge.server.responses.record import ResponseMemory
from weighbridge.wire.answer import KEEP_ALIVE_SECONDS, answered_error
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import ApiError, as_api_error
from weighbridge.wire.journey import Answered, Journey
from weighbridge.wire.protocols.response_events import ResponseWriter, frame

#: Seconds that an answer in the background may take.
LONGEST_S = 3600.0

#: Bytes of events in one write, unless a single one has more.
PIECE_BYTES = 64 << 10

_KEEP_ALIVE = b": keep-alive\n\n"


class EventLog:
    """The events of a response in their order, as they are sent; number n is the n-th."""

    def __init__(self, events: Sequence[bytes] = (), over: bool = False) -> None:
        self.events = list(events)
        self.over = over
        self._changed = asyncio.Event()

    def add(self, events: Sequence[bytes], over: bool) -> None:
        self.events += events
        self.over = over
        self._changed.set()
        self._changed = asyncio.Event()

    def _piece(self, position: int) -> list[bytes]:
        """Events from a position on, no more of them than one write takes: who reads slowly holds a copy of these."""
        size, end = 0, position
        while end < len(self.events) and (end == position or size + len(self.events[end]) <= PIECE_BYTES):
            size += len(self.events[end])
            end += 1
        return self.events[position:end]

    async def after(self, number: int) -> AsyncIterator[bytes]:
        """The events behind a number, and all that follow until the last; a comment where there are none for long."""
        position = number + 1
        while True:
            if position < len(self.events):
                fresh = self._piece(position)
                position += len(fresh)
                yield b"".join(fresh)
            elif self.over:
                return
            else:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    yield _KEEP_ALIVE


class BackgroundJob:
    """One response on its way, whoever listens. Its request and events take `memory`, or it fails."""

    def __init__(self, ask: Ask, journey: Journey, writer: ResponseWriter, memory: ResponseMemory) -> None:
        """Raises ApiError 507 where its beginning finds no room; it holds nothing then."""
        self.ask = ask
        self.ticket_id = journey.ticket.id
        self.log = EventLog()
        self.writer = writer
        self.held = 0
        self._journey = journey
        self._memory = memory
        self._task: asyncio.Task[None] | None = None
        self._take(ask.size + len(ask.own.input))  # the request waits here, too
        try:
            self._add(writer.queued())
        except ApiError:
            self.give_back()
            raise

    def start(self, over: Callable[[BackgroundJob], None]) -> None:
        """Begin; `over` hears of it when there is nothing more to come."""
        self._task = asyncio.create_task(self._run(over))

    async def cancel(self) -> None:
        """End it now; what was said so far stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, over: Callable[[BackgroundJob], None]) -> None:
        error: str | None = None
        try:
            try:
                async with asyncio.timeout(LONGEST_S):
                    await self._answer()
            except asyncio.CancelledError:
                error = "it was cancelled"
                self._add(self.writer.cancelled())
            except TimeoutError:
                error = "it took too long"
                self._add(self.writer.failed("timeout", f"the answer took more than {LONGEST_S:.0f} s"))
            except Exception as failure:
                error = words_of(failure)
                told = answered_error(failure) if isinstance(failure, Answered) else as_api_error(failure)
                self._add(self.writer.failed(told.code or told.kind, str(told), told.param))
            finally:
                await self._journey.close(error)
        finally:
            over(self)

    async def _answer(self) -> None:
        opened = await self._journey.open()
        if opened.is_stream and opened.status < 400:
            async for event in self._journey.stream():
                self._add(self.writer.events(event.parts, event.last))
                if self.writer.over:
                    break
        else:
            answer = await self._journey.whole()
            if answer.status >= 400:
                raise Answered(answer.status, answer.body, {})
            self._add(self.writer.events(answer.parse(answer.body), True))
        self._add(self.writer.events((), True))

    def _add(self, events: Sequence[Mapping[str, Any]]) -> None:
        frames = [frame(event) for event in events]
        size = sum(map(len, frames))
        if not self.writer.over:
            self._take(size)
        if frames:
            self.log.add(frames, self.writer.over)

    def _take(self, size: int) -> None:
        if not self._memory.hold(self.ask.tenant, size):
            message = (
                "a request and its answer, with those under way, are longer than what is kept of a tenant's"
            )
            raise ApiError(507, message, code="too_long_to_keep")
        self.held += size

    def give_back(self) -> None:
        """Free what it holds."""
        self._memory.let_go(self.ask.tenant, self.held)
        self.held = 0
