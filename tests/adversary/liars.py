"""Backends that lie: this program says first where they are, and ends with its input.

Each has a way of its own: statuses and usage that make no sense, streams that break, stall or never end, reports of
load that are absurd, and answers of any bytes. At its end it says how often they were asked, and how often
what they were asked had something in it that must not leave.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.adversary.heavy import SECRET
from tests.adversary.programs import report, say
from tests.doors.test_upstream import ABSURD, behaving
from tests.fleet.backends import Backend, serving
from tests.fuzz import seeds
from tests.fuzz.changes import changed

#: Paths of `behaving`, each a way to answer.
CASES = [
    *("200-first", "200-slow", "200-event", "200-head", "200-open", "500-page", "500-bytes", "429-huge"),
    *("503-date", "429-noday"),
    *(f"200-usage-{kind}" for kind in ABSURD),
]
#: What the answers of any bytes are drawn from.
SEED = 7
ABSURD_LOAD: dict[str, Any] = {
    "queued_requests": -5,
    "running_requests": 1 << 70,
    "queued_tokens": 1e308,
    "kv_blocks_total": "many",
    "block_size": 0,
    "step_cost": {"overhead": -1e300, "memory": "x"},
}
WORDS = (b"data: ", b"\n\n", b"\r\n", b"Content-Length: 3\r\n", b"[DONE]", b'{"', b"1e999", b"\0")


def backends() -> list[Backend]:
    """OpenAI-like ones that fail in the middle. They remember no request."""
    ways: list[dict[str, Any]] = [
        {"break_after": 2},
        {"stall_after": 2},
        {"end_early_after": 2},
        {"endless": True, "gap": 0.005},
        {"comments_only": True},
        {"error_in_stream": True},
        {"load": ABSURD_LOAD},
        {"usage": {"completion_tokens": -(1 << 70)}},
        {"load_status": 500},
        {"linger": 30.0},
    ]
    found = []
    for way in ways:
        forgetful: Any = {name: deque(maxlen=1) for name in ("calls", "headers", "paths", "raw")}
        found.append(Backend(**forgetful, **way))
    return found


class Listening:
    """An application that counts its requests and looks for what must not leave."""

    def __init__(self, app: Any, done: Counter[str]) -> None:
        self._app = app
        self._done = done

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def heard() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                count(message.get("body", b""), self._done)
            return message

        await self._app(scope, heard, send)


def count(body: bytes, done: Counter[str]) -> None:
    if body:
        done["asked"] += 1
        done["told a secret"] += SECRET.encode() in body


class AnyBytes:
    """A server that answers with bytes that are nearly an answer, or never end."""

    def __init__(self, draw: random.Random, done: Counter[str]) -> None:
        self._draw = draw
        self._done = done
        framed = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        self._answers = [
            *(answer[1:] for answer in seeds.answers()),
            *(framed + events[1:] for events in seeds.events()),
        ]

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(20):
                count(await reader.read(1 << 20), self._done)
                if self._draw.random() < 0.1:
                    await self._endless(writer)
                data = changed(self._draw.choice(self._answers), WORDS, self._draw)
                for at in range(0, len(data), 50):
                    writer.write(data[at : at + 50])
                    await writer.drain()
                await asyncio.sleep(self._draw.choice((0.0, 0.0, 5.0)))
        except (OSError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _endless(self, writer: asyncio.StreamWriter) -> None:
        """A body of spaces, as long as somebody reads it; not faster than the machine can bear."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" " * (64 << 10))
            await writer.drain()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def all_liars(seed: int, done: Counter[str]) -> AsyncIterator[list[str]]:
    """Their URLs, until the block ends."""
    async with AsyncExitStack() as stack:
        odd = await stack.enter_async_context(serving(Listening(behaving, done)))
        urls = [f"{odd}/{case}" for case in CASES]
        apps = [serving(Listening(backend, done)) for backend in backends()]
        urls += [await stack.enter_async_context(app) for app in apps]
        server = await asyncio.start_server(AnyBytes(random.Random(seed), done), "127.0.0.1", 0)
        await stack.enter_async_context(server)
        host, port = server.sockets[0].getsockname()
        yield [*urls, f"http://{host}:{port}"]


async def main() -> None:
    done: Counter[str] = Counter()
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # its own lines break on purpose
    async with all_liars(SEED, done) as urls:
        say(urls)
        await asyncio.to_thread(sys.stdin.read)
    say(report(done))


if __name__ == "__main__":
    os.nice(int(sys.argv[1]))
    asyncio.run(main())
