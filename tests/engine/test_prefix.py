"""Who may share which blocks: prefix hits, forks, copies on write, and never a wrong one."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.fake_model import Driver, make_request, make_scheduler
from weighbridge.engine.memory.block_tables import BlockTables
from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.memory.prefix import PrefixCache
from weighbridge.engine.request import FinishReason, Request
from weighbridge.models.text.block_digests import ROOT

SYSTEM = list(range(100, 140))  # ten blocks of four


def start(tables: BlockTables, prompt: list[int], **options: str | bytes) -> Request:
    """A request with its blocks, nothing computed but the hits."""
    request = make_request(f"r{id(prompt)}", prompt, **options)
    tables.open(request, tables.opening(request))
    return request


def computed(tables: BlockTables, prompt: list[int], **options: str | bytes) -> Request:
    request = start(tables, prompt, **options)
    request.num_computed_tokens = len(prompt)
    tables.commit(request)
    return request


@pytest.fixture
def tables() -> BlockTables:
    return BlockTables(BlockPool(64, 4), PrefixCache(4))


token_lists = st.lists(st.integers(0, 2), max_size=14)


@given(token_lists, token_lists)
def test_digests_are_equal_exactly_where_prefixes_are(one: list[int], two: list[int]) -> None:
    cache = PrefixCache(3)
    chains: list[list[bytes]] = [[], []]
    for chain, tokens in zip(chains, (one, two), strict=True):
        cache.extend(chain, tokens, len(tokens) // 2)  # in two goes, as tokens come
        cache.extend(chain, tokens, len(tokens))
        assert len(chain) == len(tokens) // 3
    for index, (left, right) in enumerate(zip(*chains, strict=False)):
        assert (left == right) == (one[: 3 * index + 3] == two[: 3 * index + 3])


@given(token_lists, token_lists, st.binary(max_size=80), st.binary(max_size=80))
def test_chains_of_different_salts_have_no_block_in_common(
    one: list[int], two: list[int], salt: bytes, other: bytes
) -> None:
    cache = PrefixCache(2)
    chains: list[list[bytes]] = [[], []]
    for chain, tokens, own in zip(chains, (one, two), (salt, other), strict=True):
        cache.extend(chain, tokens, len(tokens), own)
    if salt != other:
        assert not set(chains[0]) & set(chains[1])
    elif one[:2] == two[:2] and len(one) > 1 and len(two) > 1:
        assert chains[0][0] == chains[1][0]


def test_a_salt_that_spells_a_block_names_no_block() -> None:
    """A salt is hashed as a salt, so that no choice of it continues the chain of somebody else's text."""
    cache = PrefixCache(2)
    victim: list[bytes] = []
    cache.extend(victim, [1, 2, 3, 4], 4)
    for parent in (ROOT, victim[0]):
        guess: list[bytes] = []
        cache.extend(guess, [3, 4], 2, parent + array("q", [1, 2]).tobytes())
        assert not set(guess) & set(victim)


def test_what_one_salt_computed_serves_no_other(tables: BlockTables) -> None:
    computed(tables, SYSTEM, salt=b"one")
    assert start(tables, list(SYSTEM), salt=b"two").num_computed_tokens == 0
    assert start(tables, list(SYSTEM)).num_computed_tokens == 0
    assert start(tables, list(SYSTEM), salt=b"one").num_computed_tokens == 36


def test_a_prompt_hits_while_the_first_user_still_runs(tables: BlockTables) -> None:
    first = computed(tables, [*SYSTEM, 1])
    second = start(tables, [*SYSTEM, 2])
    assert second.block_table[:10] == first.block_table[:10]
    assert second.block_table[10] != first.block_table[10]
    assert second.num_computed_tokens == 40
    assert all(tables.pool.ref_counts[block] == 2 for block in first.block_table[:10])
    assert tables.pool.num_referenced == 12


def test_the_last_token_is_always_computed_again(tables: BlockTables) -> None:
    computed(tables, SYSTEM)
    assert start(tables, list(SYSTEM)).num_computed_tokens == 36


def test_blocks_without_users_are_found_until_evicted_tail_first(tables: BlockTables) -> None:
    tables.close(computed(tables, [*SYSTEM, 1]))
    assert (tables.pool.num_cached, tables.pool.num_free) == (10, 54)
    for _ in range(57):
        tables.pool.allocate("default")
    assert tables.opening(make_request("r", [*SYSTEM, 2])).computed == 28


def test_what_an_opening_needs_is_what_it_takes(tables: BlockTables) -> None:
    tables.close(computed(tables, [*SYSTEM, 1]))
    opening = tables.opening(make_request("r", [*SYSTEM, 2, 3, 4, 5, 6]))
    assert (len(opening.shared), opening.fresh, opening.needed) == (10, 2, 12)
    before = tables.pool.num_available
    start(tables, [*SYSTEM, 2, 3, 4, 5, 6])
    assert before - tables.pool.num_available == 12


