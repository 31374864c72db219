"""The edge's own view of a prompt: the hidden state behind its last token, and how sure the model is of the next one.

Our engine gives both at `/v1/embeddings` for a chat, and the blocks it computed for them stay in its prefix cache, so
the answer that follows does not compute the prompt again. Only an edge on this machine is ever asked.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from weighbridge.errors import WeighbridgeError
from weighbridge.fleet.api import Call
from weighbridge.fleet.load.dialects import dialect
from weighbridge.fleet.replicas.http import HttpEndpoint, HttpReplica
from weighbridge.routes.difficulty.embedders.vectors import EmbeddingFailed, Question, Source, Vector
from weighbridge.routes.errors import PlaceFailed
from weighbridge.secret import Secret
from weighbridge.wire.errors import error_message

NAME = "edge"
#: What of a chat makes its prompt, as the engine sees it.
CHAT_FIELDS = ("messages", "tools", "tool_choice", "chat_template_kwargs", "add_generation_prompt")
NEXT_TOKEN = ("entropy", "top_logprob", "margin")


class GivesState(Protocol):
    """An engine that is asked for the state of a prompt."""

    async def embeddings(
        self, chat_body: Mapping[str, Any], timeout: float, tenant: str, priority: int
    ) -> Any:
        """What `/v1/embeddings` answers to a chat, decoded. Raises PlaceFailed."""
        ...


class EdgeState:
    """The vectors of one edge: its hidden state, then what is known of the next token. `timeout` in seconds."""

    name = NAME

    def __init__(self, engine: GivesState, timeout: float = 60.0) -> None:
        self._engine = engine
        self._timeout = timeout

    async def embed(self, question: Question) -> Vector:
        chat = {name: question.body[name] for name in CHAT_FIELDS if question.body.get(name) is not None}
        body = {**chat, "encoding_format": "base64"}
        if question.cache_salt:
            body["cache_salt"] = question.cache_salt
        try:
            answer = await self._engine.embeddings(body, self._timeout, question.tenant, question.priority)
        except PlaceFailed as error:
            raise EmbeddingFailed(str(error)) from error
        return state_of(answer)

    async def close(self) -> None:
        """The engine is somebody else's to close."""


class EdgeServer:
    """An engine on this machine that is in no fleet: labels are prepared with it. `base`: its URL without /v1."""

    def __init__(self, base: str, model: str, key: Secret | None = None) -> None:
        self._model = model
        self._replica = HttpReplica("edge", HttpEndpoint(base, dialect("weighbridge"), key))

    async def embeddings(
        self, chat_body: Mapping[str, Any], timeout: float, tenant: str, priority: int
    ) -> Any:
        """Raises PlaceFailed."""
        body = msgspec.json.encode({**chat_body, "model": self._model})
        try:
            async with asyncio.timeout(timeout):
                answer = await self._replica.open(Call("/v1/embeddings", body))
                text = b"".join([chunk async for chunk in answer.chunks()])
        except (WeighbridgeError, TimeoutError) as error:
            raise PlaceFailed(f"edge: {str(error) or 'no answer in time'}", status=504) from error
        if answer.status != 200:
            raise PlaceFailed(f"edge answered {answer.status}: {error_message(text)}", status=answer.status)
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise PlaceFailed("edge sent an answer that is no JSON") from None

    async def close(self) -> None:
        await self._replica.close()


def state_of(answer: Any) -> Vector:
    """The vector in an answer of `/v1/embeddings`. Raises EmbeddingFailed for one that another server gave."""
    try:
        [row] = answer["data"]
        hidden = np.frombuffer(b64decode(row["embedding"], validate=True), "<f4")
        told = np.array([float(row["next_token"][name]) for name in NEXT_TOKEN], np.float32)
        model = str(answer["model"])
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise EmbeddingFailed(
            "the edge gives no state of a prompt; only a Weighbridge engine does"
        ) from error
    values = np.concatenate([hidden, told])
    if not len(hidden) or not np.isfinite(values).all():
        raise EmbeddingFailed("the edge gave a state with values that are no numbers")
    return Vector(Source(NAME, model, (len(hidden), len(told))), values)
