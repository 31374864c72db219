"""Which prompts went where, in a few kilobytes now and then: what gateways tell each other of prefix caches. Pure.

The first blocks of a prompt say enough: who shares more than them has most likely been sent there too. A beginning is
told once for each replica, and again after a while if it is still used; those that were used most go first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from weighbridge.engine.memory.prefix import Digest

#: Blocks of a prompt that are told, and bytes of the name of one.
MOST_BLOCKS, DIGEST_BYTES = 32, 32
#: Beginnings that wait to be told, and those that are remembered as told.
MOST_WAITING, MOST_TOLD = 1024, 16_384
#: Seconds after which a beginning that is still used is told again.
TOLD_AGAIN = 60.0
#: Bytes of one piece of news, and of one beginning beside its blocks.
LARGEST, BESIDE = 48 << 10, 24

_KIND = tuple[str, str, bytes]
_Key = tuple[str, str, Digest]


@dataclass(slots=True)
class _Waiting:
    chain: tuple[Digest, ...]
    uses: int = 1


class PrefixNews:
    """What is to be told next."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[_Key, _Waiting] = OrderedDict()
        self._told: OrderedDict[_Key, float] = OrderedDict()  # when, the oldest first

    def note(self, model: str, replica: str, chain: Sequence[Digest], now: float) -> None:
        """Take note that a prompt with these blocks was sent there."""
        end = min(len(chain), MOST_BLOCKS)
        key = model, replica, chain[end - 1]
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.uses += 1
            return
        told = self._told.get(key)
        if told is not None and now < told + TOLD_AGAIN:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popitem(last=False)
        self._waiting[key] = _Waiting(tuple(chain[:end]))

    def take(self, now: float) -> bytes:
        """The next piece of news; empty where there is nothing new."""
        chosen, size = [], 0
        for key, one in sorted(self._waiting.items(), key=lambda pair: -pair[1].uses):
            size += BESIDE + len(key[0]) + len(key[1]) + sum(map(len, one.chain))
            if size > LARGEST:
                break
            chosen.append((key, one))
        for key, _ in chosen:
            del self._waiting[key]
            self._told[key] = now
            self._told.move_to_end(key)
        while len(self._told) > MOST_TOLD:
            self._told.popitem(last=False)
        if not chosen:
            return b""
        return msgspec.msgpack.encode([(key[0], key[1], b"".join(one.chain)) for key, one in chosen])


def read_news(data: bytes) -> Iterator[tuple[str, str, list[Digest]]]:
    """Model, replica and blocks of each beginning that was told. Raises ValueError for what is no news."""
    try:
        told = msgspec.msgpack.decode(data, type=list[_KIND])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)[:200]) from None
    for model, replica, blocks in told:
        if not blocks or len(blocks) % DIGEST_BYTES or len(blocks) > MOST_BLOCKS * DIGEST_BYTES:
            raise ValueError("the names of blocks are of another length")
        yield model, replica, [blocks[at : at + DIGEST_BYTES] for at in range(0, len(blocks), DIGEST_BYTES)]
