"""What a replica says of its blocks, in ours: against a cache that is looked up by tokens alone."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.fleet.kv.blocks import KnownBlocks
from weighbridge.models.text.block_digests import block_digests, root


class Cache:
    """A server's: chains of blocks by their tokens, each block there as often as it was stored."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: dict[tuple[str, tuple[int, ...]], int] = {}

    def name(self, salt: str, tokens: list[int]) -> int:
        return hash((salt, tuple(tokens)))

    def hit(self, salt: str, tokens: list[int]) -> int:
        at = 0
        while at + self.size <= len(tokens) - 1 and (salt, tuple(tokens[: at + self.size])) in self.blocks:
            at += self.size
        return at

    def store(self, known: KnownBlocks, salt: str, tokens: list[int], start: int) -> None:
        """Compute `tokens` from `start` on, which is cached."""
        ends = range(start + self.size, len(tokens) + 1, self.size)
        for end in ends:
            key = salt, tuple(tokens[:end])
            self.blocks[key] = self.blocks.get(key, 0) + 1
        if ends:
            parent = self.name(salt, tokens[:start]) if start else None
            names = [self.name(salt, tokens[:end]) for end in ends]
            known.store(names, parent, tokens[start : ends[-1]], self.size, salt)

    def evict(self, known: KnownBlocks, rng: random.Random) -> None:
        """The end of a chain goes before its start."""
        ends = [
            key
            for key in self.blocks
            if not any(o != key and o[0] == key[0] and o[1][: len(key[1])] == key[1] for o in self.blocks)
        ]
        if ends:
            key = rng.choice(ends)
            known.remove([self.name(key[0], list(key[1]))])
            self.blocks[key] -= 1
            if not self.blocks[key]:
                del self.blocks[key]


@given(st.sampled_from([1, 2, 3, 4, 8, 12]), st.integers(0, 2**32), st.integers(1, 40))
@settings(deadline=None)
def test_what_is_known_is_what_the_server_finds(their_size: int, seed: int, steps: int) -> None:
    rng, ours = random.Random(seed), 4
    known, cache = KnownBlocks(ours), Cache(their_size)
    for _ in range(steps):
        salt = rng.choice(["", "a"])
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
        found = cache.hit(salt, tokens)
        chain = block_digests(root(salt.encode()), tokens, 0, len(tokens), ours)
        answer = known.cached_tokens(chain, len(tokens))
        # Whole blocks of ours and of theirs: never more, and less by a part of one of ours at the most.
        assert answer <= found
        if known.their_size:
            assert answer >= found // ours * ours // their_size * their_size
        cache.store(known, salt, tokens, found)
        if rng.random() < 0.4:
            cache.evict(known, rng)
        known.check_integrity()
    known.clear()
    assert not len(known)


def test_blocks_behind_ones_never_heard_of_are_not_counted() -> None:
    known = KnownBlocks(4)
    known.store([7], 6, [1, 2, 3, 4], 4)
    assert (len(known), known.unplaced) == (0, 1)
    known.store([8], 7, [1, 2, 3, 4], 4)
    known.remove([7, 8])
    known.check_integrity()


def test_a_copy_that_is_left_is_still_there() -> None:
    known, tokens = KnownBlocks(4), list(range(9))
    chain = block_digests(root(), tokens, 0, 9, 4)
    known.store([1, 2], None, tokens[:8], 4)
    known.store([2], 1, tokens[4:8], 4)  # the last block of a prompt is computed again, and is there twice
    known.remove([2])
    assert known.cached_tokens(chain, 9) == 8
    known.remove([2])
    assert known.cached_tokens(chain, 9) == 4


def test_a_report_of_what_was_found_again_is_no_copy() -> None:
    known, tokens = KnownBlocks(4), list(range(9))
    chain = block_digests(root(), tokens, 0, 9, 4)
    known.store([1, 2], None, tokens[:8], 4)
    known.store([1, 2], None, tokens[:8], 4)
    known.remove([2, 1])
    assert known.cached_tokens(chain, 9) == 0


def test_a_prompt_on_its_way_counts_until_it_ends() -> None:
    known, tokens = KnownBlocks(4), list(range(9))
    chain = block_digests(root(), tokens, 0, 9, 4)
    known.sent(chain)
    known.sent(chain)
    known.ended(chain)
    assert known.cached_tokens(chain, 9) == 8
    known.ended(chain)
    assert known.cached_tokens(chain, 9) == 0
    known.check_integrity()


def test_something_is_always_left_to_compute() -> None:
    known, tokens = KnownBlocks(4), list(range(8))
    known.store([1, 2], None, tokens, 4)
    assert known.cached_tokens(block_digests(root(), tokens, 0, 8, 4), 8) == 4
