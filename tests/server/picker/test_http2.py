"""HTTP/2 frame by frame, over a socket: what a gRPC client may do, and what nobody may."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fleet.backends import until
from weighbridge.server.picker.hpack import (
    _SYMBOLS,
    LARGEST_LIST,
    TABLE,
    HeaderReader,
    MalformedBlock,
    unpacked,
    written,
)
from weighbridge.server.picker.http2 import (
    CALL_WINDOW,
    LARGEST_FRAME,
    PREFACE,
    Code,
    Connection,
    Flag,
    Frame,
    GrpcCall,
    GrpcCalls,
    GrpcStatus,
)

MOST = 3 * CALL_WINDOW
ECHO = [(b":method", b"POST"), (b":path", b"/echo"), (b"te", b"trailers")]
CODES = {symbol: (bits, code) for (bits, code), symbol in _SYMBOLS.items()}


# -- header blocks -----------------------------------------------------------------------------------------


def test_the_examples_of_the_rfc_are_read() -> None:
    """RFC 7541, C.4: three requests of one connection, each standing on those before it."""
    reader = HeaderReader()
    first = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    ]
    assert reader.read(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")) == first
    assert reader.read(bytes.fromhex("828684be5886a8eb10649cbf")) == [*first, (b"cache-control", b"no-cache")]
    third = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), first[3]]
    block = bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf")
    assert reader.read(block) == [*third, (b"custom-key", b"custom-value")]


@given(st.lists(st.tuples(st.binary(max_size=126), st.binary(max_size=126)), max_size=20))
def test_what_is_written_is_read(headers: list[tuple[bytes, bytes]]) -> None:
    assert HeaderReader().read(written(headers)) == headers


@given(st.binary(max_size=200))
def test_any_text_in_huffmans_code_is_read(text: bytes) -> None:
    bits = "".join(f"{code:0{size}b}" for size, code in (CODES[symbol] for symbol in text))
    bits += "1" * (-len(bits) % 8)
    assert unpacked(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))) == text


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_are_headers_or_refused(blocks: list[bytes]) -> None:
    reader = HeaderReader()
    for block in blocks:
        try:
            reader.read(block)
        except MalformedBlock:
            return
        assert reader._size == sum(len(name) + len(value) + 32 for name, value in reader._table) <= TABLE


def test_a_list_of_headers_has_an_end() -> None:
    """A few bytes could else name a large header of the table again and again."""
    reader = HeaderReader()
    large = b"\x40\x01x\x7f" + bytes([0x80 | (3900 - 127) & 0x7F, (3900 - 127) >> 7]) + b"v" * 3900
    reader.read(large)
    with pytest.raises(MalformedBlock, match=f"larger than {LARGEST_LIST >> 10} KiB"):
        reader.read(b"\xbe" * 20)


# -- a connection ------------------------------------------------------------------------------------------


@dataclass
class Client:
    """The other side, written by hand. `ended`: how calls ended at the server."""

    calls: GrpcCalls
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ended: list[str] = field(default_factory=list)

    def send(self, kind: int, flags: int = 0, number: int = 0, data: bytes = b"") -> None:
        self.writer.write(len(data).to_bytes(3) + bytes([kind, flags]) + number.to_bytes(4) + data)

    def begin(self, number: int = 1, path: bytes = b"/echo") -> None:
        block = written([(name, path if name == b":path" else value) for name, value in ECHO])
        self.send(Frame.HEADERS, Flag.END_HEADERS, number, block)

    def say(self, text: bytes, number: int = 1, *, ends: bool = False) -> None:
        """A message, in frames as small as is usual."""
        data = message(text)
        for at in range(0, len(data), 16_384):
            last = at + 16_384 >= len(data)
            self.send(Frame.DATA, Flag.END_STREAM if ends and last else 0, number, data[at : at + 16_384])

    async def frame(self) -> tuple[int, int, int, bytes]:
        """The next frame: kind, flags, call, data."""
        async with asyncio.timeout(60.0):
            head = await self.reader.readexactly(9)
            data = await self.reader.readexactly(int.from_bytes(head[:3]))
        return head[3], head[4], int.from_bytes(head[5:]), data

    async def of(self, *kinds: Frame) -> tuple[int, int, int, bytes]:
        """The next frame of these kinds."""
        while (found := await self.frame())[0] not in kinds:
            pass
        return found

    async def answer(self, number: int = 1) -> tuple[bytes, dict[bytes, bytes]]:
        """All data of a call, and the headers behind it."""
        data, reader = b"", HeaderReader()
        while True:
            kind, flags, of, more = await self.of(Frame.DATA, Frame.HEADERS)
            if of != number:
                continue
            if kind == Frame.DATA:
                data += more
            elif flags & Flag.END_STREAM:
                return data, dict(reader.read(more))

    async def gone(self) -> Code:
        """Why the server ended the connection."""
        why = Code(int.from_bytes((await self.of(Frame.GO_AWAY))[3][4:8]))
        async with asyncio.timeout(60.0):
            await self.reader.read()
        return why


def message(text: bytes) -> bytes:
    return b"\0" + len(text).to_bytes(4) + text


@asynccontextmanager
async def connected(most_calls: int = 100) -> AsyncIterator[Client]:
    """A server that says again what it is told, and a client that has said hello. All calls are over at the end."""
    ended: list[str] = []

    async def echo(call: GrpcCall) -> None:
        try:
            while (told := await call.read()) is not None:
                await call.write(told)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("well")

    calls = GrpcCalls({"/echo": echo}, most_calls, MOST)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(calls), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    client = Client(calls, reader, writer, ended)
    writer.write(PREFACE)
    client.send(Frame.SETTINGS)
    try:
        yield client
    finally:
        writer.close()
        await until(lambda: not calls.open and not calls.connections)
        server.close()


async def test_a_call_is_answered_and_ends() -> None:
    async with connected() as client:
        client.begin()
        client.say(b"one")
        client.say(b"", ends=True)
        data, behind = await client.answer()
        assert data == message(b"one") + message(b"")
        assert behind == {b"grpc-status": b"0"}
        assert client.ended == ["well"]


async def test_frames_may_come_in_any_pieces_and_messages_in_any_frames() -> None:
    async with connected() as client:
        whole = message(b"first") + message(b"second")
        block = written(ECHO)
        client.send(Frame.HEADERS, 0, 1, block[:7])
        client.send(Frame.CONTINUATION, Flag.END_HEADERS, 1, block[7:])
        client.send(Frame.DATA, Flag.PADDED, 1, b"\x03" + whole[:3] + b"pad")
        client.send(Frame.DATA, 0, 1, whole[3:12])
        client.send(Frame.DATA, Flag.END_STREAM, 1, whole[12:])
        assert (await client.answer())[0] == whole
        head = len(written(ECHO)).to_bytes(3) + bytes([Frame.HEADERS, Flag.END_HEADERS]) + (3).to_bytes(4)
        for byte in head + block:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        client.say(b"bytewise", 3, ends=True)
        assert (await client.answer(3))[0] == message(b"bytewise")


async def test_large_messages_go_both_ways_within_the_windows() -> None:
    """Larger than a window in either direction: each side has to give room."""
    async with connected() as client:
        client.begin()
        client.say(b"x" * (2 * CALL_WINDOW), ends=True)
        data = b""
        while True:
            kind, flags, number, more = await client.of(Frame.DATA, Frame.HEADERS, Frame.WINDOW)
            if kind == Frame.DATA:
                assert len(more) <= 16_384
                data += more
                for of in (0, number):
                    client.send(Frame.WINDOW, 0, of, len(more).to_bytes(4))
            elif kind == Frame.HEADERS and flags & Flag.END_STREAM:
                break
        assert data == message(b"x" * (2 * CALL_WINDOW))


async def test_who_gives_no_room_is_sent_nothing_and_others_are() -> None:
    async with connected() as client:
        client.send(Frame.SETTINGS, 0, 0, b"\0\x04" + bytes(4))  # a call's window: none
        client.begin()
        client.say(b"waits", ends=True)
        client.begin(3)
        client.say(b"too", 3, ends=True)
        client.send(Frame.WINDOW, 0, 3, (8).to_bytes(4))
        assert (await client.answer(3))[0] == message(b"too")
        client.send(Frame.PING, 0, 0, b"12345678")
        found = await client.of(Frame.PING, Frame.DATA)
        assert found == (Frame.PING, Flag.ACK, 0, b"12345678")
        client.send(Frame.SETTINGS, 0, 0, b"\0\x04" + (4).to_bytes(4))
        assert (await client.of(Frame.DATA))[3] == message(b"waits")[:4]
        client.send(Frame.WINDOW, 0, 1, (100).to_bytes(4))
        assert (await client.of(Frame.DATA))[3] == message(b"waits")[4:]


@pytest.mark.parametrize("size", [100, 16_000])
async def test_who_sends_more_than_there_is_room_for_loses_the_connection(size: int) -> None:
    """A call is not read while nothing can be written to it; who heeds the windows never has so much under way."""
    async with connected() as client:
        client.send(Frame.SETTINGS, 0, 0, b"\0\4" + bytes(4))  # no room for what the call would say again
        client.begin()
        frame = message(bytes(size))
        for _ in range(2 * CALL_WINDOW // len(frame)):
            client.send(Frame.DATA, 0, 1, frame)
        await until(lambda: not client.calls.connections)


async def test_padding_takes_no_room_for_ever() -> None:
    async with connected() as client:
        client.begin()
        text, credit = b"x" * 100, CALL_WINDOW
        frame = b"\xff" + message(text) + bytes(255)
        for _ in range(4 * CALL_WINDOW // len(frame)):
            while credit < len(frame):
                _, _, number, data = await client.of(Frame.WINDOW)
                credit += int.from_bytes(data) if number else 0
            credit -= len(frame)
            client.send(Frame.DATA, Flag.PADDED, 1, frame)
            client.send(Frame.WINDOW, 0, 0, (105).to_bytes(4))
            client.send(Frame.WINDOW, 0, 1, (105).to_bytes(4))
        client.send(Frame.DATA, Flag.END_STREAM, 1)
        while (found := await client.of(Frame.HEADERS, Frame.GO_AWAY))[1] & Flag.END_STREAM == 0:
            pass
        assert found[0] == Frame.HEADERS


async def test_a_side_that_vanishes_is_missed() -> None:
    async with connected() as client:
        client.begin()
        await until(lambda: client.calls.open == 1)
        [connection] = client.calls.connections
        line = connection._transport.get_extra_info("socket")
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


async def test_a_call_that_is_ended_by_its_client_is_cancelled() -> None:
    async with connected() as client:
        client.begin()
        client.say(b"one")
        await client.of(Frame.DATA)
        client.send(Frame.RESET, 0, 1, (8).to_bytes(4))
        client.say(b"on its way when it ended")
        await until(lambda: client.ended == ["cancelled"])
        client.begin(3)
        client.say(b"goes on", 3, ends=True)
        assert (await client.answer(3))[0] == message(b"goes on")


async def test_a_client_that_goes_away_cancels_all_its_calls() -> None:
    async with connected() as client:
        for number in (1, 3, 5):
            client.begin(number)
            client.say(b"one", number)
            await client.of(Frame.DATA)
        client.writer.close()
        await until(lambda: client.ended == ["cancelled"] * 3)


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        (b"/nobody", b"", GrpcStatus.UNIMPLEMENTED),
        (b"/echo", b"\1" + (3).to_bytes(4) + b"abc", GrpcStatus.UNIMPLEMENTED),
        (b"/echo", b"\0" + (MOST + 1).to_bytes(4), GrpcStatus.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_cannot_be_served_says_why(path: bytes, data: bytes, status: GrpcStatus) -> None:
    async with connected() as client:
        client.begin(path=path)
        client.send(Frame.DATA, 0, 1, data)
        behind = (await client.answer())[1]
        assert behind[b"grpc-status"] == b"%d" % status
        assert behind[b"grpc-message"]
        client.begin(3)
        client.say(b"others go on", 3, ends=True)
        assert (await client.answer(3))[0]


async def test_there_are_no_more_calls_than_are_taken() -> None:
    async with connected(most_calls=2) as client:
        for number in (1, 3, 5):
            client.begin(number)
        assert (await client.answer(5))[1][b"grpc-status"] == b"%d" % GrpcStatus.RESOURCE_EXHAUSTED
        client.send(Frame.DATA, Flag.END_STREAM, 1)
        assert (await client.answer(1))[1][b"grpc-status"] == b"0"
        client.begin(7)
        client.say(b"now", 7, ends=True)
        assert (await client.answer(7))[0] == message(b"now")


BROKEN = {
    "another protocol": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", Code.PROTOCOL),
    "data of no call": (b"\0\0\1\0\0\0\0\0\1x", Code.PROTOCOL),
    "a call of a server's": (b"\0\0\0\1\4\0\0\0\2", Code.PROTOCOL),
    "a frame too large": ((LARGEST_FRAME + 1).to_bytes(3) + b"\0\0\0\0\0\1", Code.FRAME_SIZE),
    "a block interrupted": (b"\0\0\1\1\0\0\0\0\1\x83" + b"\0\0\x08\6\0\0\0\0\0" + b"p" * 8, Code.PROTOCOL),
    "a block of no call": (b"\0\0\1\x09\4\0\0\0\1\x83", Code.PROTOCOL),
    "a header of no table": (b"\0\0\1\1\4\0\0\0\1\xff", Code.COMPRESSION),
    "a window of nothing": (b"\0\0\4\x08\0\0\0\0\0" + bytes(4), Code.FLOW_CONTROL),
    "windows beyond all": (b"\0\0\4\x08\0\0\0\0\0\x7f\xff\xff\xff", Code.FLOW_CONTROL),
    "frames too small": (b"\0\0\6\4\0\0\0\0\0\0\5\0\0\0\1", Code.PROTOCOL),
    "a reset of no call": (b"\0\0\4\3\0\0\0\0\x09" + bytes(4), Code.PROTOCOL),
    "a push": (b"\0\0\4\5\4\0\0\0\1" + bytes(4), Code.PROTOCOL),
    "headers without end": (
        b"\0\0\0\1\0\0\0\0\1" + b"".join(b"\x01\0\0\x09\0\0\0\0\1" + bytes(65_536) for _ in range(2)),
        Code.CALM_DOWN,
    ),
}


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
async def test_who_breaks_the_protocol_loses_the_connection(data: bytes, code: Code) -> None:
    calls = GrpcCalls({}, 10, MOST)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(calls), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    client = Client(calls, reader, writer)
    writer.write(data if data.startswith(b"GET") else PREFACE + data)
    assert await client.gone() is code
    writer.close()
    await until(lambda: not calls.connections)
    server.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)),
        max_size=12,
    )
)
def test_whatever_comes_the_server_lives_and_nothing_is_left(
    frames: list[tuple[int, int, int, bytes]],
) -> None:
    async def run() -> None:
        async with connected() as client:
            for kind, flags, number, data in frames:
                client.send(kind, flags, number, data)
            client.writer.write_eof()
            async with asyncio.timeout(60.0):
                await client.reader.read()

    asyncio.run(run())


async def test_what_was_said_before_its_client_hung_up_is_read() -> None:
    """Envoy ends its side and the call at once, where it wants no answer."""
    async with connected() as client:
        client.begin()
        client.say(b"one")
        client.say(b"two", ends=True)
        client.send(Frame.RESET, 0, 1, bytes(4))
        await until(lambda: client.ended == ["well"])
        client.send(Frame.PING, 0, 0, b"12345678")
        assert (await client.of(Frame.PING, Frame.DATA, Frame.HEADERS))[0] == Frame.PING
