"""A connection costs what it may: heads, bodies, seconds and numbers are bounded, and upgrades lose no body."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from tests.fleet.backends import Quiet, until
from weighbridge.server import connections
from weighbridge.server.connections import BoundedHttp, Gathering, without_upgrade


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening(app: Any = echo, **options: Any) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedHttp, ws="none", log_level="error", lifespan="off", **options)
    server = Quiet(config)
    async with server.running(listener):
        yield listener.getsockname()[1]


async def said(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


def request(body: bytes, *lines: str) -> bytes:
    head = "\r\n".join(["POST / HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines])
    return head.encode() + b"\r\n\r\n" + body


async def test_a_head_that_never_ends_is_refused_at_its_bound() -> None:
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        sent = 0
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # noqa: PT012
            while True:
                writer.write(b"a" * 8192)
                sent += 8192
                await writer.drain()
                await asyncio.sleep(0)
                if reader.at_eof() or sent > 16 << 20:
                    raise ConnectionError
        assert sent < 16 << 20
        writer.close()
        assert b"431" in await said(port, b"GET / HTTP/1.1\r\nX: " + b"a" * (connections.LARGEST_HEAD + 1))
        whole = b"GET / HTTP/1.1\r\nX: " + b"a" * (connections.LARGEST_HEAD + 1) + b"\r\n\r\n"
        assert b"headers_too_large" in await said(port, whole)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX-Host: a\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhOST: a\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost:\r\n", b"200"),  # empty is allowed: there is none to name
        (b"GET / HTTP/1.0\r\n", b"200"),
    ],
)
async def test_a_request_names_its_host(head: bytes, status: bytes) -> None:
    async with listening() as port:
        answer = await said(port, head + b"Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.count(b"server: ") == 1
        assert (b"no_host" in answer) == (status == b"400")
        behind = await said(port, request(b"first"), head + b"Connection: close\r\n\r\n")
        assert behind.startswith(b"HTTP/1.1 200"), "what came before it is answered"
        assert (b"no_host" in behind) == (status == b"400")


async def test_requests_in_pieces_and_in_a_row_arrive_whole() -> None:
    async with listening() as port:
        first, second = request(b"one"), request(b"two", "Connection: close")
        for cut in range(1, len(first + second), 7):
            both = first + second
            answer = await said(port, both[:cut], both[cut:], pause=0.002)
            assert answer.count(b"200 OK") == 2, cut
            assert answer.endswith(b"two")


async def test_an_upgrade_is_served_as_it_is_with_its_body() -> None:
    lines = ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAEAA")
    async with listening() as port:
        answer = await said(port, request(b"kept", *lines))
        assert b"200 OK" in answer
        assert answer.endswith(b"kept")
        assert b"200 OK" in await said(port, request(b"ws", "Connection: upgrade", "Upgrade: websocket"))


def test_only_the_wish_for_another_protocol_is_taken_out() -> None:
    head = request(b"body", "connection: keep-alive, Upgrade", "UPGRADE: h2c", "X-Upgrade: no")
    left = without_upgrade(head)
    assert b"UPGRADE" not in left
    assert b"connection: keep-alive\r\n" in left
    assert left.endswith(b"X-Upgrade: no\r\n\r\nbody")
    plain = request(b"upgrade: no\r\n\r\n")
    assert without_upgrade(plain) == plain


async def test_silent_and_slow_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.2)
    async with listening() as port:
        for start, answer in ((b"", b""), (b"GET / HT", b"408"), (request(b"12345")[:-2], b"408")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            assert answer in await asyncio.wait_for(reader.read(), 30)
            writer.close()


async def test_too_many_silent_connections_make_room_for_those_that_speak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "connection_limit", lambda: 8)
    async with listening() as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        assert b"200 OK" in await said(port, request(b"x", "Connection: close"))
        await until(lambda: sum(reader.at_eof() for reader, _ in silent) >= 30)
        for _, writer in silent:
            writer.close()


async def test_whoever_leaves_is_missed_though_more_was_asked_on_the_same_line() -> None:
    """The answer under way is not that of the request that was read last."""
    begun, missed = asyncio.Event(), asyncio.Event()

    async def until_left(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": b"more", "more_body": True})
        missed.set()

    async with listening(until_left) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(b"") * 3)
        await asyncio.wait_for(begun.wait(), 30)
        writer.transport.abort()
        await asyncio.wait_for(missed.wait(), 30)


async def test_a_line_holds_few_requests_that_wait_for_their_turn() -> None:
    served, go_on = [], asyncio.Event()

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await go_on.wait()
        await echo(scope, receive, send)

    async with listening(slowly) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(b"") * (connections.MOST_PIPELINED + 2))
        with pytest.raises(OSError):  # noqa: PT012
            assert await asyncio.wait_for(reader.read(), 30) == b""
            raise ConnectionResetError
        writer.close()
        go_on.set()
        few = request(b"") * connections.MOST_PIPELINED + request(b"", "Connection: close")
        assert (await said(port, few)).count(b"200 OK") == connections.MOST_PIPELINED + 1
        assert len(served) <= connections.MOST_PIPELINED + 2


async def test_nothing_holds_a_connection_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty lines are no request, and neither is the rest of a body that was answered before it came."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with listening(refuse, timeout_keep_alive=1) as port:
        for first, rest in (
            (b"\r\n\r\n", b""),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\n"),
            (request(b"12345")[:-2], b"45"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            await writer.drain()
            await asyncio.sleep(0.2)
            writer.write(rest)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.count(b"401 Unauthorized") == bool(rest), first
            writer.close()


async def test_lines_behind_a_body_are_believed_by_nobody_and_bounded() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def listed(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["headers"])
        await echo(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    async with listening(listed) as port:
        answer = await said(port, head + b"3\r\nabc\r\n0\r\nX-Tenant: another\r\n\r\n")
        assert answer.endswith(b"abc")
        assert b"x-tenant" not in dict(seen[0])
        for line in (b"a: b\r\n" * 1000, b"a" * 8000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + b"3\r\nabc\r\n0\r\nX: ")
            sent = 0
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # noqa: PT012
                while sent < 16 << 20 and not reader.at_eof():
                    writer.write(line)
                    sent += len(line)
                    await writer.drain()
                    await asyncio.sleep(0)
                raise ConnectionError
            assert sent < 16 << 20
            writer.close()


class Written:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def test_a_head_goes_out_with_what_follows_at_once_and_nothing_is_lost_at_the_end() -> None:
    written = Written()
    line = Gathering(written, asyncio.get_running_loop())  # type: ignore[arg-type]
    line.hold(b"head")
    assert written.writes == []
    line.write(b"first")
    assert written.writes == [b"headfirst"]
    line.write(b"second")
    assert written.writes[1:] == [b"second"]
    await asyncio.sleep(0)
    assert len(written.writes) == 2
    line.hold(b"head")
    line.hold(b", and more of it")
    await asyncio.sleep(0)  # nothing followed in this turn
    assert written.writes[2:] == [b"head, and more of it"]
    line.hold(b"last")
    line.close()
    assert written.writes[3:] == [b"last"]
    assert line.is_closing()
    await asyncio.sleep(0)
    assert len(written.writes) == 4


async def test_what_comes_too_late_for_a_line_is_dropped() -> None:
    written = Written()
    line = Gathering(written, asyncio.get_running_loop())  # type: ignore[arg-type]
    line.hold(b"head")
    written.closed = True
    line.flush()
    line.write(b"more")
    line.hold(b"and more")
    await asyncio.sleep(0)
    assert written.writes == []


async def test_a_body_that_we_hold_back_ourselves_has_its_time_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It came behind a request whose answer takes longer than a body may: that is our time, not its client's."""
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.2)

    async def slow_at_first(scope: Any, receive: Any, send: Any) -> None:
        if scope["headers"][-1][0] == b"wait":
            await asyncio.sleep(0.7)
        await echo(scope, receive, send)

    long = b"x" * (4 << 20)
    async with listening(slow_at_first) as port:
        answer = await said(port, request(b"one", "Wait: yes") + request(long, "Connection: close"))
        assert answer.count(b"200 OK") == 2
        assert answer.endswith(long)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(b"one", "Wait: yes") + request(long)[: 1 << 20])  # and the rest never comes
        answer = await asyncio.wait_for(reader.read(), 30)
        assert answer.count(b"200 OK") == 1
        assert b"408" in answer
        writer.close()


