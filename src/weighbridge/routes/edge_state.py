"""The edge's own view of a prompt: the hidden state behind its last token, and how sure the model is of the next one.

Our engine gives both at `/v1/embeddings` for a chat, and the blocks it computed for them stay in its prefix cache, so
the answer that follows does not compute the prompt again. Only an edge on this machine is ever asked.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any, Protocol

import numpy as np

from weighbridge.routes.difficulty.vectors import EmbeddingFailed, Question, Source, Vector
from weighbridge.routes.errors import SideFailed
from weighbridge.routes.side import SideRequest

NAME = "edge"
#: What of a chat makes its prompt, as the engine sees it.
CHAT_FIELDS = ("messages", "tools", "tool_choice", "chat_template_kwargs", "add_generation_prompt")
NEXT_TOKEN = ("entropy", "top_logprob", "margin")


class GivesState(Protocol):
    """Of a `Side`, what is needed here."""

    async def embeddings(self, request: SideRequest) -> Any: ...


class EdgeState:
    """The vectors of one edge: its hidden state, then what is known of the next token. `timeout` in seconds."""

    name = NAME

    def __init__(self, side: GivesState, timeout: float = 60.0) -> None:
        self._side = side
        self._timeout = timeout

    async def embed(self, question: Question) -> Vector:
        chat = {name: question.body[name] for name in CHAT_FIELDS if question.body.get(name) is not None}
        headers = {"x-weighbridge-tenant": question.tenant} if question.tenant.isprintable() else {}
        request = SideRequest(
            {**chat, "encoding_format": "base64"},
            question.size,
            headers,
            self._timeout,
            question.tenant,
            question.priority,
        )
        try:
            return state_of(await self._side.embeddings(request))
        except SideFailed as error:
            raise EmbeddingFailed(str(error)) from error

    async def close(self) -> None:
        """The side is the router's to close."""


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
