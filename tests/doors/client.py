"""An HTTP client that changes nothing: what a row says goes onto the socket as it is, and what comes back is kept."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as it came. Header names are in lower case; repeated lines stay apart."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    seconds: float = 0.0

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        return ", ".join(found) if found else None

    @property
    def json(self) -> Any:
        """The decoded body; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def error(self) -> dict[str, Any]:
        """The fields of an error in OpenAI's shape, from a body or from the end of a stream; maybe none."""
        events = [event for event in self.events if isinstance(event, dict)]
        for value in (self.json, *events[-1:]):
            if isinstance(value, dict) and isinstance(value.get("error"), dict):
                fields: dict[str, Any] = value["error"]
                return fields
        return {}

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, decoded; `[DONE]` stays text. Comments are left out."""
        if not (self.header("content-type") or "").startswith("text/event-stream"):
            return []
        found: list[Any] = []
        for event in self.body.decode().replace("\r\n", "\n").split("\n\n"):
            for line in event.split("\n"):
                if line.startswith("data: "):
                    text = line.removeprefix("data: ")
                    found.append(text if text == "[DONE]" else json.loads(text))
        return found


class NoReply(Exception):
    """The connection ended, or the time, before there was a whole answer. It keeps what came."""


def connect(port: int, patience: float = PATIENCE) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), patience)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(
    port: int,
    *pieces: bytes,
    patience: float = PATIENCE,
    pause: float = 0.0,
    within: float = threading.TIMEOUT_MAX,
) -> Reply:
    """Send the pieces one after another and read one answer. Raises NoReply, also where it is not there `within` so
    many seconds, however steadily it comes."""
    began = time.monotonic()
    with connect(port, patience) as connection, _cut_off(connection, within):
        try:
            for index, piece in enumerate(pieces):
                if index and pause:
                    time.sleep(pause)
                connection.sendall(piece)
        except OSError:
            pass  # the answer may be there already: a server need not read what it refuses
        head_only = bool(pieces) and pieces[0].startswith(b"HEAD ")
        status, headers, body = read_reply(connection, head_only)
    return Reply(status, headers, body, time.monotonic() - began)


@contextmanager
def _cut_off(connection: socket.socket, within: float) -> Iterator[None]:
    """End the connection after so many seconds, if the block has not ended before."""
    if within >= threading.TIMEOUT_MAX:
        yield
        return

    def cut() -> None:
        with suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(within, cut)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def read_reply(
    connection: socket.socket, head_only: bool = False
) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """Read one answer; interim ones (1xx) are passed over. Raises NoReply."""
    stream = connection.makefile("rb")
    try:
        while True:
            first = stream.readline()
            if not first:
                raise NoReply("the connection ended without an answer")
            status = int(first.split()[1])
            headers = tuple(iter(lambda: _header(stream.readline()), None))
            if status >= 200 or status == 101:
                break
        return status, headers, b"" if head_only else _body(stream, dict(headers))
    except (OSError, ValueError, IndexError) as error:
        raise NoReply(f"no whole answer: {error!r}") from error
    finally:
        stream.close()


def _header(line: bytes) -> tuple[str, str] | None:
    if line in (b"\r\n", b"\n", b""):
        return None
    name, _, value = line.decode("latin-1").partition(":")
    return name.strip().lower(), value.strip()


def _body(stream: Any, headers: dict[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", ""):
        parts = []
        while size := int(stream.readline().split(b";")[0], 16):
            parts.append(stream.read(size))
            stream.readline()
        stream.readline()
        return b"".join(parts)
    length = headers.get("content-length")
    body: bytes = stream.read() if length is None else stream.read(int(length))
    if length is not None and len(body) != int(length):
        raise NoReply(f"{len(body)} of {length} bytes of the body came")
    return body


def request(
    method: str, path: str, headers: list[tuple[str, str | bytes]], body: bytes | None, host: str
) -> bytes:
    """The bytes of a request: what is given, `Host`, `Connection: close`, and the body's length."""
    names = {name.lower() for name, _ in headers}
    lines = [f"{method} {path} HTTP/1.1".encode()]
    if "host" not in names:
        lines.append(f"Host: {host}".encode())
    lines += [name.encode() + b": " + (v if isinstance(v, bytes) else v.encode()) for name, v in headers]
    if "connection" not in names:
        lines.append(b"Connection: close")
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")
