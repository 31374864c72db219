"""Fuzz target of the KV events that replicas publish: batches in MessagePack, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import msgspec

from tests.fuzz.forms import INPUT_BYTES, trees
from tests.fuzz.target import Target
from weighbridge.fleet.kv.blocks import KnownBlocks
from weighbridge.fleet.kv.events import UnreadableEvents, read_batch
from weighbridge.fleet.kv.following import Following, InLine
from weighbridge.models.text.block_digests import block_digests, root

SIZE = 4
TOKENS = list(range(20))
CHAIN = block_digests(root(), TOKENS, 0, len(TOKENS), SIZE)
#: Before each batch: its number and its length.
_HEAD = 3
#: Bytes in a tree of values, which JSON has not, begin with it.
_BYTES = "bytes:"


def _batches(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbered batches: one byte is the number, two the length; the last one is what is left."""
    while len(data) > _HEAD:
        number, length = data[0], int.from_bytes(data[1:_HEAD], "big")
        yield number, data[_HEAD : _HEAD + length]
        data = data[_HEAD + length :]


def parse_kv_events(data: bytes) -> None:
    """What a replica says it holds, as a feed follows it: it is what its readable events say, and no more."""
    following = Following(KnownBlocks(SIZE))
    near: list[set[Any] | None] = []
    unreadable = 0
    for number, batch in _batches(data):
        try:
            read = read_batch(batch)
            place = following.place_of(number, read)
            if place is InLine.GAP:
                following.skip_to(number)
            if place is not InLine.OLD:
                near.append(_stored_near(batch))
                for _ in following.take(number, read, 0.0):
                    pass
        except UnreadableEvents:
            unreadable += 1
            following.skip_to(number + 1)
    following.blocks.check_integrity()
    held = set(following.blocks._theirs)
    assert None in near or held <= set().union(*filter(None, near)), "a block counts that is not in the GPU"
    found = following.blocks.cached_tokens(CHAIN, len(TOKENS))
    assert 0 <= found < len(TOKENS), found
    if unreadable:
        raise UnreadableEvents


def _stored_near(batch: bytes) -> set[Any] | None:
    """The blocks that a batch says are where they count, read without our types; None where that cannot be done."""
    found: set[Any] = set()
    try:
        events = msgspec.msgpack.decode(batch)[1]
    except ValueError:  # in a text that is of no use
        return None
    for event in events if isinstance(events, list) else ():
        hashes, medium = None, None
        if isinstance(event, dict):
            hashes, medium = event.get("block_hashes"), event.get("medium")
        elif isinstance(event, list) and event:
            hashes, medium = (event[1] if len(event) > 1 else None), (event[6] if len(event) > 6 else None)
        if isinstance(hashes, list) and medium in (None, "GPU"):
            found |= {one for one in hashes if isinstance(one, int | bytes)}
    return found


# -- changes ---------------------------------------------------------------------------------------------


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return _BYTES + value.decode("latin-1")
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _as_json(one) for key, one in value.items()}
    return value


def _as_packed(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_BYTES):
        return value.removeprefix(_BYTES).encode("latin-1", "replace")
    if isinstance(value, list):
        return [_as_packed(one) for one in value]
    if isinstance(value, dict):
        return {key: _as_packed(one) for key, one in value.items()}
    return value


def _changed(data: bytes, draw: Random) -> bytes | None:
    """Return a line of batches with one of them changed, doubled, moved or left out."""
    batches = list(_batches(data))
    if not batches:
        return None
    at = draw.randrange(len(batches))
    number, batch = batches[at]
    change = draw.randrange(8)
    if change == 0:
        batches[at] = (draw.choice((0, number + 1, max(number - 1, 0), 255)) % 256, batch)
    elif change == 1:
        batches.insert(draw.randint(0, len(batches)), (number, batch))
    elif change == 2:
        draw.shuffle(batches)
    else:
        try:
            value = trees.changed(_as_json(msgspec.msgpack.decode(batch)), draw, PIECES)
            batches[at] = (number, msgspec.msgpack.encode(_as_packed(value)))
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError):
            return None
    made = joined(batches)
    return made if len(made) <= INPUT_BYTES else None


def joined(batches: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes([number]) + len(batch).to_bytes(2, "big") + batch for number, batch in batches)


# -- the corpus ------------------------------------------------------------------------------------------

_STORED = {
    "type": "BlockStored",
    "block_hashes": [b"a" * 8, 2**63],
    "parent_block_hash": None,
    "token_ids": TOKENS[:8],
    "block_size": 4,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [["salt"], None],
    "group_idx": 0,
}
_BEHIND = ["BlockStored", [5, 6], 2**63, TOKENS[8:14], 3, None, "GPU"]
_ALONE = ["BlockStored", [7], None, TOKENS[:16], 16, None]
_REMOVED = {"type": "BlockRemoved", "block_hashes": [2**63], "medium": "GPU", "group_idx": 0}
PIECES: tuple[Any, ...] = (
    *({"medium": "CPU"}, {"medium": "GPU"}, {"group_idx": 1}, {"block_size": 1}, {"parent_block_hash": 5}),
    *(
        {"lora_id": 1},
        {"extra_keys": [["a"]]},
        {"extra_keys": [[1]]},
        {"extra_keys": [{"a": 1}]},
        {"lora_name": "x"},
    ),
    *(["BlockRemoved", [5, 7]], ["AllBlocksCleared"], {"type": "AllBlocksCleared"}, _ALONE, [5, 6, 7]),
    *(2**63, -1, "GPU", "CPU", "DISK", _BYTES + "aaaaaaaa", 16, 65536),
)


def _packed(at: float, *events: Any) -> bytes:
    return msgspec.msgpack.encode([at, list(events), 0])


def _seeds() -> list[bytes]:
    """Events as maps and as arrays; a line with a gap in it; a server that was started anew."""
    first, second = _packed(1.0, _STORED, _BEHIND), _packed(2.0, _REMOVED, ["BlockRemoved", [5]], _ALONE)
    return [
        joined([(0, first), (1, second)]),
        joined([(0, first), (3, second), (1, first)]),
        joined([(9, second), (0, _packed(3.0, ["AllBlocksCleared"], _ALONE)), (1, _packed(4.0))]),
        joined([(0, _packed(1.0, {**_STORED, "medium": None, "extra_keys": None}, _ALONE))]),
    ]


KV_EVENTS = Target(
    "kv_events",
    parse_kv_events,
    (UnreadableEvents,),
    _seeds,
    (
        b"\xabBlockStored",
        b"\xacBlockRemoved",
        b"\xb0AllBlocksCleared",
        b"\xc0",
        b"\xcf",
        b"\x90",
        b"\xcb",
        b"\x83",
    ),
    _changed,
)
