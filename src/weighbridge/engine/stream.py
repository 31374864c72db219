"""The output of one generation on its way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from weighbridge.cost.usage import Usage
from weighbridge.engine.api import Delta
from weighbridge.engine.request import Request
from weighbridge.engine.text import TextStream
from weighbridge.ticket import Ticket


class StreamChoice:
    """A continuation out of n: its request, its text so far, its place in the answer."""

    __slots__ = ("index", "request", "text")

    def __init__(self, index: int, request: Request, text: TextStream) -> None:
        self.index = index
        self.request = request
        self.text = text


class EngineStream:
    """Deltas of all choices, in the order they were produced. Read on one event loop only."""

    def __init__(
        self, ticket: Ticket, choices: list[StreamChoice], cancel: Callable[[EngineStream], None]
    ) -> None:
        self.ticket = ticket
        self.choices = choices
        self.open_choices = len(choices)  # the engine's count of unfinished ones
        self._cancel = cancel
        self._pending: list[Delta] = []
        self._unfinished = len(choices)  # the reader's count
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    def push(self, deltas: list[Delta]) -> None:
        """Hand deltas to the reader. Called on the event loop."""
        if self._closed:
            return
        self._pending += deltas
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[list[Delta]]:
        return self

    async def __anext__(self) -> list[Delta]:
        while not self._pending:
            if self._unfinished == 0 or self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        deltas, self._pending = self._pending, []
        self._unfinished -= sum(delta.finish is not None for delta in deltas)
        return deltas

    def close(self) -> None:
        """Cancel what still runs; a reader that waits sees the end."""
        if self._closed:
            return
        self._closed = True
        self._cancel(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def usage(self) -> Usage:
        """What was used so far. Choices share a prompt, so the first one's is theirs."""
        ticket, first = self.ticket, self.choices[0].request
        return Usage(
            ticket.prompt_tokens, ticket.output_tokens, ticket.cached_tokens, first.num_written_tokens
        )
