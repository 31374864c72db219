"""HTTPS: handshakes are bounded like heads, files that change are used without cutting anybody off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from tests.fleet.backends import Quiet, until
from tests.wire.certificates import Authority, Pair
from weighbridge.errors import BadInput
from weighbridge.server import connections, lifecycle, tls
from weighbridge.server.connections import BoundedHttp, names_in
from weighbridge.server.lifecycle import check_reach
from weighbridge.server.settings import ListenSettings
from weighbridge.server.tls import Certificates, TlsServer
from weighbridge.wire.identity.settings import IdentitySettings, parse_certificate_name

Test = Callable[[Path, pytest.MonkeyPatch], Coroutine[Any, Any, None]]


def on_both_loops(test: Test) -> Callable[..., None]:
    """asyncio's own event loop, and uvloop, which serves: their TLS has nothing in common."""

    @pytest.mark.parametrize(
        "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    def run(loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(asyncio.wait_for(test(tmp_path, monkeypatch), 100))

    run.__doc__ = test.__doc__
    return run


async def told(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what the connection is known to be."""
    names = scope.get("extensions", {}).get("tls", {}).get("client_names", ())
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = f"{scope['scheme']} {size} {' '.join(names)}".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class QuietTls(Quiet, TlsServer):
    """With the test's own way to run and end it."""


@asynccontextmanager
async def listening(certificates: Certificates) -> AsyncIterator[tuple[int, QuietTls]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(told, http=BoundedHttp, ws="none", log_level="error", lifespan="off")
    server = QuietTls(config, certificates)
    async with server.running(listener):
        yield listener.getsockname()[1], server


def of(pair: Pair, client_ca: Path | None = None) -> Certificates:
    return Certificates(pair.cert, pair.key, client_ca)


async def connect(port: int, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes = b"") -> str:
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    head = await reader.readuntil(b"\r\n\r\n")
    [length] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return (await reader.readexactly(int(length.split(b":")[1]))).decode()


def serial(writer: asyncio.StreamWriter) -> str:
    return str(writer.get_extra_info("peercert")["serialNumber"])


@on_both_loops
async def test_requests_pass_in_a_row_at_once_and_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    async with listening(of(authority.server())) as (port, _):

        async def one(number: int) -> None:
            reader, writer = await connect(port, authority.context())
            body = b"x" * (number * 40_000)
            for _ in range(2):
                assert await ask(reader, writer, body) == f"https {len(body)} "
            writer.close()

        await asyncio.gather(*map(one, range(12)))


@on_both_loops
async def test_what_comes_with_the_end_of_the_handshake_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's last words of the handshake and its request, in one segment."""
    authority = Authority(tmp_path)
    async with listening(of(authority.server())) as (port, _):
        for _ in range(20):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(1 << 16))
            client.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            writer.write(outgoing.read())
            answer = b""
            while not answer.endswith(b"https 0 "):
                incoming.write(await reader.read(1 << 16))
                with contextlib.suppress(ssl.SSLWantReadError):
                    while piece := client.read(1 << 16):  # a record each
                        answer += piece
            writer.close()


@on_both_loops
async def test_the_names_of_a_client_are_those_that_an_authority_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "others")
    shown = authority.sign("batch", "batch", "DNS:batch.example", "URI:spiffe://x/batch", "EMAIL:b@x.example")
    async with listening(of(authority.server(), authority.file)) as (port, _):
        assert await ask(*await connect(port, authority.context())) == "https 0 "
        names = await ask(*await connect(port, authority.context(shown)))
        assert names == "https 0 CN:batch DNS:batch.example URI:spiffe://x/batch EMAIL:b@x.example"
        stranger = authority.context(other.sign("stranger", "batch"))
        with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
            await ask(*await connect(port, stranger))


@on_both_loops
async def test_new_files_are_used_and_open_connections_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    pair, next_pair = authority.server(), authority.server("next")
    certificates = of(pair)
    async with listening(certificates) as (port, _):
        old = await connect(port, authority.context())
        first = serial(old[1])
        certificates.look()
        shutil.copy(next_pair.cert, pair.cert)  # half of the change: they do not belong together
        certificates.look()
        again = await connect(port, authority.context())
        assert serial(again[1]) == first
        shutil.copy(next_pair.key, pair.key)
        certificates.look()
        new = await connect(port, authority.context())
        assert serial(new[1]) != first
        for line in (old, again, new):
            assert await ask(*line) == "https 0 "
        for broken in (b"", b"no PEM", None):
            pair.cert.unlink() if broken is None else pair.cert.write_bytes(broken)
            certificates.look()
            kept = await connect(port, authority.context())
            assert serial(kept[1]) == serial(new[1])


@on_both_loops
async def test_files_are_looked_at_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.01)
    authority = Authority(tmp_path)
    pair, next_pair = authority.server(), authority.server("next")
    link = tmp_path / "link"
    link.symlink_to(pair.cert)
    certificates = Certificates(link, pair.key, None)
    before, task = certificates.context, asyncio.create_task(certificates.watch())
    os.replace(next_pair.key, pair.key)
    (tmp_path / "other").symlink_to(next_pair.cert)
    os.replace(tmp_path / "other", link)  # as orchestrators swap mounted secrets
    await until(lambda: certificates.context is not before)
    task.cancel()


