"""Who answers a conversation: a model in this process, or a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from weighbridge.cli.chat.talk import Talk
from weighbridge.cli.remote import Server
from weighbridge.engine.api import Generation
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import SamplingParams
from weighbridge.errors import WeighbridgeError, said
from weighbridge.secret import Secret
from weighbridge.server.endpoint import ChatTokenizer
from weighbridge.server.engine.reading import ends_in_thought
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import Styles, styles_for
from weighbridge.server.styles.pieces import Piece, Thought
from weighbridge.server.styles.reasoning import THINK
from weighbridge.wire.errors import error_message
from weighbridge.wire.sse import EventFramer, event_data

#: Seconds of silence after which a server is given up.
PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class TokenCount:
    """So many tokens have come so far, thoughts included."""

    count: int


Said: TypeAlias = Piece | TokenCount


class Answerer(Protocol):
    def answer(self, talk: Talk) -> AsyncIterator[Said]: ...


class Local:
    """The model in this process."""

    def __init__(self, engine: LocalEngine, tokenizer: ChatTokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._styles = replace(styles_for(tokenizer.template_text), tools=None)

    async def answer(self, talk: Talk) -> AsyncIterator[Said]:
        prompt = self._tokenizer.encode_chat(talk.messages)
        reading = AnswerReading(self._styles, thinking=ends_in_thought(self._tokenizer, self._styles, prompt))
        params = SamplingParams(
            max_tokens=talk.settings.max_tokens,
            temperature=talk.settings.temperature,
            shown_tokens=self._tokenizer.specials_named(reading.marks),
        )
        stream = self._engine.submit(Generation(prompt, params))
        read, count = reading.stream(), 0
        try:
            async for deltas in stream:
                for delta in deltas:
                    for piece in read.push(delta.text):
                        yield piece
                    count += len(delta.tokens)
                    yield TokenCount(count)
            for piece in read.finish():
                yield piece
        finally:
            stream.close()


class Remote:
    """Any server with an OpenAI-compatible chat endpoint."""

    def __init__(self, url: str, api_key: Secret | None) -> None:
        """Raises BadInput for what is no URL."""
        self._server = Server(url, api_key, "is `weighbridge serve` running?", mistakes=())
        self._server.check()

    async def answer(self, talk: Talk) -> AsyncIterator[Said]:
        if talk.model is None:
            talk.model = _first_model(await self._server.answer("GET", "/v1/models", patience=PATIENCE))
        body = {
            "model": talk.model,
            "messages": talk.messages,
            "temperature": talk.settings.temperature,
            "max_tokens": talk.settings.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        read = AnswerReading(Styles(None, THINK)).stream()  # of a server that leaves thoughts in the text
        count = 0
        async for event in self._events(body):
            told = _told(event)
            if told.thought:
                yield Thought(told.thought)
            for piece in read.push(told.text):
                yield piece
            count = told.tokens or count + bool(
                told.thought or told.text
            )  # without usage, events are counted
            yield TokenCount(count)
        for piece in read.finish():
            yield piece

    async def _events(self, body: Any) -> AsyncIterator[bytes]:
        framer = EventFramer()
        async with self._server.opened("POST", "/v1/chat/completions", body, patience=PATIENCE) as response:
            while True:
                async with asyncio.timeout(PATIENCE):
                    data = await response.read()
                for event in event_data(framer.feed(data) if data else framer.flush()):
                    if event != b"[DONE]":
                        yield event
                if not data:
                    return


def _first_model(listed: Any) -> str:
    """Raises WeighbridgeError where a server lists none."""
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise WeighbridgeError("the server lists no model at /v1/models") from error


@dataclass(frozen=True, slots=True)
class _Told:
    """What is thought and said in one event, and the tokens in all where it counts them."""

    thought: str
    text: str
    tokens: int


def _told(event: bytes) -> _Told:
    """Raises WeighbridgeError for an error in the middle of a stream, and for what is no part of an answer."""
    try:
        value = json.loads(event)
        if value.get("error"):
            raise WeighbridgeError(error_message(event))
        deltas = [choice["delta"] for choice in value.get("choices") or ()]
        thoughts = [delta.get("reasoning_content") or delta.get("reasoning") or "" for delta in deltas]
        tokens = int((value.get("usage") or {}).get("completion_tokens") or 0)
        return _Told("".join(thoughts), "".join([delta.get("content") or "" for delta in deltas]), tokens)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise WeighbridgeError(
            f"the server sent an event that is no part of an answer: {said(error)}"
        ) from error
