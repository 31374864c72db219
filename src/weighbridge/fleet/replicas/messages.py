"""A replica that speaks Anthropic's Messages, in front of which everything is a chat."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from weighbridge.fleet.api import Answer, Call
from weighbridge.fleet.replica import BytesAnswer, Failure, ReplicaError
from weighbridge.fleet.replicas.http import HttpReplica
from weighbridge.wire.body import apart
from weighbridge.wire.errors import ApiError, error_body
from weighbridge.wire.protocols import chat
from weighbridge.wire.protocols.message_upstream import (
    PATH,
    MessageEvents,
    chat_answer,
    chat_error,
    message_request,
)

#: Its own word for too much to do.
_OVERLOADED = 529


class MessagesReplica(HttpReplica):
    """Asks for messages where chats are asked for; it has nothing else."""

    async def open(self, call: Call) -> Answer:
        if call.path != chat.PATH:
            refusal = ApiError(
                404, f"the server behind has no {call.path}; it answers chats", code="not_found"
            )
            return _refused(refusal)
        try:
            body = await apart(len(call.body), message_request, call.body)
        except ApiError as error:
            return _refused(error)
        except (TypeError, AttributeError, ValueError, RecursionError):
            return _refused(ApiError(400, "messages: a field is not of the type that a chat has"))
        answer = await super().open(replace(call, path=PATH, body=body))
        if isinstance(answer, BytesAnswer):
            status = 503 if answer.status == _OVERLOADED else answer.status
            return BytesAnswer(status, chat_error(answer.body), _headers(answer.headers))
        return _MessageAnswer(self.name, answer, call.stream)


def _refused(error: ApiError) -> BytesAnswer:
    return BytesAnswer(error.status, error_body(error), {"content-type": "application/json"})


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What it calls the request goes on under the name that the relay knows."""
    named = headers.get("request-id")
    rest = {name: value for name, value in headers.items() if name != "request-id"}
    return rest if named is None else {**rest, "x-request-id": named}


class _MessageAnswer:
    """Its answer as a chat's, while it comes."""

    def __init__(self, replica: str, answer: Answer, streaming: bool) -> None:
        self.status = answer.status
        self.headers: Mapping[str, str] = _headers(answer.headers)
        self._replica = replica
        self._answer = answer
        self._streaming = streaming

    async def chunks(self) -> AsyncIterator[bytes]:
        created = int(time.time())
        try:
            if not self._streaming:
                parts = [part async for part in self._answer.chunks()]
                yield chat_answer(b"".join(parts), created)
                return
            events = MessageEvents(created)
            async for whole in self._answer.chunks():
                if chunks := events.read(whole):
                    yield chunks
        except ValueError as error:
            raise ReplicaError(self._replica, Failure.BROKEN, str(error)) from error

    async def close(self) -> None:
        await self._answer.close()
