"""DNS messages (RFC 1035, 2782, 3596): a query, and of its answer the addresses and servers with their times to live.
Pure.

What comes back is anybody's: every length is checked, a name's pointers may only lead backwards, and what is beyond the
bounds is an error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

A, CNAME, AAAA, SRV, OPT = 1, 5, 28, 33, 41
INTERNET = 1
#: Bytes of an answer over UDP that we take without a fragment (DNS flag day 2020), and of one over TCP.
UDP_BYTES, TCP_BYTES = 1232, 65_535
#: Records of one answer that are read.
MOST_RECORDS = 4096
#: Answers' codes.
NO_ERROR, NO_SUCH_NAME = 0, 3

_HEADER = struct.Struct("!HHHHHH")
_FIXED = struct.Struct("!HHIH")
_RESPONSE, _TRUNCATED, _RECURSE = 0x8000, 0x0200, 0x0100


class MalformedAnswer(ValueError):
    """An answer that is none."""


class NamedServer(NamedTuple):
    """What an SRV record names; the lowest priority is asked first."""

    priority: int
    weight: int
    port: int
    host: str


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """`ttl`: seconds for which all of it holds. `truncated`: there is more, over TCP."""

    code: int
    truncated: bool
    addresses: tuple[str, ...] = ()
    servers: tuple[NamedServer, ...] = ()
    ttl: int = 0


def query(number: int, name: str, kind: int) -> bytes:
    """Ask for the records of a kind. Raises MalformedAnswer for what can be no name."""
    header = _HEADER.pack(number, _RECURSE, 1, 0, 0, 1)
    option = b"\0" + struct.pack("!HHIH", OPT, UDP_BYTES, 0, 0)
    return header + name_bytes(name) + struct.pack("!HH", kind, INTERNET) + option


def name_bytes(name: str) -> bytes:
    """A name as it stands in messages."""
    parts = [part.encode("ascii", "strict") for part in name.rstrip(".").split(".")] if name.isascii() else []
    if not parts or not all(0 < len(part) <= 63 for part in parts) or sum(map(len, parts)) + len(parts) > 254:
        raise MalformedAnswer(f"{name[:80]!r} is no name in DNS")
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def read(data: bytes, number: int, name: str, kind: int) -> DnsAnswer:
    """Read the answer to a query. Raises MalformedAnswer for anything else."""
    try:
        return _read(data, number, name, kind)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MalformedAnswer(f"it ends too soon: {error}") from None


def _read(data: bytes, number: int, name: str, kind: int) -> DnsAnswer:
    got, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    if got != number or not flags & _RESPONSE or questions != 1:
        raise MalformedAnswer("it answers another question")
    asked, at = _name(data, _HEADER.size)
    if asked.lower() != name.rstrip(".").lower() or struct.unpack_from("!HH", data, at) != (kind, INTERNET):
        raise MalformedAnswer("it answers another question")
    at += 4
    addresses: list[str] = []
    servers: list[NamedServer] = []
    ttls: list[int] = []
    for _ in range(0 if flags & _TRUNCATED else min(answers, MOST_RECORDS)):
        _, at = _name(data, at)
        found, family, ttl, size = _FIXED.unpack_from(data, at)
        at += _FIXED.size
        body = data[at : at + size]
        if len(body) != size:
            raise MalformedAnswer("a record ends too soon")
        if family == INTERNET and found in (kind, CNAME):
            ttls.append(min(ttl, 0x7FFFFFFF))
            if found == kind == SRV:
                servers.append(_server(data, at, size))
            elif found == kind:
                addresses.append(_address(body, kind))
        at += size
    code = flags & 0xF
    return DnsAnswer(code, bool(flags & _TRUNCATED), tuple(addresses), tuple(servers), min(ttls, default=0))


def _address(body: bytes, kind: int) -> str:
    if len(body) != (4 if kind == A else 16):
        raise MalformedAnswer("an address is of another length")
    return str(IPv4Address(body) if kind == A else IPv6Address(body))


def _server(data: bytes, at: int, size: int) -> NamedServer:
    priority, weight, port = struct.unpack_from("!HHH", data, at)
    host, end = _name(data, at + 6)
    if end != at + size or not port:
        raise MalformedAnswer("a server's record is malformed")
    return NamedServer(priority, weight, port, host)


def _name(data: bytes, at: int) -> tuple[str, int]:
    """A name, and where what follows it begins. A pointer leads backwards, so there is no circle."""
    parts: list[str] = []
    end, size, before = -1, 0, len(data)
    while True:
        length = data[at]
        if length >= 0xC0:
            there = (length & 0x3F) << 8 | data[at + 1]
            end = at + 2 if end < 0 else end
            if there >= min(at, before):
                raise MalformedAnswer("a name goes in a circle")
            at = before = there
            continue
        if length > 63:
            raise MalformedAnswer("a name has a part of unknown kind")
        at += 1
        if not length:
            return ".".join(parts), (at if end < 0 else end)
        size += length + 1
        if size > 254 or at + length > len(data):
            raise MalformedAnswer("a name is too long")
        parts.append(data[at : at + length].decode("ascii"))
        at += length