def test_equal_blocks_computed_twice_keep_the_first(tables: BlockTables) -> None:
    one, two = start(tables, list(SYSTEM)), start(tables, list(SYSTEM))
    for request in (one, two):
        request.num_computed_tokens = 40
        tables.commit(request)
    assert start(tables, [*SYSTEM, 7]).block_table[:10] == one.block_table


def test_a_prompt_under_way_takes_over_what_another_computed(tables: BlockTables) -> None:
    slow = start(tables, [*SYSTEM, 1, 2])
    slow.num_computed_tokens = 8
    tables.commit(slow)
    fast = start(tables, [*SYSTEM, 3])
    assert fast.num_computed_tokens == 8
    fast.num_computed_tokens = 30
    tables.commit(fast)
    free = tables.pool.num_free
    assert tables.take_over(slow) == 20
    assert slow.num_computed_tokens == 28
    assert slow.block_table[:7] == fast.block_table[:7]
    assert tables.pool.num_free == free + 5
    tables.check_integrity([slow, fast])


def test_take_over_waits_for_a_block_boundary(tables: BlockTables) -> None:
    slow = start(tables, [*SYSTEM, 1, 2])
    computed(tables, [*SYSTEM, 3])
    slow.num_computed_tokens = 6
    assert tables.take_over(slow) == 0


def test_a_write_into_a_shared_block_copies_it_first(tables: BlockTables) -> None:
    parent = computed(tables, [1, 2, 3, 4, 5, 6])
    child = make_request("child", [1, 2, 3, 4, 5, 6])
    tables.open(child, tables.opening_of_fork(child, parent))
    assert child.block_table == parent.block_table
    assert child.num_computed_tokens == 5
    shared = parent.block_table[1]
    assert tables.blocks_to_write(child, 6) == 1
    assert tables.prepare_write(child, 6) == [(shared, child.block_table[1])]
    assert child.block_table[1] != shared == parent.block_table[1]
    assert tables.prepare_write(parent, 7) == []  # the only one left in it writes in place
    tables.check_integrity([parent, child])


def test_choices_share_the_prompt_and_copy_only_its_last_block() -> None:
    driver = Driver(make_scheduler(num_blocks=64))
    parent = make_request("p", [*range(10)], 8, seed=1)
    children = [make_request(f"c{i}", parent.prompt, 8, seed=i + 2, fork_of=parent) for i in range(3)]
    driver.add(parent, *children)
    assert [s.request.id for s in driver.step()[0].slices] == ["p"]  # the choices wait for its prompt
    batch, _ = driver.step()
    assert sorted((s.request.id, s.start, s.count) for s in batch.slices) == [
        ("c0", 9, 1),
        ("c1", 9, 1),
        ("c2", 9, 1),
        ("p", 10, 1),
    ]
    assert len(batch.copies) == 3
    assert len({tuple(s.request.block_table[:2]) for s in batch.slices}) == 1
    assert len({s.request.block_table[2] for s in batch.slices}) == 4
    assert [child.num_cached_tokens for child in children] == [9, 9, 9]
    driver.run()


@pytest.mark.parametrize("how", ["abort", "preempt"])
def test_a_fork_whose_parent_is_gone_runs_by_itself(how: str) -> None:
    driver = Driver(make_scheduler(max_batch_tokens=4))
    parent = make_request("p", [*range(20)], 4)
    child = make_request("c", parent.prompt, 4, seed=2, fork_of=parent)
    driver.add(parent, child)
    driver.step()
    assert driver.scheduler.load().queued_requests == 1
    if how == "abort":
        driver.abort("p")
    else:
        driver.add(make_request("urgent", [1] * 240, 4, priority=-1))
    driver.run()
    assert parent.num_preemptions == (how == "preempt")
    assert child.finish_reason is FinishReason.LENGTH


def test_a_fork_stops_waiting_when_its_parent_is_preempted() -> None:
    driver = Driver(make_scheduler(max_batch_tokens=4, num_blocks=12, max_sequences=1))
    parent = make_request("p", [*range(20)], 4, priority=5)
    child = make_request("c", parent.prompt, 4, seed=2, fork_of=parent, priority=5)
    driver.add(parent, child)
    driver.step()
    assert driver.scheduler._queue.holds("c")
    driver.add(make_request("urgent", [9] * 8, 4))
    driver.step()
    assert parent.num_preemptions == 1
    assert not driver.scheduler._queue.holds("c")
    late = make_request("late", parent.prompt, 4, seed=3, fork_of=parent, priority=5)
    driver.add(late)  # a parent that was preempted is not waited for at all
    assert not driver.scheduler._queue.holds("late")
    driver.run()


def test_a_late_fork_of_a_running_parent_shares_its_prompt() -> None:
    driver = Driver(make_scheduler(enable_prefix_cache=False, speculate=False))
    parent = make_request("p", [*range(10)], 20)
    driver.add(parent)
    for _ in range(5):
        driver.step()
    child = make_request("c", parent.prompt, 4, seed=2, fork_of=parent)
    driver.add(child)
    driver.step()
    assert child.num_cached_tokens == 9
    driver.run()
