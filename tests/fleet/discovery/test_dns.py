"""Replicas behind a name in DNS: a real name server on real sockets, which says what a test wants."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, all_served, fleet, until
from weighbridge.errors import BadInput
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.discovery import dns, found
from weighbridge.fleet.discovery.dns import DnsSource, Resolvers, read_resolv_conf
from weighbridge.fleet.discovery.dns_messages import AAAA, SRV, A, MalformedAnswer, name_bytes, query, read
from weighbridge.fleet.discovery.found import FoundServer, SourceFailed


class NameServer(asyncio.DatagramProtocol):
    """`records`: by name and kind the bodies of records; names that are not there do not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], list[bytes]] = {}
        self.ttl = 1
        self.code: int | None = None
        self.truncates = False
        self.lies = False  # sends answers to other questions first
        self.asked: list[tuple[str, int, str]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.lies:
            number = struct.unpack_from("!H", data)[0] ^ 1
            self.transport.sendto(struct.pack("!H", number) + self.answer(data, "lie")[2:], addr)
            self.transport.sendto(b"\xff" * 40, addr)
        self.transport.sendto(self.answer(data, "udp"), addr)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = struct.unpack("!H", await reader.readexactly(2))[0]
        answer = self.answer(await reader.readexactly(size), "tcp")
        writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()

    def answer(self, data: bytes, over: str) -> bytes:
        number, at, parts = struct.unpack_from("!H", data)[0], 12, []
        while size := data[at]:
            parts.append(data[at + 1 : at + 1 + size].decode())
            at += size + 1
        kind = struct.unpack_from("!H", data, at + 1)[0]
        question, name = data[12 : at + 5], ".".join(parts)
        self.asked.append((name, kind, over))
        bodies = self.records.get((name, kind), [])
        known = any(one == name for one, _ in self.records)
        code = self.code if self.code is not None else 0 if known else 3
        flags = 0x8180 | code
        if self.truncates and over == "udp":
            return struct.pack("!HHHHHH", number, flags | 0x0200, 1, 0, 0, 0) + question
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self.ttl, len(body)) + body for body in bodies
        )
        return struct.pack("!HHHHHH", number, flags, 1, len(bodies), 0, 0) + question + records

    def names(self, name: str, *addresses: str) -> None:
        for kind, version in ((A, 4), (AAAA, 6)):
            packed = [ip_address(one).packed for one in addresses if ip_address(one).version == version]
            self.records[name, kind] = packed


def server_record(priority: int, weight: int, port: int, host: str) -> bytes:
    return struct.pack("!HHH", priority, weight, port) + name_bytes(host)


@asynccontextmanager
async def name_server() -> AsyncIterator[tuple[NameServer, tuple[str, int]]]:
    loop = asyncio.get_running_loop()
    for attempt in range(20):
        line, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
        address = line.get_extra_info("sockname")
        try:
            stream = await asyncio.start_server(server.stream, *address)
            break
        except OSError:  # free for datagrams, and a stream of somebody else's
            line.close()
            if attempt == 19:
                raise
    try:
        yield server, address
    finally:
        line.close()
        stream.close()


async def test_addresses_of_both_kinds_are_found() -> None:
    async with name_server() as (server, address):
        server.names("engines.test", "10.0.0.1", "10.0.0.2", "fd00::1")
        server.ttl = 7
        source = DnsSource("engines.test", 8000, 30.0, address)
        wanted = frozenset(FoundServer(one, 8000) for one in ("10.0.0.1", "10.0.0.2", "fd00::1"))
        assert await source.look() == (wanted, 7)
        server.truncates = True
        assert await source.look() == (wanted, 7)
        assert {over for _, _, over in server.asked} == {"udp", "tcp"}
        server.truncates, server.lies = False, True
        assert await source.look() == (wanted, 7)


async def test_a_short_name_stands_for_one_name() -> None:
    """Another domain that is searched has addresses of the other kind: they are another service's."""
    async with name_server() as (server, address):
        server.names("engines.here.test", "10.0.0.1")
        server.names("engines.there.test", "10.9.9.9", "fd00::9")
        resolvers = Resolvers((address,), ("x" * 63 + ".y" * 95, "here.test", "there.test"), 5)
        source = DnsSource("engines", 8000, 30.0, address)
        assert await source._addresses(resolvers, "engines") == (["10.0.0.1"], 1)


async def test_servers_of_the_best_priority_are_found() -> None:
    async with name_server() as (server, address):
        server.records["_http._tcp.engines.test", SRV] = [
            server_record(10, 1, 8001, "one.test"),
            server_record(10, 5, 8002, "two.test"),
            server_record(20, 1, 8003, "spare.test"),
        ]
        server.names("one.test", "10.0.0.1")
        server.names("two.test", "10.0.0.2")
        server.names("spare.test", "10.0.0.3")
        found, _ = await DnsSource("_http._tcp.engines.test", None, 30.0, address).look()
        assert found == {FoundServer("10.0.0.1", 8001), FoundServer("10.0.0.2", 8002)}


