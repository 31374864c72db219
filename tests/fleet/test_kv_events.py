"""How the events of vLLM and SGLang are read, and what is made of their order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import thread_time
from typing import Any

import msgspec
import pytest

from weighbridge.errors import BadInput
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.kv.blocks import KnownBlocks
from weighbridge.fleet.kv.events import BlocksRemoved, BlocksStored, UnreadableEvents, read_batch
from weighbridge.fleet.kv.following import DUE_WITHIN, Following, InLine
from weighbridge.models.text.block_digests import block_digests, root

TOKENS = list(range(9))
CHAIN = block_digests(root(), TOKENS, 0, 9, 4)
#: As vLLM 0.32 publishes them, and as older ones and SGLang do.
MAP: dict[str, Any] = {
    "type": "BlockStored",
    "block_hashes": [b"a" * 32, 2**63],
    "parent_block_hash": None,
    "token_ids": TOKENS[:8],
    "block_size": 4,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "session_id": "s",
    "group_idx": 0,
}
ARRAY = ["BlockStored", [b"a" * 32, 2**63], None, TOKENS[:8], 4, None]
GONE = ["BlockRemoved", [2**63]]


def packed(*events: Any, at: float = 1.0) -> bytes:
    return msgspec.msgpack.encode([at, list(events), None])


def following() -> Following:
    return Following(KnownBlocks(4))


def take(one: Following, number: int, *events: Any, at: float = 1.0, now: float = 0.0) -> None:
    for _ in one.take(number, read_batch(packed(*events, at=at)), now):
        pass


def cached(one: Following, now: float = 0.0) -> int | None:
    return one.cached_tokens(CHAIN, 9, now)


@pytest.mark.parametrize("stored", [MAP, ARRAY], ids=["map", "array"])
def test_both_forms_say_the_same(stored: Any) -> None:
    one = following()
    take(one, 0, stored)
    assert cached(one) == 8
    take(one, 1, {"type": "BlockRemoved", "block_hashes": [2**63], "medium": "GPU"}, at=2.0)
    assert cached(one) == 4
    take(
        one,
        2,
        stored[:1] and ["AllBlocksCleared"] if isinstance(stored, list) else {"type": "AllBlocksCleared"},
    )
    assert cached(one) == 0


def test_events_are_read_as_what_they_are() -> None:
    stored, removed = read_batch(packed(MAP, GONE)).events()
    assert isinstance(stored, BlocksStored)
    assert isinstance(removed, BlocksRemoved)
    assert (stored.salt, stored.block_size, removed.medium) == ("", 4, None)


@pytest.mark.parametrize(
    ("keys", "salt"),
    [
        (None, ""),
        ([None, None], ""),
        ([["tenant"], None], "tenant"),
        ([[["image", 3]], None], None),
        ([["adapter", "tenant"], None], None),
    ],
)
def test_the_salt_of_a_prompt_names_its_blocks_too(keys: Any, salt: str | None) -> None:
    one = following()
    take(one, 0, MAP | {"extra_keys": keys})
    assert cached(one) == (8 if salt == "" else 0)
    if salt:
        salted = block_digests(root(salt.encode()), TOKENS, 0, 9, 4)
        assert one.cached_tokens(salted, 9, 0.0) == 8


@pytest.mark.parametrize(
    "other",
    [
        {"medium": "CPU"},
        {"group_idx": 1},
        {"lora_name": "x"},
        {"lora_id": 3},
        {"token_ids": [1]},
        {"token_ids": list(range(12))},
    ],
)
def test_what_is_elsewhere_or_another_models_is_not_counted(other: dict[str, Any]) -> None:
    one = following()
    take(one, 0, MAP | other)
    assert cached(one) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"a": 1}),
        packed(["Unheard", 1]),
        packed(MAP | {"block_size": 0}),
        packed(MAP | {"token_ids": "x"}),
        packed(MAP | {"token_ids": [2**63] * 8}),
        packed(MAP | {"medium": "GPU"}).replace(b"GPU", b"G\xecU"),
        packed(3),
    ],
)
def test_what_is_no_batch_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(UnreadableEvents):
        list(read_batch(data).events())


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looks for garbage, which take as long as all that other tests have left."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("parent", [None, 7])
@pytest.mark.parametrize("size", [1, 4, 4096])
def test_a_long_event_is_taken_in_by_turns_and_comes_to_the_same(size: int, parent: int | None) -> None:
    """Each turn is short, however much a replica says at once."""
    count = 20_000 if size < 4096 else 60
    tokens = [number % 251 for number in range(count * size)]
    before = ["BlockStored", [7], None, tokens[:size], size, None]
    event = ["BlockStored", list(range(10, 10 + count)), parent, tokens, size, None]
    one, whole = Following(KnownBlocks(16)), KnownBlocks(16)
    take(one, 0, before)
    turns = longest = 0.0
    with uncollected():
        for number in (1, 2):  # the second time they are found again, or there twice
            began = thread_time()
            for _ in one.take(number, read_batch(packed(event)), 0.0):
                turns, longest, began = turns + 1, max(longest, thread_time() - began), thread_time()
    whole.store([7], None, tokens[:size], size)
    for _ in range(2):
        whole.store(event[1], parent, tokens, size)
    assert turns >= 6
    assert longest < 0.05
    assert one.blocks._held == whole._held
    assert {name: block.copies for name, block in one.blocks._theirs.items()} == {
        name: block.copies for name, block in whole._theirs.items()
    }


def test_blocks_that_complete_more_of_ours_than_any_cache_has_are_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("weighbridge.fleet.kv.blocks.MOST_BLOCKS", 100)
    one = following()
    for number in range(60):
        take(one, number, ["BlockStored", [number], None, [number] * 40, 40, None])
        assert len(one.blocks._held) <= 110
    assert one.whole is False


def test_until_all_is_known_it_is_guessed() -> None:
    one = following()
    assert cached(one) is None  # nothing heard
    batch = read_batch(packed(MAP))
    assert one.place_of(5, batch) is InLine.GAP
    one.skip_to(5)
    take(one, 5, MAP)
    assert cached(one) is None  # something is there that we were not told of
    take(one, 6, ["AllBlocksCleared"], at=2.0)
    assert cached(one) == 0
    assert one.account.guessed == 2


def test_a_server_started_anew_has_an_empty_cache() -> None:
    one = following()
    take(one, 0, MAP, at=10.0)
    take(one, 1, at=11.0)
    assert one.place_of(0, read_batch(packed(at=10.0))) is InLine.OLD
    assert one.place_of(0, read_batch(packed(at=12.0))) is InLine.NEXT
    assert one.account.restarts == 1
    take(one, 0, at=12.0)
    assert cached(one) == 0


def test_events_that_stop_are_not_gone_by() -> None:
    one = following()
    take(one, 0, MAP)
    one.computed(7, 100.0)  # less than two blocks of theirs: nothing need be told
    assert cached(one, 200.0) == 8
    one.computed(8, 300.0)
    assert cached(one, 300.0 + 0.9 * DUE_WITHIN) == 8
    assert cached(one, 301.0 + DUE_WITHIN) is None
    assert "stopped" in one.in_words(310.0)
    take(one, 1, GONE, at=2.0, now=320.0)
    assert cached(one, 330.0) == 4


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ("kv_events: http://h:1", "no address to listen at"),
        ("kv_events: 'tcp://*:5557'", "no address to listen at"),
        ("kv_events: tcp://h", "no address to listen at"),
        ("kv_events: tcp://h:99999", "no address to listen at"),
        ("kv_events: ipc://relative", "no address to listen at"),
        ("kv_replay: tcp://h:5558", "needs kv_events"),
        ("kv_events: tcp://h:5557", "must be counted exactly"),  # there is no tokenizer
    ],
)
def test_an_address_that_is_none_is_said(events: str, complaint: str) -> None:
    text = f"models:\n  m:\n    replicas:\n      - url: http://127.0.0.1:1\n        {events}\n"
    with pytest.raises(BadInput, match=complaint):
        parse_config(text, "weighbridge.yaml", Path())
