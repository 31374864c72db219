"""HTTP/2 (RFC 9113) as a gRPC server needs it, on asyncio: frames, flow control, and a task for each call.

    connection   bytes -> frames -> calls; one write for all that is said in one turn of the loop
    call         `read` a message, `write` one; its task is cancelled where the other side hangs up

Nothing is pushed, no priorities are heeded, and what is sent needs no header table. Messages are gRPC's: each has five
bytes before it. Whoever breaks the protocol loses the connection, and whoever sends faster than is read has to wait.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import cast

from weighbridge.server.picker.hpack import LARGEST_LIST, HeaderReader, MalformedBlock, Pair, written

log = logging.getLogger("weighbridge.server")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: Bytes of a frame that either side may send at first, and that we take.
USUAL_FRAME, LARGEST_FRAME = 16_384, 1 << 17
#: Bytes that may be on their way at first; of a call that we let come unread, and of a whole connection.
USUAL_WINDOW, CALL_WINDOW, LARGEST_WINDOW = 65_535, 1 << 20, (1 << 31) - 1
#: Seconds that a call has to read what was said to it, once the other side has said all and hung up.
LAST_READ = 1.0
#: Bytes that wait to be sent, from which on calls wait; and from which on a connection that does not read is given up,
#: since these are answers to its own pings.
UNSENT, MOST_UNSENT = 1 << 20, 16 << 20
#: Options of TCP by which a silent side is asked after 30 s whether it is there, and given up after a minute.
_VANISHED = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}

_HEAD = struct.Struct(">HBBBI")  # length (two parts), kind, flags, call
_PREFIX = struct.Struct(">BI")  # whether it is packed, and the length of a message
_SETTING = struct.Struct(">HI")


class Frame(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RESET = 3
    SETTINGS = 4
    PUSH = 5
    PING = 6
    GO_AWAY = 7
    WINDOW = 8
    CONTINUATION = 9


class Flag(IntEnum):
    END_STREAM = ACK = 1
    END_HEADERS = 4
    PADDED = 8
    PRIORITY = 32


class Code(IntEnum):
    """Why a connection or a call ends before its time."""

    NO_ERROR = 0
    PROTOCOL = 1
    FLOW_CONTROL = 3
    FRAME_SIZE = 6
    COMPRESSION = 9
    CALM_DOWN = 11


class GrpcStatus(IntEnum):
    """How a gRPC call ended."""

    OK = 0
    UNKNOWN = 2
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13


class _Setting(IntEnum):
    CALLS = 3
    WINDOW = 4
    FRAME = 5
    HEADERS = 6


class CallFailed(Exception):
    """A call ends with this status, and not with OK."""

    def __init__(self, status: GrpcStatus, details: str) -> None:
        super().__init__(details)
        self.status = status


class _Broken(Exception):
    """The other side broke the protocol."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


_ANSWER: tuple[Pair, ...] = ((b"content-type", b"application/grpc"),)
_BEGIN = b"\x88" + written(_ANSWER)  # 0x88: status 200
_ENDED_WELL = written([(b"grpc-status", b"0")])


