"""A server that speaks OpenAI's chat protocol over real sockets and does exactly what a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Script = Callable[[dict[str, Any], int], list[Any]]


@dataclass
class Seen:
    """What reached the server."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    asked: int = 0  # for tickets, which it has not
    cut: int = 0  # exchanges the client ended early

    async def settled(self, open: int = 0, cut: int | None = None) -> None:
        """Returns once so many exchanges are open and were cut; fails after five seconds."""
        for _ in range(500):
            if self.open == open and cut in (None, self.cut):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.open} exchanges are open, {self.cut} were cut; not {open} and {cut}")


@dataclass
class Server:
    """Serves one connection after the other; a client that goes away ends its exchange."""

    script: Script
    seen: Seen
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if lines[0].startswith("GET /v1/tickets/"):
            self.seen.asked += 1
            _plain(writer, 404, {"error": {"message": "no such page", "code": "not_found"}})
            return True
        assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
        answering = asyncio.ensure_future(self._chat(json.loads(body), headers, writer))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in (answering, gone):
            task.cancel()
        await asyncio.gather(answering, gone, return_exceptions=True)
        return not answering.cancelled() and answering.exception() is None

    async def _chat(
        self, body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter
    ) -> None:
        seen = self.seen
        seen.requests.append(body)
        seen.headers.append(headers)
        seen.open += 1
        begun = ended = False
        try:
            for piece in self.script(body, len(seen.requests) - 1):
                if isinstance(piece, int):
                    _plain(writer, piece, {"error": {"message": "refused by script"}})
                    return
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                    continue
                if isinstance(piece, asyncio.Event):
                    await asyncio.wait_for(piece.wait(), 10.0)
                    continue
                if not begun:
                    begun = True
                    writer.write(STREAM)
                _chunk(writer, b"data: " + json.dumps(piece).encode() + b"\n\n")
                await writer.drain()
            _chunk(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
            ended = True
        finally:
            seen.open -= 1
            seen.cut += not ended


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _plain(writer: asyncio.StreamWriter, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Said so\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)


@asynccontextmanager
async def openai(script: Script) -> AsyncIterator[tuple[str, Seen]]:
    """`script(body, number)` gives what to send: chunks (dicts), pauses (floats), or a status (int) to refuse.

    An `asyncio.Event` is a pause until it is set; it must be within ten seconds.
    """
    server = Server(script, Seen())
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", server.seen
    finally:
        listener.close()
        for task in list(server.tasks):
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def called(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
    """A piece of a tool call."""
    function = {"arguments": arguments} | ({"name": name} if name else {})
    piece = {"index": index, "function": function} | ({"id": f"call{index}"} if name else {})
    return {"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]}


def used(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return {"choices": [], "usage": usage}