@on_both_loops
async def test_silent_connections_make_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setattr(tls, "connection_limit", lambda: 8)
    monkeypatch.setattr(connections, "connection_limit", lambda: 8)
    async with listening(of(authority.server())) as (port, server):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        await until(lambda: len(server.server_state.connections) <= 8)
        assert await ask(*await connect(port, authority.context())) == "https 0 "
        plain, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in await plain.read()
        for _, line in silent:
            line.close()
        await until(lambda: len(server.server_state.connections) <= 1)


@on_both_loops
async def test_a_handshake_has_the_time_of_a_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    authority = Authority(tmp_path)
    async with listening(of(authority.server())) as (port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")  # the beginning of a handshake
        with_tls = await connect(port, authority.context())  # and one that then says nothing
        assert await reader.read() == b""
        assert await with_tls[0].read() == b""
        await until(lambda: not server.server_state.connections)


@on_both_loops
async def test_a_client_that_leaves_at_once_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    async with listening(of(authority.server())) as (port, server):
        for _ in range(20):
            _, writer = await connect(port, authority.context())
            writer.transport.abort()
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00")
            writer.transport.abort()
        await until(lambda: not server.server_state.connections)


# -- what is refused at the start ------------------------------------------------------------------------


def test_files_that_do_not_do_are_refused_by_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.server(), authority.server("other")
    junk = tmp_path / "junk.pem"
    junk.write_text("no PEM")
    for cert, key, client_ca, named in (
        (pair.cert, other.key, None, "key values mismatch"),
        (tmp_path / "none.pem", None, None, "no such file"),
        (junk, None, None, "junk.pem"),
        (pair.cert, None, None, "server.pem"),
        (pair.cert, pair.key, junk, "junk.pem"),
        (pair.cert, pair.key, tmp_path / "no-ca.pem", "no-ca.pem"),
    ):
        with pytest.raises(BadInput, match=named):
            Certificates(cert, key, client_ca)
    both = tmp_path / "both.pem"
    both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    Certificates(both, None, None)


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(BadInput, match="tls_key needs tls_cert"):
        IdentitySettings(tls_key=Path("k"))
    with pytest.raises(BadInput, match="tls_client_ca needs tls_cert"):
        IdentitySettings(tls_client_ca=Path("k"))
    with pytest.raises(BadInput, match="need tls_client_ca"):
        IdentitySettings(tls_cert=Path("c"), client_certificates=(parse_certificate_name("CN:a=b"),))
    for wrong in ("a=b", "CN:a", "CN:=b", "CN:a=", "IP:1.2.3.4=b", "=", ""):
        with pytest.raises(BadInput, match="DNS:batch"):
            parse_certificate_name(wrong)
    assert parse_certificate_name("URI:spiffe://x/a?b=c=t").name == "URI:spiffe://x/a?b=c"


@pytest.fixture
def anywhere() -> Iterator[socket.socket]:
    """Bound, but not listening: nothing is reachable."""
    listener = socket.socket()
    listener.bind(("0.0.0.0", 0))
    yield listener
    listener.close()


def test_nobody_listens_to_the_world_by_accident(
    anywhere: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(lifecycle.log, "warning", lambda text, *values: warned.append(text % values))
    cert = {"tls_cert": Path("c.pem")}
    with pytest.raises(BadInput, match=r"--api-key and --tls-cert.*--insecure"):
        check_reach(anywhere, ListenSettings(), False)
    for settings, has_keys, said in (
        (ListenSettings(), True, "sent readably"),
        (ListenSettings(**cert), False, "everybody"),
        (ListenSettings(**cert), True, None),
        (ListenSettings(**cert, tls_client_ca=Path("ca.pem")), False, None),
        (ListenSettings(insecure=True), False, None),
    ):
        warned.clear()
        check_reach(anywhere, settings, has_keys)
        assert len(warned) == bool(said)
        assert not said or said in warned[0]
    with socket.create_server(("127.0.0.1", 0)) as here:
        check_reach(here, ListenSettings(), False)


def test_a_certificate_that_ssl_tells_nothing_of_has_no_names() -> None:
    assert names_in({}) == ()
    assert (
        names_in({"subject": ((("countryName", "DE"),),), "subjectAltName": (("IP Address", "1.2.3.4"),)})
        == ()
    )
