"""One request at one engine: its generations, gathered or streamed, in the format of its protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from weighbridge.cost.usage import Usage
from weighbridge.engine.api import Delta, Stream
from weighbridge.engine.request import FinishReason
from weighbridge.server.engine.formats import Format, Gathered, logs_size
from weighbridge.ticket import Ticket, prefix
from weighbridge.wire.errors import ApiError, error_event
from weighbridge.wire.events import Event
from weighbridge.wire.journey import HeaderList, WholeAnswer
from weighbridge.wire.protocols import ANSWER_PARSERS, EVENT_PARSERS
from weighbridge.wire.sse import DONE

#: An answer of more characters and log-probabilities is put together in a thread, so that the event loop goes on.
SHORT_ANSWER = 4_000
#: Streams of one request that are read or closed without a turn for others.
BURST = 16


@dataclass(slots=True)
class Running:
    """One prompt's stream and the format of its answer. Several prompts may share a request."""

    stream: Stream
    format: Format
    choices: int


@dataclass(frozen=True, slots=True)
class EngineOpened:
    """An answer of the engine has begun."""

    is_stream: bool
    status: int = 200


class EngineJourney:
    """Reads engine streams. Closing it cancels them at once."""

    def __init__(self, path: str, running: Sequence[Running], streaming: bool, include_usage: bool) -> None:
        self.ticket: Ticket = running[0].stream.ticket
        self._path = path
        self._running = running
        self._streaming = streaming
        self._include_usage = include_usage
        self._first: list[Delta] = []
        self._answer = b""
        self._closed = False

    async def open(self) -> EngineOpened:
        """Wait for the first delta of a stream, or for a whole answer. Raises ApiError when there is none."""
        if self._streaming:
            self._first = await anext(aiter(self._running[0].stream), [])
            if not self._first:
                raise ApiError(503, "the request was cancelled", kind="server_error", code="cancelled")
            for failure in map(failure_of, self._first):
                if failure is not None:
                    raise failure
        else:
            self._answer = await self._gathered()
        return EngineOpened(self._streaming)

    def headers(self) -> HeaderList:
        ticket = self.ticket
        told = prefix.written(ticket.prefix) if ticket.prefix is not None else b""
        return [
            *([(prefix.HEADER.encode(), told)] if told else []),
            (b"x-weighbridge-ticket", ticket.id.encode()),
            (b"x-weighbridge-replica", ticket.replica.encode()),
            (b"x-weighbridge-placement", ticket.placement.encode()),
            (b"x-weighbridge-cost", b"0"),
        ]

    async def stream(self) -> AsyncIterator[Event]:
        parse = EVENT_PARSERS[self._path]
        opening = b"".join([one.format.opening(one.choices) for one in self._running])
        deltas = self._first
        for one in self._running:
            while deltas or (deltas := await anext(aiter(one.stream), [])):
                written = partial(_written, one.format, deltas)
                told = sum([logs_size(delta.prompt_logprobs or ()) for delta in deltas])
                body = opening + (written() if told <= SHORT_ANSWER else await asyncio.to_thread(written))
                opening, deltas = b"", []
                if body:
                    yield Event(body, parse)
        tail = b""
        if self._include_usage:
            tail = self._running[0].format.usage_chunk(self._usage())
        yield Event(tail + DONE, parse, last=True)

    async def whole(self) -> WholeAnswer:
        return WholeAnswer(self._answer, ANSWER_PARSERS[self._path])

    async def close(self, error: str | None = None) -> bool:
        if self._closed:
            return False
        self._closed = True
        await close_all(self._running)
        return True

    async def _gathered(self) -> bytes:
        answers: list[list[Gathered]] = []
        for place, one in enumerate(self._running, 1):
            choices = [Gathered() for _ in range(one.choices)]
            async for deltas in one.stream:
                for delta in deltas:
                    if (failure := failure_of(delta)) is not None:
                        raise failure
                    _gather(choices[delta.index], delta)
            answers.append(choices)
            if not place % BURST:
                await asyncio.sleep(0)
        if any(choice.finish in (None, FinishReason.ABORT) for choices in answers for choice in choices):
            raise ApiError(503, "the request was cancelled", kind="server_error", code="cancelled")
        merge = partial(self._merged, answers, self._usage())
        size = sum(choice.size for choices in answers for choice in choices)
        return merge() if size <= SHORT_ANSWER else await asyncio.to_thread(merge)

    def _merged(self, answers: Sequence[Sequence[Gathered]], usage: Usage) -> bytes:
        choices: list[Any] = []
        for one, gathered in zip(self._running, answers, strict=True):
            for further in gathered[1:]:  # they share a prompt
                further.prompt_logprobs = gathered[0].prompt_logprobs
            choices += one.format.choices_of(gathered)
        return self._running[0].format.whole(choices, usage)

    def _usage(self) -> Usage:
        total = Usage(0, 0)
        for one in self._running:
            total += one.stream.usage
        return total


async def close_all(running: Sequence[Running]) -> None:
    """Cancel everything that still runs, whatever happens; others get a turn in between."""
    left = iter(running)
    try:
        for place, one in enumerate(left, 1):
            one.stream.close()
            if not place % BURST:
                await asyncio.sleep(0)
    finally:
        for one in left:  # cancelled itself: there is no time to be polite
            one.stream.close()


def failure_of(delta: Delta) -> ApiError | None:
    """The error that a delta stands for. A deadline that cut an answer short in mid-text is no error."""
    if delta.finish is FinishReason.ERROR:
        return ApiError(500, delta.error or "the request failed", kind="server_error", code="request_failed")
    if delta.finish is FinishReason.IMPOSSIBLE:
        return ApiError(400, delta.error or "nothing could come next", code="nothing_left")
    if delta.finish is FinishReason.DEADLINE and not delta.tokens and not delta.text:
        return ApiError(
            504, delta.error or "the deadline passed", kind="timeout_error", code="deadline_missed"
        )
    return None


#: Ends that a stream tells of as an error: of an answer that has begun, a deadline is a length.
_FAILURES = (FinishReason.ERROR, FinishReason.IMPOSSIBLE)


def _written(form: Format, deltas: Sequence[Delta]) -> bytes:
    return b"".join([_event(form, delta) for delta in deltas])


def _event(form: Format, delta: Delta) -> bytes:
    failure = failure_of(delta) if delta.finish in _FAILURES else None
    return form.chunk(delta) if failure is None else error_event(failure)


def _gather(choice: Gathered, delta: Delta) -> None:
    choice.text.append(delta.text)
    if delta.logprobs is not None:
        choice.logprobs += delta.logprobs
    if delta.finish is not None:
        choice.finish, choice.stopped_by = delta.finish, delta.stopped_by
        choice.embedding, choice.chances = delta.embedding, delta.chances
    if delta.prompt_logprobs is not None:
        choice.prompt_logprobs = delta.prompt_logprobs