class GrpcCall:
    """One gRPC call. Its handler reads and writes messages; that it returns ends the call."""

    __slots__ = (
        "_connection",
        "_credit",
        "_ended",
        "_inbox",
        "_most",
        "_nudged",
        "_number",
        "_owed",
        "_parts",
        "_reader",
        "begun",
        "gone",
        "path",
        "take",
        "task",
        "window",
    )  # fmt: skip

    def __init__(self, connection: Connection, number: int, path: str, most: int, window: int) -> None:
        """`most`: bytes of a message that is taken; `window`: bytes that may be sent now."""
        self.path = path
        self.window = window
        self.begun = False  # the head of the answer has been sent
        self.gone = False  # nobody hears an answer any more
        self.task: asyncio.Task[None] | None = None
        #: Takes a message in as it comes, before the task is woken; False: it is left to `read`.
        self.take: Callable[[bytes], bool] | None = None
        self._connection = connection
        self._number = number
        self._most = most
        self._nudged = False
        self._inbox: deque[bytes] = deque()
        self._parts = bytearray()  # of a message that is not whole
        self._reader: asyncio.Future[None] | None = None
        self._owed = 0  # bytes that were read, and that the other side has not been given back
        self._credit = CALL_WINDOW  # bytes that it may still send
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the other side has said all."""
        return self._ended

    async def read(self) -> bytes | None:
        """The next message; None: there is none any more."""
        while not self._inbox:
            if self._ended:
                return None
            await self.wait()
        message = self._inbox.popleft()
        self._owe(len(message) + _PREFIX.size)
        return message

    async def wait(self) -> bool:
        """Wait until `read` has something to say, or for a nudge; False: it was only that."""
        while not self._inbox and not self._ended and not self._nudged:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        self._nudged = False
        return bool(self._inbox) or self._ended

    def nudge(self) -> None:
        """Wake who waits."""
        self._nudged = True
        self._wake()

    def write_now(self, message: bytes) -> bool:
        """Send a message if there is room for it; False where that has to be waited for."""
        if self.gone:
            return True
        connection, size = self._connection, len(message) + _PREFIX.size
        if size > self.window or size > connection.window or size > connection.frame or not connection.flows:
            return False
        if not self.begun:
            self._begin()
        self.window -= size
        connection.window -= size
        connection.send(Frame.DATA, 0, self._number, _PREFIX.pack(0, len(message)) + message)
        return True

    async def write(self, message: bytes) -> None:
        """Send a message; waits where the other side does not read."""
        if self.write_now(message):
            return
        if not self.begun:
            self._begin()
        connection, data = self._connection, _PREFIX.pack(0, len(message)) + message
        at, size = 0, len(data)
        while at < size:
            most = min(size - at, self.window, connection.window, connection.frame)
            if most <= 0 or not connection.flows:
                await connection.room()
                continue
            self.window -= most
            connection.window -= most
            connection.send(Frame.DATA, 0, self._number, data[at : at + most])
            at += most

    def finish(self, status: GrpcStatus = GrpcStatus.OK, details: str = "") -> None:
        """End the call."""
        block = b"" if self.begun else _BEGIN
        if status is GrpcStatus.OK:
            block += _ENDED_WELL
        else:
            said = "".join(one if " " <= one <= "~" and one != "%" else "?" for one in details)[:120]
            block += written([(b"grpc-status", b"%d" % status), (b"grpc-message", said.encode())])
        self._connection.send(Frame.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, self._number, block)
        if not self._ended:  # what it may still have to say is not needed
            self._connection.reset(self._number, Code.NO_ERROR)

    def _begin(self) -> None:
        self.begun = True
        self._connection.send(Frame.HEADERS, Flag.END_HEADERS, self._number, _BEGIN)

    # -- what comes ------------------------------------------------------------------------------------

    def receive(self, data: bytes, padding: int = 0) -> None:
        """Take in a part of what the other side says, which came with so many bytes of no meaning.

        Raises CallFailed for what is no message, or too large a one, and _Broken for more than was allowed.
        """
        self._credit -= len(data) + padding
        if self._credit < 0:
            raise _Broken(Code.FLOW_CONTROL, "more was sent than there was room for")
        if padding:
            self._owe(padding)
        parts = self._parts
        if not parts and len(data) >= _PREFIX.size:
            packed, length = _PREFIX.unpack_from(data)
            if not packed and len(data) == length + _PREFIX.size and length <= self._most:
                self._arrived(data[_PREFIX.size :])  # mostly one frame is one message
                return
        self._owe(len(data))
        parts += data
        while len(parts) >= _PREFIX.size:
            packed, length = _PREFIX.unpack_from(parts)
            if packed:
                raise CallFailed(GrpcStatus.UNIMPLEMENTED, "messages that are packed are not read")
            if length > self._most:
                raise CallFailed(GrpcStatus.RESOURCE_EXHAUSTED, f"a message has more than {self._most} bytes")
            end = _PREFIX.size + length
            if len(parts) < end:
                break
            self._owed -= end  # until it is read
            message = bytes(parts[_PREFIX.size : end])
            del parts[:end]
            self._arrived(message)

    def _arrived(self, message: bytes) -> None:
        if self.take is not None and not self._inbox and self.take(message):
            self._owe(len(message) + _PREFIX.size)
            return
        self._inbox.append(message)
        self._wake()

    def end(self) -> None:
        """Take note that the other side has said all."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _owe(self, size: int) -> None:
        """Let the other side send as much again, once that is worth a frame."""
        self._owed += size
        if self._owed >= CALL_WINDOW // 2 and not self._ended:
            self._connection.send(Frame.WINDOW, 0, self._number, self._owed.to_bytes(4))
            self._credit += self._owed
            self._owed = 0


