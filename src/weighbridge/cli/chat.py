"""`weighbridge chat`: talk to a running server, or to a model loaded for the occasion."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Protocol

import aiohttp
import typer

from weighbridge.cli.options import Only, options
from weighbridge.cli.terminal import errors
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import WeighbridgeError

Messages = list[dict[str, Any]]


class Answerer(Protocol):
    def answer(self, messages: Messages) -> AsyncIterator[str]: ...


@options
def chat(
    model: Annotated[str | None, typer.Argument(help="Model to load, when no --url is given.")] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server, for example http://127.0.0.1:8080.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="WEIGHBRIDGE_API_KEY", help="Its API key.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 1024,
    *,
    engine: Annotated[EngineSettings, Only({"quantize"})],
) -> None:
    """Chat in the terminal, streaming. Ctrl-C stops an answer, Ctrl-D or /bye leaves, /new starts over."""
    history: Messages = [{"role": "system", "content": system}] if system else []
    if url is not None:
        asyncio.run(_converse(Remote(url, api_key, temperature, max_tokens), history))
    else:
        asyncio.run(_chat_locally(model, engine, temperature, max_tokens, history))


async def _chat_locally(
    model: str | None, settings: EngineSettings, temperature: float, max_tokens: int, history: Messages
) -> None:
    from weighbridge.cli.serve.model import load  # loads torch

    replica = load(model or "default", model or "default", replace(settings, max_sequences=1))
    replica.engine.start()
    try:
        await _converse(Local(replica, temperature, max_tokens), history)
    finally:
        replica.engine.stop()


async def _converse(answerer: Answerer, history: Messages) -> None:
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
            history.append({"role": "assistant", "content": await _print_answer(answerer, history)})


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


async def _print_answer(answerer: Answerer, history: Messages) -> str:
    """Stream one answer to standard output; Ctrl-C keeps what came so far."""
    pieces: list[str] = []

    async def stream() -> None:
        async for piece in answerer.answer(history):
            pieces.append(piece)
            sys.stdout.write(piece)
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

    def __init__(self, replica: Any, temperature: float, max_tokens: int) -> None:
        self._replica = replica
        self._temperature = temperature
        self._max_tokens = max_tokens

    async def answer(self, messages: Messages) -> AsyncIterator[str]:
        from weighbridge.engine.api import Generation
        from weighbridge.engine.request import SamplingParams

        prompt = self._replica.tokenizer.encode_chat(messages)
        params = SamplingParams(max_tokens=self._max_tokens, temperature=self._temperature)
        stream = self._replica.engine.submit(Generation(prompt, params))
        try:
            async for deltas in stream:
                for delta in deltas:
                    yield delta.text
        finally:
            stream.close()


class Remote:
    """Any server with an OpenAI-compatible chat endpoint."""

    def __init__(self, url: str, api_key: str | None, temperature: float, max_tokens: int) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._options = {"temperature": temperature, "max_tokens": max_tokens, "stream": True}

    async def answer(self, messages: Messages) -> AsyncIterator[str]:
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=300)
        try:
            async with aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session:
                body = {**self._options, "model": await self._model(session), "messages": messages}
                async with session.post(f"{self._url}/v1/chat/completions", json=body) as answer:
                    await _raise_for_error(answer)
                    async for line in answer.content:
                        text = _content(line)
                        if text:
                            yield text
        except (aiohttp.ClientError, TimeoutError) as error:
            raise WeighbridgeError(
                f"no answer from {self._url} ({error}); is `weighbridge serve` running?"
            ) from error

    async def _model(self, session: aiohttp.ClientSession) -> str:
        async with session.get(f"{self._url}/v1/models") as answer:
            await _raise_for_error(answer)
            return str((await answer.json())["data"][0]["id"])


async def _raise_for_error(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    try:
        message = (await answer.json(content_type=None))["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {answer.status}"
    raise WeighbridgeError(str(message))


def _content(line: bytes) -> str:
    """The text of one server-sent event line, empty for everything else."""
    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
        return ""
    event = json.loads(line[6:])
    if "error" in event:
        raise WeighbridgeError(str(event["error"].get("message", event["error"])))
    return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
