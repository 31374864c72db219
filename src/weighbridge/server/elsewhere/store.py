"""Logs of streams in Redis, so that another gateway can go on with them (extra `redis`).

What is in them is what clients were answered, so it is encrypted with a key that is made of the operator's own: whoever
reads that Redis sees lengths and times. An event is written before any client sees it; so whatever a client has, the
log has too. Each stream has a hash (its owner, and what was asked) and a list of pieces; both end by themselves.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from weighbridge.fleet.limits.connection import Script, redis_client
from weighbridge.secret import Secret

log = logging.getLogger("weighbridge.server")

#: Seconds that a log is kept behind its last piece, and behind its end.
LOG_SECONDS, ENDED_SECONDS = 180, 60
#: Seconds for one command: a stream waits for it.
PATIENCE = 2.0
#: Bytes of one piece, and pieces that are read at once.
LARGEST_PIECE, PIECES = 4 << 20, 64

#: KEYS: hash, list. ARGV: owner, piece, seconds it is kept. Replies with the pieces that there are and the seconds
#: since somebody read it elsewhere (-1: nobody did), or with -1 where somebody else has it now.
APPEND = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return {-1, '-1'} end
local length = redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
local read = tonumber(redis.call('HGET', KEYS[1], 'read') or '-1')
local clock = redis.call('TIME')
return {length, tostring(read < 0 and -1 or tonumber(clock[1]) - read)}
"""

#: KEYS: hash, list. ARGV: the first piece wanted, how many at most. Replies with owner, what was asked, and pieces.
READ = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then return {'', '', {}} end
redis.call('HSET', KEYS[1], 'read', redis.call('TIME')[1])
local first = tonumber(ARGV[1])
local head = first == 0 and redis.call('HGET', KEYS[1], 'head') or ''
return {owner, head, redis.call('LRANGE', KEYS[2], first, first + tonumber(ARGV[2]) - 1)}
"""

#: KEYS: hash. ARGV: who has it, who wants it. Replies with 1 where it changes hands.
CLAIM = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[2])
return 1
"""


class StreamHead(msgspec.Struct, frozen=True):
    """What another gateway needs to go on: the request as it came, whose it is, and how its answer began.

    `said`: headers of the request that say how it is to be treated.
    """

    tenant: str
    opened_by: str | None
    status: int
    headers: list[tuple[bytes, bytes]]
    path: str
    body: bytes
    said: dict[str, str]


class LogPiece(msgspec.Struct, frozen=True):
    """Events, the first of which has number `first` + 1. `is_last`: the answer ends with them."""

    first: int
    events: list[bytes]
    is_last: bool = False


class LogPart(NamedTuple):
    """What was read of a log."""

    owner: str
    head: StreamHead | None
    pieces: list[LogPiece]


class Lost(Exception):
    """A log that is not there, is somebody else's now, or holds what no gateway of ours wrote."""


