"""The gateway's HTTP client against servers that say, byte by byte, what a test tells them."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import until
from weighbridge.wire import client as http_client
from weighbridge.wire.client import HttpClient, Response, Unreachable, header_lines, spoken

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-One: 1\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


class Server:
    """Answers the requests of each connection with `answers`, in turn; None: closes the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(one[15:]) for one in head.split(b"\r\n") if one.startswith(b"Content-Length")), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, OSError, IndexError):
            pass
        finally:
            self.gone.set()
            writer.close()


@asynccontextmanager
async def served(*answers: bytes | None, limit: float = 30.0) -> AsyncIterator[tuple[Server, HttpClient]]:
    server = Server(*answers)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}", limit)
    try:
        yield server, client
    finally:
        client.close()
        listener.close()


async def ask(client: HttpClient, body: bytes = b"{}") -> Response:
    response = await client.send(client.head("POST", "/v1/x", {"A": "b"}), body)
    await response.begin(30.0)
    return response


async def rest(response: Response) -> bytes:
    data = b""
    while piece := await response.read():
        data += piece
    return data


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED])
async def test_a_connection_is_used_again(answer: bytes) -> None:
    async with served(answer, answer, answer) as (server, client):
        for _ in range(3):
            response = await ask(client)
            assert (response.status, await rest(response), response.ended) == (200, b"hello", True)
            response.close()
        assert (len(server.requests), server.connections, len(client.connections)) == (3, 1, 1)


async def test_what_is_sent() -> None:
    async with served(WHOLE, WHOLE) as (server, client):
        response = await ask(client, b"12345")
        assert response.headers == {"content-length": "5", "x-one": "1"}
        await rest(response)
        await (await client.send(client.head("GET", "/load", {}))).begin(30.0)
        host = server.requests[0].split(b"\r\n")[1]
        assert (
            server.requests[0]
            == b"POST /v1/x HTTP/1.1\r\n%b\r\nA: b\r\nContent-Length: 5\r\n\r\n12345" % host
        )
        assert server.requests[1] == b"GET /load HTTP/1.1\r\n%b\r\n\r\n" % host


@pytest.mark.parametrize(
    ("base", "first", "lines"),
    [
        ("https://api.example.com/one/", b"/one/v1/x", {b"Host: api.example.com"}),
        ("http://[::1]:8000", b"/v1/x", {b"Host: [::1]:8000"}),
        ("http://me:secret@h:81", b"/v1/x", {b"Host: h:81", b"Authorization: Basic bWU6c2VjcmV0"}),
    ],
)
def test_where_it_is_sent(base: str, first: bytes, lines: set[bytes]) -> None:
    head = HttpClient(base, 1.0).head("GET", "/v1/x", {}).split(b"\r\n")
    assert head[0] == b"GET %b HTTP/1.1" % first
    assert set(head[1:-1]) == lines


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nB: c", "a\0"])
def test_a_header_cannot_smuggle_another(value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        header_lines({"A": value})


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE.replace(b"X-One: 1", b"Connection: close"),
        WHOLE.replace(b"1.1", b"1.0"),
        WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",  # an answer nobody asked for
    ],
)
async def test_a_connection_is_not_used_again(answer: bytes) -> None:
    async with served(answer, WHOLE) as (server, client):
        assert await rest(await ask(client)) == b"hello"
        assert await rest(await ask(client)) == b"hello"
        assert server.connections == 2


async def test_a_body_without_a_length_lasts_until_the_end() -> None:
    async with served(b"HTTP/1.1 200 OK\r\n\r\nhello", None) as (_, client):
        response = await ask(client)
        assert await response.read() == b"hello"
        next(iter(client.connections)).transport.write(b"POST / HTTP/1.1\r\n\r\n")  # has it closed
        assert await rest(response) == b""
        assert response.ended


async def test_what_comes_before_the_answer_proper_is_no_answer() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with served(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + WHOLE, WHOLE) as (server, client):
        response = await ask(client)
        assert (response.status, "link" in response.headers, await rest(response)) == (200, False, b"hello")
        await rest(await ask(client))
        assert server.connections == 1