Handle = Callable[[GrpcCall], Awaitable[None]]


class GrpcCalls:
    """What all connections of a server have in common: who serves a path, and how many calls there may be at a time."""

    def __init__(self, handlers: dict[str, Handle], most_calls: int, most_bytes: int) -> None:
        """`most_bytes`: of one message."""
        self.handlers = handlers
        self.most_calls, self.most_bytes = most_calls, most_bytes
        self.open = 0
        self.connections: set[Connection] = set()

    async def close(self, grace: float) -> None:
        """Take no more calls; those that are open have so many seconds."""
        for connection in self.connections:
            connection.go_away()
        tasks = [task for one in self.connections for task in one.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for connection in list(self.connections):
            connection.close()
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, calls: GrpcCalls) -> None:
        self.window = USUAL_WINDOW  # bytes that may be sent now, over all calls
        self.frame = USUAL_FRAME  # bytes of a frame that the other side takes
        self.flows = True  # what is sent goes out
        self._shared = calls
        self._calls: dict[int, GrpcCall] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._headers = HeaderReader()
        self._rest = b""
        self._begun = False
        self._last = 0  # the newest call
        self._first_window = USUAL_WINDOW  # of a new call, for what we send
        self._owed = 0
        self._block: tuple[int, int, bytearray] | None = None  # a header block that is not whole
        self._rooms: list[asyncio.Future[None]] = []
        self._leaving = False

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._running)

    # -- asyncio's side --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(UNSENT)
        _notice_its_end(transport.get_extra_info("socket"))
        self._shared.connections.add(self)
        settings = (
            (_Setting.CALLS, self._shared.most_calls),
            (_Setting.WINDOW, CALL_WINDOW),
            (_Setting.FRAME, LARGEST_FRAME),
            (_Setting.HEADERS, LARGEST_LIST),
        )
        self.send(Frame.SETTINGS, 0, 0, b"".join(_SETTING.pack(*one) for one in settings))
        self.send(Frame.WINDOW, 0, 0, (LARGEST_WINDOW - USUAL_WINDOW).to_bytes(4))

    def connection_lost(self, error: Exception | None) -> None:
        self._shared.connections.discard(self)
        for call in self._calls.values():
            if call.task is not None:
                call.task.cancel()
        self._calls.clear()
        self._let_on()

    def pause_writing(self) -> None:
        self.flows = False

    def resume_writing(self) -> None:
        self.flows = True
        self._let_on()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        try:
            at = 0 if self._begun else self._preface(data)
            while (found := self._frame(data, at)) >= 0:
                at = found
            self._rest = data[at:] if at else data
        except _Broken as error:
            self._break_off(error.code, str(error))
        except MalformedBlock as error:
            self._break_off(Code.COMPRESSION, str(error))
        if self._transport.get_write_buffer_size() > MOST_UNSENT:
            self._transport.abort()

    # -- sending ---------------------------------------------------------------------------------------

    def send(self, kind: Frame, flags: int, number: int, data: bytes) -> None:
        size = len(data)
        self._transport.write(_HEAD.pack(size >> 8, size & 0xFF, kind, flags, number) + data)

    def reset(self, number: int, code: Code) -> None:
        """End a call at once."""
        self.send(Frame.RESET, 0, number, code.to_bytes(4))

    async def room(self) -> None:
        """Wait until more can be sent, as far as is known."""
        waiting = asyncio.get_running_loop().create_future()
        self._rooms.append(waiting)
        await waiting

    def go_away(self) -> None:
        """Take no more calls."""
        if not self._leaving:
            self._leaving = True
            self.send(Frame.GO_AWAY, 0, 0, self._last.to_bytes(4) + Code.NO_ERROR.to_bytes(4))

    def close(self) -> None:
        self._transport.close()
        for task in self._running:
            task.cancel()

    def _break_off(self, code: Code, why: str) -> None:
        log.warning("a connection of Envoy's broke the protocol: %s", why)
        self.send(Frame.GO_AWAY, 0, 0, self._last.to_bytes(4) + code.to_bytes(4))
        self.close()

    def _let_on(self) -> None:
        rooms, self._rooms = self._rooms, []
        for one in rooms:
            if not one.done():
                one.set_result(None)

    # -- frames ----------------------------------------------------------------------------------------

    def _preface(self, data: bytes) -> int:
        """Where the first frame begins; 0: it is not there."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise _Broken(Code.PROTOCOL, "it does not speak HTTP/2")
        self._begun = len(data) >= len(PREFACE)
        return len(PREFACE) if self._begun else 0

    def _frame(self, data: bytes, at: int) -> int:
        """Take in the frame that begins there, and return where it ends; -1: it is not whole."""
        begin = at + _HEAD.size
        if not self._begun or len(data) < begin or self._transport.is_closing():
            return -1
        high, low, kind, flags, number = _HEAD.unpack_from(data, at)
        end: int = begin + (high << 8 | low)
        if end - begin > LARGEST_FRAME:
            raise _Broken(Code.FRAME_SIZE, "a frame is larger than was allowed")
        if len(data) < end:
            return -1
        if self._block is not None and kind != Frame.CONTINUATION:
            raise _Broken(Code.PROTOCOL, "a header block is interrupted")
        take = _TAKE.get(kind)
        if take is not None:
            take(self, flags, number & LARGEST_WINDOW, data[begin:end])
        return end

    def _data(self, flags: int, number: int, data: bytes) -> None:
        if number == 0 or number > self._last:
            raise _Broken(Code.PROTOCOL, "data comes for a call that was never begun")
        self._owed += len(data)
        if self._owed >= LARGEST_WINDOW // 2:
            self.send(Frame.WINDOW, 0, 0, self._owed.to_bytes(4))
            self._owed = 0
        call = self._calls.get(number)
        if call is None or call.ended:
            return  # it was on its way when the call ended
        try:
            if flags & Flag.PADDED:
                said = _unpadded(flags, data)
                call.receive(said, len(data) - len(said))
            else:
                call.receive(data)
        except CallFailed as error:
            self._fail(number, call, error)
            return
        if flags & Flag.END_STREAM:
            call.end()

    def _begin_headers(self, flags: int, number: int, data: bytes) -> None:
        if number % 2 == 0:
            raise _Broken(Code.PROTOCOL, "a call has a server's number")
        if flags & Flag.PADDED:
            data = _unpadded(flags, data)
        if flags & Flag.PRIORITY:
            data = data[5:]
        self._more_headers(flags, number, data, bytearray(), flags)

    def _continued(self, flags: int, number: int, data: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise _Broken(Code.PROTOCOL, "a header block goes on that was never begun")
        self._more_headers(flags, number, data, self._block[2], self._block[1])

    def _more_headers(self, flags: int, number: int, data: bytes, block: bytearray, first: int) -> None:
        """`first`: the flags of the block's first frame."""
        block += data
        if len(block) > LARGEST_LIST:
            raise _Broken(Code.CALM_DOWN, "a header block is too large")
        if not flags & Flag.END_HEADERS:
            self._block = number, first, block
            return
        self._block = None
        headers = self._headers.read(bytes(block))  # of a call that is over too: others stand on them
        if number > self._last:
            self._last = number
            self._open(number, headers)
        if first & Flag.END_STREAM and (call := self._calls.get(number)) is not None:
            call.end()

    def _reset(self, flags: int, number: int, data: bytes) -> None:
        if number == 0 or number > self._last or len(data) != 4:
            raise _Broken(Code.PROTOCOL, "a call is ended that was never begun")
        call = self._calls.pop(number, None)
        if call is None or call.task is None:
            return
        call.gone = True
        if call.ended:  # it has said all, and wants no answer: what it said is read all the same
            asyncio.get_running_loop().call_later(LAST_READ, call.task.cancel)
        else:
            call.task.cancel()

    def _settings(self, flags: int, number: int, data: bytes) -> None:
        if flags & Flag.ACK:
            return
        if len(data) % _SETTING.size:
            raise _Broken(Code.FRAME_SIZE, "settings break off")
        for name, value in _SETTING.iter_unpack(data):
            if name == _Setting.WINDOW:
                if value > LARGEST_WINDOW:
                    raise _Broken(Code.FLOW_CONTROL, "a window is too large")
                for call in self._calls.values():
                    call.window += value - self._first_window
                self._first_window = value
            elif name == _Setting.FRAME:
                if not USUAL_FRAME <= value < 1 << 24:
                    raise _Broken(Code.PROTOCOL, "frames of that size are not allowed")
                self.frame = value
        self.send(Frame.SETTINGS, Flag.ACK, 0, b"")
        self._let_on()

    def _ping(self, flags: int, number: int, data: bytes) -> None:
        if len(data) != 8:
            raise _Broken(Code.FRAME_SIZE, "a ping has eight bytes")
        if not flags & Flag.ACK:
            self.send(Frame.PING, Flag.ACK, 0, data)

    def _more_room(self, flags: int, number: int, data: bytes) -> None:
        if len(data) != 4:
            raise _Broken(Code.FRAME_SIZE, "a window has four bytes")
        more = int.from_bytes(data) & LARGEST_WINDOW
        if number == 0:
            self.window += more
            window = self.window
        else:
            call = self._calls.get(number)
            if call is None:
                return
            call.window += more
            window = call.window
        if not more or window > LARGEST_WINDOW:
            raise _Broken(Code.FLOW_CONTROL, "a window is none, or too large")
        self._let_on()

    def _pushed(self, flags: int, number: int, data: bytes) -> None:
        raise _Broken(Code.PROTOCOL, "a client pushes nothing")

    # -- calls -----------------------------------------------------------------------------------------

    def _open(self, number: int, headers: list[Pair]) -> None:
        path = next((value for name, value in headers if name == b":path"), b"").decode("latin-1")
        shared = self._shared
        call = GrpcCall(self, number, path, shared.most_bytes, self._first_window)
        handle = shared.handlers.get(path)
        if handle is None:
            call.finish(GrpcStatus.UNIMPLEMENTED, f"there is no {path}")
        elif self._leaving or shared.open >= shared.most_calls:
            call.finish(GrpcStatus.RESOURCE_EXHAUSTED, "no more calls are taken now")
        else:
            self._calls[number] = call
            shared.open += 1
            call.task = task = asyncio.create_task(self._serve(number, call, handle))
            self._running.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._shared.open -= 1

    async def _serve(self, number: int, call: GrpcCall, handle: Handle) -> None:
        try:
            await handle(call)
        except CallFailed as error:
            self._fail(number, call, error)
        except Exception as error:
            self._fail(number, call, CallFailed(GrpcStatus.UNKNOWN, f"it failed: {type(error).__name__}"))
        else:
            if self._calls.pop(number, None) is not None:
                call.finish()

    def _fail(self, number: int, call: GrpcCall, error: CallFailed) -> None:
        """End a call with an error, once."""
        if self._calls.pop(number, None) is None:
            return
        call.finish(error.status, str(error))
        if call.task is not None and call.task is not asyncio.current_task():
            call.task.cancel()


def _notice_its_end(line: socket.socket) -> None:
    """Have a connection end whose other side has vanished without a word, as a machine does that loses its power."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _VANISHED.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _unpadded(flags: int, data: bytes) -> bytes:
    if not data or data[0] >= len(data):
        raise _Broken(Code.PROTOCOL, "a frame is all padding")
    return data[1 : len(data) - data[0]]


_TAKE: dict[int, Callable[[Connection, int, int, bytes], None]] = {
    Frame.DATA: Connection._data,
    Frame.HEADERS: Connection._begin_headers,
    Frame.RESET: Connection._reset,
    Frame.SETTINGS: Connection._settings,
    Frame.PUSH: Connection._pushed,
    Frame.PING: Connection._ping,
    Frame.WINDOW: Connection._more_room,
    Frame.CONTINUATION: Connection._continued,
}