class StreamStore:
    """The logs that this gateway writes and reads. `room`: bytes of those it has begun."""

    def __init__(
        self, url: Secret, prefix: str, me: str, key: bytes, room: int, is_gone: Callable[[str], bool]
    ) -> None:
        """`key`: the digest of the operator's key; `is_gone`: whether another gateway has ended."""
        self.me, self.is_gone = me, is_gone
        self.held = 0
        self._room, self._prefix = room, prefix
        self._cipher = AESGCM(hmac.new(key, b"weighbridge:streams", sha256).digest())
        self._redis = redis_client(url, PATIENCE, "shared")
        self._append: Script = self._redis.register_script(APPEND)
        self._read: Script = self._redis.register_script(READ)
        self._claim: Script = self._redis.register_script(CLAIM)
        self._complained = False

    async def begin(self, name: str, head: StreamHead) -> StreamLog | None:
        """Begin a log; None where there is no room, or Redis is away: the stream is then this gateway's alone."""
        data = self._sealed(name, b"head", msgspec.msgpack.encode(head))
        if self.held + len(data) > self._room:
            return None
        try:
            keys = self._keys(name)
            await self._done(self._redis.hset(keys[0], mapping={"owner": self.me, "head": data}))
            await self._done(self._redis.expire(keys[0], LOG_SECONDS))
        except Exception as error:
            self.failed(error)
            return None
        self.held += len(data)
        return StreamLog(self, name, len(data), 0)

    async def read(self, name: str, first: int) -> LogPart:
        """The pieces of a log from number `first` on. Raises Lost, and whatever the Redis client raises."""
        owner, head, pieces = await self._done(self._read(keys=self._keys(name), args=[first, PIECES]))
        if not owner:
            raise Lost(name)
        told = None
        if head:
            told = self._opened(name, b"head", bytes(head), StreamHead)
        found = [
            self._opened(name, b"%d" % (first + at), bytes(data), LogPiece) for at, data in enumerate(pieces)
        ]
        return LogPart(owner.decode("utf-8", "replace"), told, found)

    async def claim(self, name: str, owner: str) -> bool:
        """Have a log from now on that its owner has left behind; False where another gateway was quicker."""
        return bool(int(await self._done(self._claim(keys=self._keys(name)[:1], args=[owner, self.me]))))

    async def drop(self, name: str) -> None:
        await self._done(self._redis.delete(*self._keys(name)))

    async def close(self) -> None:
        await self._redis.aclose()

    # -- for logs --------------------------------------------------------------------------------------

    async def append(self, name: str, at: int, piece: LogPiece) -> tuple[int, float]:
        """Write a piece; return its size and for how many seconds nobody has read the log elsewhere (-1: never).

        Raises Lost where there is no room, or the log is another gateway's.
        """
        data = self._sealed(name, b"%d" % at, msgspec.msgpack.encode(piece))
        if self.held + len(data) > self._room or len(data) > LARGEST_PIECE:
            raise Lost("there is no room for it")
        kept = ENDED_SECONDS if piece.is_last else LOG_SECONDS
        length, read = await self._done(self._append(keys=self._keys(name), args=[self.me, data, kept]))
        if int(length) != at + 1:
            raise Lost("another gateway has it")
        self.held += len(data)
        return len(data), float(read)

    def failed(self, error: Exception) -> None:
        """Say, the first time, why streams are this gateway's alone."""
        if not self._complained:
            self._complained = True
            why = (str(error) or type(error).__name__)[:200]
            log.warning("streams are kept at this gateway alone: %s", why)

    # -- inside ----------------------------------------------------------------------------------------

    def _keys(self, name: str) -> list[str]:
        start = f"{self._prefix}:{{stream-{name}}}:"
        return [start + "head", start + "log"]

    def _sealed(self, name: str, place: bytes, data: bytes) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + self._cipher.encrypt(nonce, data, name.encode() + b"/" + place)

    def _opened(self, name: str, place: bytes, data: bytes, kind: type[Any]) -> Any:
        try:
            text = self._cipher.decrypt(data[:12], data[12:], name.encode() + b"/" + place)
            return msgspec.msgpack.decode(text, type=kind)
        except (InvalidTag, ValueError, msgspec.MsgspecError) as error:
            raise Lost(f"its log is none of ours: {type(error).__name__}") from None

    async def _done(self, work: Any) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await work


class StreamLog:
    """One log that this gateway writes."""

    def __init__(self, store: StreamStore, name: str, size: int, pieces: int) -> None:
        self._store, self._name = store, name
        self._size, self._pieces = size, pieces

    async def append(self, first: int, events: Sequence[bytes], *, is_last: bool = False) -> float:
        """Write events; return the seconds for which nobody has read them elsewhere (-1: nobody ever did).

        Raises Lost, and whatever the Redis client raises; the log is of no use then.
        """
        size, read = await self._store.append(
            self._name, self._pieces, LogPiece(first, list(events), is_last)
        )
        self._pieces += 1
        self._size += size
        return read

    def give_back(self) -> None:
        """Count its bytes no more."""
        self._store.held -= self._size
        self._size = 0

    def failed(self, error: Exception) -> None:
        """Say once why nothing more is written to it, and count its bytes no more."""
        self.give_back()
        self._store.failed(error)

    async def drop(self) -> None:
        """Take it away."""
        self.give_back()
        try:
            await self._store.drop(self._name)
        except Exception as error:
            self._store.failed(error)
