"""Clients that take their time or leave: heads and bodies that trickle, answers unread, lines cut anywhere."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tests.adversary.programs import Task, attend, report
from tests.adversary.site import GATEWAY, MODELS, ROUTE, SINGLE
from tests.doors.doors import KEYS

#: How many there are at a time, and the longest that one stays.
CLIENTS, STAY = 120, 20.0

Lines = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Behave = Callable[[Lines, bytes, bytes, random.Random], Awaitable[None]]


def message(door: str, draw: random.Random, stream: bool, tokens: int) -> tuple[bytes, bytes]:
    """Head and body of a chat that is well-formed."""
    fields = {
        "model": MODELS[door],
        "messages": [{"role": "user", "content": f"tell me a long story {draw.random()}"}],
        "max_tokens": tokens,
        "stream": stream,
    }
    body = json.dumps(fields).encode()
    key = KEYS["bob"]
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


async def trickle(writer: asyncio.StreamWriter, data: bytes, draw: random.Random) -> None:
    for at in range(0, len(data), 3):
        writer.write(data[at : at + 3])
        await writer.drain()
        await asyncio.sleep(draw.uniform(0.1, 0.5))


async def silent(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    """Say nothing."""
    await line[0].read()


async def slow_head(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    await trickle(line[1], head, draw)


async def slow_body(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    line[1].write(head)
    await trickle(line[1], body, draw)
    await line[0].read(1 << 16)


async def half_a_body(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    line[1].write(head + body[: draw.randrange(len(body))])
    await line[0].read(1 << 16)


async def deaf(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    """Ask for an answer and do not read it."""
    line[0]._transport.pause_reading()  # type: ignore[attr-defined]
    line[1].write(head + body)
    await asyncio.sleep(STAY)


async def slow_reader(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    line[1].write(head + body)
    while await line[0].read(7):  # noqa: ASYNC110 (it is slow)
        await asyncio.sleep(draw.uniform(0.05, 0.3))


async def leaver(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    """Ask, hear a little at most, and go."""
    line[1].write(head + body)
    if draw.random() < 0.5:
        await line[0].read(64)
    await asyncio.sleep(draw.uniform(0.0, 0.3))


async def hurried(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    """Many requests down one line without waiting for answers."""
    line[1].write((b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20 + head + body) * 2)
    await line[0].read(1 << 16)


async def stranger(line: Lines, head: bytes, body: bytes, draw: random.Random) -> None:
    """Speak another language: TLS."""
    line[1].write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500))
    await line[0].read(1 << 16)


BEHAVIOURS: tuple[tuple[Behave, float], ...] = (
    (silent, 2),
    (slow_head, 2),
    (slow_body, 2),
    (half_a_body, 1),
    (deaf, 1),
    (slow_reader, 1),
    (leaver, 2),
    (hurried, 1),
    (stranger, 1),
)


def cut(writer: asyncio.StreamWriter, draw: random.Random) -> None:
    """Close a line: in order, or with a reset."""
    if draw.random() < 0.5 and not writer.is_closing():
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


async def one(task: Task, draw: random.Random, stay: float) -> str:
    """One visit of one client; returns what it was."""
    door = draw.choice((SINGLE, GATEWAY, ROUTE))
    [behave] = draw.choices([one for one, _ in BEHAVIOURS], [weight for _, weight in BEHAVIOURS])
    head, body = message(door, draw, draw.random() < 0.8, draw.choice((4, 16, 64)))
    try:
        line = await asyncio.open_connection("127.0.0.1", task.ports.of(door), limit=1 << 10)
    except OSError:
        return "refused"
    try:
        async with asyncio.timeout(stay):
            await behave(line, head, body, draw)
    except TimeoutError:
        return f"{behave.__name__} to the end"
    except OSError:
        return f"{behave.__name__} cut off"
    finally:
        cut(line[1], draw)
    return behave.__name__


async def client(task: Task, number: int, done: Counter[str]) -> None:
    draw = random.Random(task.seed * 1000 + number)
    await asyncio.sleep(draw.uniform(0.0, 2.0))
    while (left := task.left) > 0.5:
        done[await one(task, draw, min(left, draw.uniform(1.0, STAY)))] += 1
        await asyncio.sleep(draw.uniform(0.0, 1.0))


async def main(task: Task) -> dict[str, Any]:
    done: Counter[str] = Counter()
    await asyncio.gather(*(client(task, number, done) for number in range(CLIENTS)))
    return report(done)


if __name__ == "__main__":
    attend(lambda task: asyncio.run(main(task)))
