"""Runs one or several generations and writes the answer: streamed or whole, until the client goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weighbridge.engine.api import Delta, Stream, Usage
from weighbridge.engine.request import FinishReason
from weighbridge.server.engine.formats import Format, Gathered
from weighbridge.wire.errors import ApiError, error_body, error_response

log = logging.getLogger("weighbridge.server")

KEEP_ALIVE_SECONDS = 15.0

#: The answer to more prompts is put together in a thread, so that the event loop goes on.
FEW_PROMPTS = 16


@dataclass(slots=True)
class Running:
    """One prompt's stream and the format of its answer. Several prompts may share a request."""

    stream: Stream
    format: Format
    choices: int


class Answer(Response):
    """An ASGI response that reads engine streams. Closing the connection cancels them at once."""

    def __init__(self, running: Sequence[Running], streaming: bool, include_usage: bool) -> None:
        self._running = running
        self._streaming = streaming
        self._include_usage = include_usage
        self.background = None
        self._started = False
        self._quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.ensure_future(self._watch(receive))
        try:
            await (self._stream(send) if self._streaming else self._whole(scope, receive, send))
        except (OSError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("writing an answer failed")
            raise
        finally:
            self._close()
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    def _close(self) -> None:
        for one in self._running:
            one.stream.close()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._close()

    def _ticket_headers(self) -> list[tuple[bytes, bytes]]:
        ticket = self._running[0].stream.ticket
        return [
            (b"x-weighbridge-ticket", ticket.id.encode()),
            (b"x-weighbridge-replica", ticket.replica.encode()),
            (b"x-weighbridge-placement", ticket.placement.encode()),
            (b"x-weighbridge-cost", b"0"),
        ]

    # -- whole -----------------------------------------------------------------------------------------

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers, usages = [], []
        for one in self._running:
            choices = [Gathered() for _ in range(one.choices)]
            async for deltas in one.stream:
                for delta in deltas:
                    _gather(choices[delta.index], delta)
                    failure = _failure(delta)
                    if failure is not None:
                        await error_response(failure)(scope, receive, send)
                        return
            answers.append(choices)
            usages.append(one.stream.usage)
        if any(choice.finish in (None, FinishReason.ABORT) for choices in answers for choice in choices):
            return  # the client is gone, or the server is stopping
        merge = partial(_merged, self._running, answers, usages)
        body = merge() if len(answers) <= FEW_PROMPTS else await asyncio.to_thread(merge)
        headers = [*self._ticket_headers(), (b"content-type", b"application/json")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    # -- streamed --------------------------------------------------------------------------------------

    async def _stream(self, send: Send) -> None:
        """The status waits for the first delta, so that a refusal in the queue still has its own."""
        pulse = asyncio.ensure_future(self._pulse(send))
        try:
            for one in self._running:
                async for deltas in one.stream:
                    if not self._started:
                        failure = next(filter(None, map(_failure, deltas)), None)
                        if failure is not None:
                            await _send_error(failure, send)
                            return
                        await self._start(send)
                    body = b"".join([_event(one.format, delta) for delta in deltas])
                    if body:
                        self._quiet = False
                        await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            pulse.cancel()
        if not self._started:
            return  # cancelled before anything came
        tail = b""
        if self._include_usage:
            tail = self._running[0].format.usage_chunk(_total([one.stream.usage for one in self._running]))
        await send({"type": "http.response.body", "body": tail + b"data: [DONE]\n\n", "more_body": False})

    async def _pulse(self, send: Send) -> None:
        """A comment whenever nothing was said for a while, so that proxies keep the line open."""
        while True:
            self._quiet = True
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if self._quiet:
                if not self._started:
                    await self._start(send)
                await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})

    async def _start(self, send: Send) -> None:
        self._started = True
        headers = [
            *self._ticket_headers(),
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        opening = b"".join(one.format.opening(one.choices) for one in self._running)
        if opening:
            await send({"type": "http.response.body", "body": opening, "more_body": True})


def _event(form: Format, delta: Delta) -> bytes:
    failure = _failure(delta) if delta.finish is FinishReason.ERROR else None
    return form.chunk(delta) if failure is None else b"data: " + error_body(failure) + b"\n\n"


def _failure(delta: Delta) -> ApiError | None:
    """The error that a delta stands for. A deadline that cut an answer short in mid-text is no error."""
    if delta.finish is FinishReason.ERROR:
        return ApiError(500, delta.error or "the request failed", kind="server_error", code="request_failed")
    if delta.finish is FinishReason.DEADLINE and not delta.tokens and not delta.text:
        return ApiError(
            504, delta.error or "the deadline passed", kind="timeout_error", code="deadline_missed"
        )
    return None


async def _send_error(error: ApiError, send: Send) -> None:
    response = error_response(error)
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


def _gather(choice: Gathered, delta: Delta) -> None:
    choice.text.append(delta.text)
    if delta.logprobs is not None:
        choice.logprobs += delta.logprobs
    if delta.finish is not None:
        choice.finish, choice.stopped_by = delta.finish, delta.stopped_by
        choice.embedding = delta.embedding


def _total(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
    )


def _merged(running: Sequence[Running], answers: Sequence[list[Gathered]], usages: Sequence[Usage]) -> bytes:
    """One answer to one request; choices of several prompts follow each other."""
    if len(running) == 1:
        return running[0].format.whole(answers[0], usages[0])
    return running[0].format.whole([choice for choices in answers for choice in choices], _total(usages))