@pytest.mark.parametrize("answer", [WHOLE[:-2], CHUNKED[:-3], CHUNKED[:-10]])
async def test_an_answer_that_breaks_off(answer: bytes) -> None:
    async with served(answer, None) as (_, client):
        response = await ask(client)
        assert b"hello".startswith(await response.read())
        next(iter(client.connections)).transport.write(b"POST / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionError):
            await rest(response)
        assert response.answered
        assert not response.ended


async def test_a_connection_that_closes_under_a_request() -> None:
    async with served(WHOLE, None) as (server, client):
        await rest(await ask(client))
        response = await client.send(client.head("POST", "/", {}), b"x")
        with pytest.raises(ConnectionError):
            await response.begin(30.0)
        assert not response.answered
        assert server.connections == 1


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"])
async def test_nonsense(answer: bytes) -> None:
    async with served(answer) as (_, client):
        with pytest.raises(ConnectionError, match="no HTTP"):
            await ask(client)
        await until(lambda: not client.connections)


async def test_headers_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_LARGEST_HEAD", 10_000)
    async with served(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5_000) as (_, client):
        with pytest.raises(ConnectionError, match="headers of more than"):
            await ask(client)


async def test_closing_and_cancelling_close_the_connection() -> None:
    async with served(CHUNKED[:-5], CHUNKED[:-5]) as (server, client):
        response = await ask(client)
        reader = asyncio.create_task(rest(response))
        await asyncio.sleep(0)
        response.close()
        with pytest.raises(ConnectionAbortedError):
            await reader
        await asyncio.wait_for(server.gone.wait(), 30)
    async with served(b"HTTP/1.1 ") as (server, client):
        response = await client.send(client.head("POST", "/", {}), b"x")
        begun = asyncio.create_task(response.begin(30.0))
        await asyncio.sleep(0.01)
        begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun
        await asyncio.wait_for(server.gone.wait(), 30)


async def test_a_whole_body_has_a_bound() -> None:
    async with served(WHOLE, WHOLE) as (server, client):
        assert await (await ask(client)).whole(100) == b"hello"
        assert await (await ask(client)).whole(3) == b"hel"
        assert server.connections == 1
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
    async with served(endless) as (server, client):
        assert await (await ask(client)).whole(10) == b"x" * 10
        await asyncio.wait_for(server.gone.wait(), 30.0)
        assert not client.connections


async def test_an_answer_may_take_any_time_where_its_reader_says_so() -> None:
    async with served(WHOLE) as (_, client):
        response = await client.send(client.head("GET", "/v1/x", {}))
        await response.begin(None)
        assert (response.status, await response.whole(100)) == (200, b"hello")


async def test_no_answer_in_time() -> None:
    async with served(b"HTTP/1.1 ") as (server, client):
        response = await client.send(client.head("POST", "/", {}), b"x")
        with pytest.raises(TimeoutError):
            await response.begin(0.05)
        await asyncio.wait_for(server.gone.wait(), 30)


async def test_what_comes_unasked_ends_a_connection() -> None:
    async with served(WHOLE, WHOLE) as (server, client):
        await rest(await ask(client))
        connection = next(iter(client.connections))
        connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert await rest(await ask(client)) == b"hello"
        assert server.connections == 2


async def test_an_old_connection_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(WHOLE, WHOLE) as (server, client):
        await rest(await ask(client))
        monkeypatch.setattr(http_client, "KEEP_SECONDS", -1.0)
        await rest(await ask(client))
        assert server.connections == 2


async def test_a_slow_reader_holds_the_server_back() -> None:
    size = 40 << 20  # more than all buffers between two sockets take
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    async with served(answer, WHOLE) as (server, client):
        response = await ask(client)
        connection = next(iter(client.connections))
        await until(lambda: not connection.transport.is_reading())
        seen = len(await response.read())
        assert 0 < seen < size
        assert seen + len(await rest(response)) == size
        assert await rest(await ask(client)) == b"hello"
        assert server.connections == 1


async def test_a_server_that_is_not_there() -> None:
    async with served() as (_, client):
        pass
    with pytest.raises(Unreachable):
        await ask(client)


async def test_connections_that_are_not_made_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(http_client, "start_connection", never)
    async with served(limit=0.05) as (_, client):
        with pytest.raises(Unreachable, match=r"no connection within 0\.05 s"):
            await ask(client)


def self_signed(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost, and a server's context with it."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, context = self_signed(tmp_path)
    server = Server(WHOLE, WHOLE)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(Unreachable, match="certificate"):
        await ask(HttpClient(f"https://localhost:{port}", 30.0))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(Unreachable, match="certificate"):
        await ask(HttpClient(f"https://127.0.0.1:{port}", 30.0))  # it is another's
    client = HttpClient(f"https://localhost:{port}", 30.0)
    assert await rest(await ask(client)) == b"hello"
    assert await rest(await ask(client)) == b"hello"
    assert len(client.connections) == 1
    client.close()
    listener.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 1)"),
            "connection refused",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name or service not known"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "WRONG_VERSION_NUMBER"),
        (OSError("closed"), "closed"),
        (ValueError("a header has a line break in it"), "a header has a line break in it"),
        (TimeoutError(), ""),
    ],
)
def test_the_system_speaks_in_words(error: OSError | ValueError, words: str) -> None:
    assert words in spoken(error)
    assert "Errno" not in spoken(error)
    assert bool(spoken(error)) == bool(words)