async def test_a_name_server_that_fails_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "ANSWERS_WITHIN", 0.2)
    async with name_server() as (server, address):
        server.code = 2
        with pytest.raises(SourceFailed, match="answers with code 2"):
            await DnsSource("engines.test", 8000, 30.0, address).look()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(SourceFailed, match="no answer in time"):
            await DnsSource("engines.test", 8000, 30.0, silent.getsockname()).look()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_answer_are_refused(data: bytes) -> None:
    try:
        read(data, 7, "a.test", A)
    except MalformedAnswer:
        return
    assert data[:2] == b"\0\7"


@given(st.data())
def test_a_changed_answer_is_read_or_refused(data: st.DataObject) -> None:
    server = NameServer()
    server.records["_x._tcp.test", SRV] = [server_record(1, 1, 80, "a.b.test")] * 2
    answer = bytearray(server.answer(query(7, "_x._tcp.test", SRV), "udp"))
    for _ in range(data.draw(st.integers(1, 4))):
        answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(answer), 7, "_x._tcp.test", SRV)
    except MalformedAnswer:
        return
    assert len(found.servers) <= 2


def test_a_name_that_points_at_itself_is_refused() -> None:
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0)
    for name in (b"\xc0\x0c", b"\x01a\xc0\x0c"):
        with pytest.raises(MalformedAnswer, match="circle"):
            read(head + name + struct.pack("!HH", A, 1), 7, "a", A)


def test_resolv_conf_is_read() -> None:
    text = "# x\nnameserver 10.0.0.10\nsearch ns.svc.cluster.local svc.cluster.local\noptions ndots:5 edns0\n"
    found = read_resolv_conf(text)
    assert found == Resolvers((("10.0.0.10", 53),), ("ns.svc.cluster.local", "svc.cluster.local"), 5)
    assert found.candidates("a.b")[0] == "a.b.ns.svc.cluster.local"
    assert found.candidates("a.b.")[0] == "a.b."
    assert read_resolv_conf("nameserver\n\xff\noptions ndots:x") == Resolvers(())


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("{dns: 'a.test'}", "a name needs its port"),
        ("{dns: '_x._tcp.a.test:80'}", "a name needs its port"),
        ("{dns: 'a b:80'}", "is no name"),
        ("{dns: 'a..b:80'}", "is no name"),
        (f"{{dns: '{'x' * 64}.test:80'}}", "is no name"),
        (f"{{dns: '{'x' * 60 + '.' + 'y' * 60}.{'z' * 60}.{'z' * 60}.{'z' * 60}:80'}}", "is no name"),
        ("{}", "give exactly one of"),
        ("{dns: 'a:80', kubernetes: ns/svc}", "give exactly one of"),
        ("{kubernetes: svc}", "is no service"),
        ("{dns: 'a:80', server: nobody}", "is no name server"),
        ("{kubernetes: ns/svc, api: 'ftp://x'}", "is no URL of an API server"),
        ("{dns: 'a:80', replica: {url: 'http://h'}}", "url: is not a setting"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(entry: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        parse_config(f"models: {{m: {{discover: [{entry}]}}}}", "weighbridge.yaml", Path())


async def test_members_come_and_go_with_the_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dns, "SHORTEST", 0.05)
    monkeypatch.setattr(found, "LOOK_S", 0.05)
    monkeypatch.setattr(found, "RETRY_S", 0.05)
    caplog.set_level(logging.INFO)
    backend = Backend("first", gate=asyncio.Event(), hold_after=2)
    async with all_served((backend,)), name_server() as (server, address):
        port = int(backend.url.rpartition(":")[2])
        server.ttl = 0
        server.names("engines.test", "127.0.0.1", "127.0.0.2")
        text = (
            "health: {interval: 0.05, slow_start: 0}\nmodels: {m: {discover: "
            f"[{{dns: 'engines.test:{port}', server: '{address[0]}:{address[1]}', "
            "replica: {dialect: weighbridge}}]}}"
        )
        async with fleet(config=text) as front:
            members = front.gateway.pools["m"].members
            one, two = f"m-127.0.0.1:{port}", f"m-127.0.0.2:{port}"
            await until(lambda: set(members) == {one, two})
            assert members[one].spec.dialect == "weighbridge"
            async with front.post(stream=True) as answer:
                assert answer.headers["x-weighbridge-replica"] == one
                server.names("engines.test", "127.0.0.2")
                await until(lambda: members[one].draining)
                server.names("engines.test", "127.0.0.1", "127.0.0.2")  # it was a mistake
                await until(lambda: not members[one].draining)
                server.names("engines.test", "127.0.0.2")
                await until(lambda: members[one].draining)
                backend.let_go()
                assert (await answer.read()).endswith(b"data: [DONE]\n\n")
            await until(lambda: set(members) == {two})
            server.code = 2  # the name server is ill: what was known stays
            await until(lambda: "could not be looked up" in caplog.text)
            assert set(members) == {two}
            server.code = None
            server.names("engines.test")
            await until(lambda: "names no replica" in caplog.text)
            assert set(members) == {two}
