"""`weighbridge chat`: talk to a running server, or to a model loaded for the occasion."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import typer

from weighbridge.cli.options import ApiKey, Only, options
from weighbridge.cli.remote import Server
from weighbridge.cli.terminal import errors, visible
from weighbridge.engine.api import Generation
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import SamplingParams
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import WeighbridgeError, said
from weighbridge.knobs import check_choices, knob
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

Messages = list[dict[str, Any]]


class Answerer(Protocol):
    def answer(self, messages: Messages) -> AsyncIterator[Piece]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """How answers are made."""

    system: str | None = knob(None, "A system prompt.")
    temperature: float = knob(0.7, min=0.0, max=2.0)
    max_tokens: int = knob(1024, "Longest answer, in tokens.", min=1)
    thoughts: str = knob(
        "dim", "What a model thinks before it answers: dim, or hide.", choices=("dim", "hide")
    )

    def __post_init__(self) -> None:
        check_choices(self)


@options
def chat(
    model: Annotated[str | None, typer.Argument(help="Model to load, when no --url is given.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server, for example http://127.0.0.1:8080.")
    ] = None,
    api_key: ApiKey = None,
    *,
    params: ChatSettings,
    engine: Annotated[EngineSettings, Only({"quantize"})],
) -> None:
    """Chat in the terminal, streaming. Ctrl-C stops an answer, Ctrl-D or /bye leaves, /new starts over."""
    history: Messages = [{"role": "system", "content": params.system}] if params.system else []
    if url is not None:
        asyncio.run(_converse(Remote(url, api_key, params), history, params))
    else:
        asyncio.run(_chat_locally(model or "default", engine, params, history))


async def _chat_locally(
    model: str, settings: EngineSettings, params: ChatSettings, history: Messages
) -> None:
    from weighbridge.cli.serve.model import load  # loads torch

    replica = load(model, model, replace(settings, max_sequences=1))
    replica.engine.start()
    try:
        await _converse(Local(replica.engine, replica.tokenizer, params), history, params)
    finally:
        replica.engine.stop()


async def _converse(answerer: Answerer, history: Messages, params: ChatSettings) -> None:
    opening = list(history)
    if sys.stdin.isatty():
        errors.print("[dim]Ctrl-C stops an answer, Ctrl-D or /bye leaves, /new starts over.[/]")
    while True:
        line = await asyncio.to_thread(_read_line)
        if line is None or line.strip() == "/bye":
            return
        if line.strip() == "/new":
            history[:] = opening
            continue
        if line.strip():
            history.append({"role": "user", "content": line})
            said = await _print_answer(answerer, history, params.thoughts == "dim")
            history.append({"role": "assistant", "content": said})


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


async def _print_answer(answerer: Answerer, history: Messages, shows_thoughts: bool) -> str:
    """Stream one answer to standard output; Ctrl-C keeps what came so far. Returns what was said, without thoughts."""
    pieces: list[str] = []

    async def stream() -> None:
        async for piece in answerer.answer(history):
            if isinstance(piece, str):
                pieces.append(piece)
                sys.stdout.write(visible(piece))
            elif isinstance(piece, Thought) and shows_thoughts:
                dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
                sys.stdout.write(f"{dim}{visible(piece.text)}{plain}")
            sys.stdout.flush()

    task = asyncio.ensure_future(stream())
    try:
        await task
    except asyncio.CancelledError:
        task.cancel()
        current = asyncio.current_task()
        if current is not None:
            current.uncancel()
    sys.stdout.write("\n")
    return "".join(pieces)


class Local:
    """The model in this process."""

    def __init__(self, engine: LocalEngine, tokenizer: ChatTokenizer, params: ChatSettings) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._params = SamplingParams(max_tokens=params.max_tokens, temperature=params.temperature)
        self._styles = replace(styles_for(tokenizer.template_text), tools=None)

    async def answer(self, messages: Messages) -> AsyncIterator[Piece]:
        prompt = self._tokenizer.encode_chat(messages)
        reading = AnswerReading(self._styles, thinking=ends_in_thought(self._tokenizer, self._styles, prompt))
        shown = self._tokenizer.specials_named(reading.marks)
        stream = self._engine.submit(Generation(prompt, replace(self._params, shown_tokens=shown)))
        read = reading.stream()
        try:
            async for deltas in stream:
                for delta in deltas:
                    for piece in read.push(delta.text):
                        yield piece
            for piece in read.finish():
                yield piece
        finally:
            stream.close()


class Remote:
    """Any server with an OpenAI-compatible chat endpoint."""

    def __init__(self, url: str, api_key: Secret | None, params: ChatSettings) -> None:
        self._server = Server(url, api_key, "is `weighbridge serve` running?", mistakes=())
        self._options = {"temperature": params.temperature, "max_tokens": params.max_tokens, "stream": True}

    async def answer(self, messages: Messages) -> AsyncIterator[Piece]:
        models = await self._server.answer("GET", "/v1/models", patience=PATIENCE)
        body = {**self._options, "model": _first_model(models), "messages": messages}
        framer, read = EventFramer(), AnswerReading(Styles(None, THINK)).stream()
        async with self._server.opened("POST", "/v1/chat/completions", body, patience=PATIENCE) as response:
            while True:
                async with asyncio.timeout(PATIENCE):
                    data = await response.read()
                for event in event_data(framer.feed(data) if data else framer.flush()):
                    thought, text = ("", "") if event == b"[DONE]" else _content(event)
                    if thought:
                        yield Thought(thought)
                    for piece in read.push(text):  # of a server that leaves thoughts in the text
                        yield piece
                if not data:
                    break
        for piece in read.finish():
            yield piece


def _first_model(listed: Any) -> str:
    """Raises WeighbridgeError where a server lists none."""
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise WeighbridgeError("the server lists no model at /v1/models") from error


def _content(event: bytes) -> tuple[str, str]:
    """What is thought and said in one event. Raises WeighbridgeError for an error in the middle of a stream."""
    try:
        value = json.loads(event)
        if value.get("error"):
            raise WeighbridgeError(error_message(event))
        deltas = [choice["delta"] for choice in value.get("choices") or ()]
        thoughts = [delta.get("reasoning_content") or delta.get("reasoning") or "" for delta in deltas]
        return "".join(thoughts), "".join([delta.get("content") or "" for delta in deltas])
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise WeighbridgeError(
            f"the server sent an event that is no part of an answer: {said(error)}"
        ) from error
