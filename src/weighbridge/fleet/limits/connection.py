"""The client of the Redis that several gateways share (extra `redis`)."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from weighbridge.errors import BadInput
from weighbridge.secret import Secret

#: What a Redis's address begins with.
SCHEMES = ("redis://", "rediss://", "unix://")


class Script(Protocol):
    """A Lua script: its reply to `keys` and `args`. Raises whatever its Redis client raises."""

    def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Awaitable[Any]: ...


def redis_client(url: Secret, timeout: float, setting: str) -> Any:
    """Make a client that connects with its first command; `setting`: where its address is written.

    Raises BadInput where the extra is missing or the address is none.
    """
    try:
        from redis.asyncio import Redis
    except ImportError as error:
        raise BadInput(f"{setting}: needs the extra `redis`; pip install 'weighbridge[redis]'") from error
    try:
        return Redis.from_url(url.reveal(), socket_timeout=timeout, socket_connect_timeout=timeout)
    except ValueError:  # it quotes the URL
        raise BadInput(f"{setting}.redis: is no URL of a Redis; write redis://HOST:PORT/0") from None


def is_late(error: Exception) -> bool:
    """Whether a reply did not come in time, so that what was asked for may have been done."""
    from redis.exceptions import TimeoutError as LateReply

    return isinstance(error, (TimeoutError, LateReply))


def is_refused(error: Exception) -> bool:
    """Whether Redis is there and says that it does not do it: it is full, a replica, or has something else there."""
    from redis.exceptions import ResponseError

    return isinstance(error, ResponseError)
