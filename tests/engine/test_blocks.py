"""Blocks are conserved, given out once, and taken back fairly."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weighbridge.engine.memory.blocks import BlockPool


def fill_cache(pool: BlockPool, tenant: str, count: int) -> list[int]:
    """`count` cached blocks of `tenant`, in the order in which they are used up."""
    blocks = [pool.allocate(tenant) for _ in range(count)]
    for block in blocks:
        pool.release(block, keep=True)
    return blocks


def test_blocks_are_given_out_once_until_none_is_left() -> None:
    pool = BlockPool(5, 16)
    assert sorted(pool.allocate("a") for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.num_available == 0
    with pytest.raises(IndexError, match="no block left"):
        pool.allocate("a")


def test_a_shared_block_returns_with_its_last_reference() -> None:
    pool = BlockPool(2, 16)
    block = pool.allocate("a")
    pool.share(block, "b")
    pool.release(block, keep=False)
    assert (pool.num_referenced, pool.num_free) == (1, 1)
    pool.release(block, keep=False)
    assert (pool.num_referenced, pool.num_free) == (0, 2)
    with pytest.raises(ValueError, match="released more often"):
        pool.release(block, keep=False)


def test_cached_blocks_are_revived_or_evicted_least_recently_used_first() -> None:
    pool = BlockPool(3, 16)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    first, second, third = fill_cache(pool, "a", 3)
    pool.share(first, "a")
    pool.release(first, keep=True)  # now the most recently used
    assert [pool.allocate("a") for _ in range(3)] == [second, third, first] == evicted


def test_a_storm_eats_its_own_cache_first() -> None:
    pool = BlockPool(20, 16)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    quiet = set(fill_cache(pool, "quiet", 6))
    other = set(fill_cache(pool, "other", 4))
    for _ in range(200):  # far more distinct blocks than the pool holds
        pool.release(pool.allocate("storm"), keep=True)
    assert pool.cached_of("quiet") == 6
    assert pool.cached_of("other") == 4
    assert not set(evicted) & (quiet | other)


def test_who_holds_more_than_the_others_loses_first_even_to_a_newcomer() -> None:
    pool = BlockPool(20, 16)
    fill_cache(pool, "big", 16)
    fill_cache(pool, "small", 4)
    for expected in range(15, 7, -1):
        pool.allocate("new")
        assert (pool.cached_of("big"), pool.cached_of("small")) == (expected, 4)


def test_referenced_blocks_count_towards_what_a_tenant_holds() -> None:
    pool = BlockPool(20, 16)
    for _ in range(12):
        pool.allocate("storm")
    fill_cache(pool, "storm", 3)
    fill_cache(pool, "quiet", 5)
    for _ in range(3):
        pool.allocate("storm")
    assert pool.cached_of("quiet") == 5
    pool.allocate("storm")  # none of its own left: memory is for running first
    assert pool.cached_of("quiet") == 4


def test_a_revived_block_is_charged_to_who_revived_it() -> None:
    pool = BlockPool(4, 16)
    block, *_ = fill_cache(pool, "first", 2)
    pool.share(block, "second")
    pool.release(block, keep=True)
    assert (pool.cached_of("first"), pool.cached_of("second")) == (1, 1)
    pool.check_integrity({})


operations = st.lists(
    st.tuples(st.sampled_from("asr"), st.sampled_from("xyz"), st.integers(0, 99)), max_size=80
)


@given(st.integers(1, 12), operations)
@settings(max_examples=300, deadline=None)
def test_counts_hold_after_any_operations(num_blocks: int, steps: list[tuple[str, str, int]]) -> None:
    pool = BlockPool(num_blocks, 4)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    held: list[int] = []
    cached: set[int] = set()
    for action, tenant, number in steps:
        if action == "a" and pool.num_available:
            block = pool.allocate(tenant)
            assert block not in held
            cached.discard(block)
            held.append(block)
        elif action == "s" and (held or cached):
            options = sorted({*held, *cached})
            block = options[number % len(options)]
            pool.share(block, tenant)
            cached.discard(block)
            held.append(block)
        elif action == "r" and held:
            block = held.pop(number % len(held))
            pool.release(block, keep=number % 2 == 0)
            if block not in held and number % 2 == 0:
                cached.add(block)
        pool.check_integrity(Counter(held))
        assert pool.num_cached == len(cached)
        assert pool.num_free + pool.num_cached + pool.num_referenced == num_blocks
    assert len(evicted) <= sum(action == "a" for action, _, _ in steps)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=120))
@settings(max_examples=200, deadline=None)
def test_the_victim_is_always_a_largest_holder(steps: list[tuple[str, bool]]) -> None:
    pool = BlockPool(12, 4)
    held: list[tuple[int, str]] = []
    owner: dict[int, str] = {}
    victims: list[str] = []
    pool.on_evict = lambda block: victims.append(owner[block])
    for tenant, running in steps:
        if pool.num_available == 0:
            pool.release(held.pop(0)[0], keep=True)
        holdings = Counter(owner.values())
        candidates = {t for t in holdings if pool.cached_of(t)}
        victims.clear()
        block = pool.allocate(tenant)
        if victims:
            assert holdings[victims[0]] == max(holdings[t] for t in candidates)
        owner[block] = tenant
        if running:
            held.append((block, tenant))
        else:
            pool.release(block, keep=True)