async def test_whoever_answers_is_told_that_its_client_is_gone_whatever_came_before() -> None:
    """Also behind a body so long that reading was held back, and for a request that waited for its turn."""
    told: list[str] = []

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/quick":
            await asyncio.sleep(0.05)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.Event()
        receive.__self__.when_gone(gone.set)
        told.append("here")
        await asyncio.wait_for(gone.wait(), 30)
        told.append("gone")

    async with listening(waits) as port:
        for first in (b"", request(b"one").replace(b"POST / ", b"POST /quick ")):
            told.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first + request(b"x" * (1 << 20)))
            await writer.drain()
            await until(lambda: told == ["here"])
            writer.transport.abort()
            await until(lambda: told == ["here", "gone"])


async def test_a_client_that_left_before_anybody_asked_is_told_of_at_once() -> None:
    asked, told = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await until(lambda: receive.__self__.disconnected)
        receive.__self__.when_gone(told.set)
        await asyncio.wait_for(told.wait(), 30)

    async with listening(slow) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(b"one"))
        await asyncio.wait_for(asked.wait(), 30)
        writer.transport.abort()
        await asyncio.wait_for(told.wait(), 30)


@pytest.mark.parametrize(
    "header",
    [
        (b"x-bad", b"a\r\nx-more: b"),
        (b"x-bad", b"a\nb"),
        (b"x-bad", b"a\0b"),
        (b"x bad", b"a"),
        (b"x-bad:", b"a"),
    ],
)
async def test_a_header_that_would_be_two_is_never_written(header: tuple[bytes, bytes]) -> None:
    async def odd(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"0"), header]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async with listening(odd) as port:
        for _ in range(2):  # what is known of names changes nothing
            answer = await said(port, request(b"one", "Connection: close"))
            assert b"x-more" not in answer
            assert b"200 OK" not in answer


async def test_a_connection_that_is_used_again_and_again_is_closed_once_it_is_not() -> None:
    async with listening(timeout_keep_alive=1) as port:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(4):
            writer.write(request(b"one"))
            assert await reader.readuntil(b"one")
            await asyncio.sleep(0.4)
        since = loop.time()
        assert await asyncio.wait_for(reader.read(), 30) == b""
        assert 0.3 < loop.time() - since < 20
        writer.close()
