"""The KV events of vLLM and SGLang: how they are read. Pure.

Published over ZeroMQ as three parts: a topic, a number (eight bytes, from 0 on) and a MessagePack batch

    [seconds, [event, ...], data-parallel rank]

An event is a map with its `type`, or, of older vLLM and of SGLang, an array that begins with it: BlockStored,
BlockRemoved or AllBlocksCleared. What it has beyond the fields below is of no use here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from weighbridge.fleet.kv.blocks import BlockHash

Hashes = list[BlockHash]
#: What digests are made of: eight bytes with a sign.
Token = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class BlocksStored(Struct, tag="BlockStored", gc=False):
    """Blocks of `block_size` tokens, one behind the other. `extra_keys`: what beside its tokens names each."""

    block_hashes: Hashes
    parent_block_hash: BlockHash | None
    token_ids: list[Token]
    block_size: Annotated[int, Meta(ge=1, le=1 << 16)]
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None

    @property
    def salt(self) -> str | None:
        """The salt of the prompt; None where something else (an image, an adapter) names the first block as well."""
        if self.lora_id is not None or self.lora_name is not None:
            return None
        first = self.extra_keys[0] if self.extra_keys else None
        if not first:
            return ""
        is_salt = isinstance(first, list) and len(first) == 1 and isinstance(first[0], str)
        return str(first[0]) if is_salt else None


class BlocksRemoved(Struct, tag="BlockRemoved", gc=False):
    block_hashes: Hashes
    medium: str | None = None
    group_idx: int | None = None


class BlocksCleared(Struct, tag="AllBlocksCleared", gc=False):
    """Nothing is held any more."""


class _StoredArray(BlocksStored, tag="BlockStored", array_like=True, gc=False):
    pass


class _RemovedArray(BlocksRemoved, tag="BlockRemoved", array_like=True, gc=False):
    pass


class _ClearedArray(BlocksCleared, tag="AllBlocksCleared", array_like=True, gc=False):
    pass


Event = BlocksStored | BlocksRemoved | BlocksCleared


class EventBatch(Struct, array_like=True, gc=False):
    """The events of one step, and when it was, by the server's clock."""

    at: float
    raw: list[msgspec.Raw]

    def events(self) -> Iterator[Event]:
        """One after another, since all together may be long to read. Raises UnreadableEvents where one is not."""
        for one in self.raw:
            try:
                event = _read_map(one) if _is_map(one) else _read_array(one)
            except _BROKEN as error:
                raise UnreadableEvents(str(error)) from None
            yield event


#: Made here, since threads that learn a type at once crash the process.
_read_batch = msgspec.msgpack.Decoder(EventBatch).decode
_read_map = msgspec.msgpack.Decoder(BlocksStored | BlocksRemoved | BlocksCleared).decode
_read_array = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray).decode


#: What the library raises for bytes that are none of these.
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class UnreadableEvents(Exception):
    """A batch is not what such servers send."""


def read_batch(data: bytes) -> EventBatch:
    """Raises UnreadableEvents."""
    try:
        return _read_batch(data)
    except _BROKEN as error:
        raise UnreadableEvents(str(error)) from None


def _is_map(raw: msgspec.Raw) -> bool:
    first = bytes(raw)[0]
    return first & 0xF0 == 0x80 or first in (0xDE, 0xDF)
