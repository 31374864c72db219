"""Who may share which blocks: prefix hits, forks, copies on write, and never a wrong one."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.fake_model import Driver, make_request, make_scheduler
from weighbridge.engine.memory.block_tables import BlockTables
from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.memory.prefix import MOST_LOOKED_AT, PrefixCache
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
    assert start(tables, list(SYSTEM), salt=b"one").num_computed_tokens == 39


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
    assert start(tables, list(SYSTEM)).num_computed_tokens == 39


def test_blocks_without_users_are_found_until_evicted_tail_first(tables: BlockTables) -> None:
    tables.close(computed(tables, [*SYSTEM, 1]))
    assert (tables.pool.num_cached, tables.pool.num_free) == (11, 53)
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


def test_a_prompt_under_way_takes_over_the_block_that_it_has_half_of(tables: BlockTables) -> None:
    slow = start(tables, [*SYSTEM, 1, 2])
    fast = computed(tables, [*SYSTEM, 3])
    slow.num_computed_tokens = 6
    assert tables.take_over(slow) == 34
    assert slow.block_table[1:10] == fast.block_table[1:10]
    assert slow.num_computed_tokens == 40
    tables.check_integrity([slow, fast])


def test_a_prompt_that_leaves_a_block_in_its_middle_goes_on_there_in_a_copy(tables: BlockTables) -> None:
    first = computed(tables, [*SYSTEM, 1, 2, 3, 4, 5])
    second = make_request("second", [*SYSTEM, 1, 2, 9, 9, 9, 9])
    opening = tables.opening(second)
    assert (opening.computed, opening.source, opening.fresh) == (42, first.block_table[10], 2)
    assert tables.open(second, opening) == [(first.block_table[10], second.block_table[10])]
    assert second.block_table[10] != first.block_table[10]
    tables.check_integrity([first, second])
    tables.settle()
    assert tables.pool.ref_counts[first.block_table[10]] == 1
    tables.check_integrity([first, second])


def test_what_is_copied_stays_until_the_iteration_is_over(tables: BlockTables) -> None:
    first = computed(tables, [*SYSTEM, 1, 2, 3, 4, 5])
    source = first.block_table[10]
    tables.close(first)
    second = make_request("second", [*SYSTEM, 1, 2, 9, 9])
    before = tables.pool.num_available
    opening = tables.opening(second)
    tables.open(second, opening)
    assert (
        before - tables.pool.num_available == opening.needed == 12
    )  # ten, the new one, and the one that is copied
    taken = [tables.pool.allocate("default") for _ in range(tables.pool.num_available)]
    assert source not in taken
    tables.settle()
    assert tables.pool.allocate("default") == source


def test_no_copy_is_made_where_there_is_no_room_for_both(tables: BlockTables) -> None:
    small = BlockTables(BlockPool(3, 4), PrefixCache(4))
    small.close(computed(small, [*range(12)]))
    prompt = [*range(10), 7, 7]
    assert small.opening(make_request("r", prompt)).computed == 8
    assert start(small, prompt).num_computed_tokens == 8
    wide = BlockTables(BlockPool(4, 4), PrefixCache(4))
    wide.close(computed(wide, [*range(12)]))
    assert start(wide, prompt).num_computed_tokens == 10


def test_a_tail_is_gone_on_with_where_it_lies_and_copied_by_whoever_comes_next(tables: BlockTables) -> None:
    first = computed(tables, [*SYSTEM, 1, 2])
    tail = first.block_table[10]
    tables.close(first)
    second, third = (make_request(name, [*SYSTEM, 1, 2, end, end, end]) for end, name in ((7, "2"), (8, "3")))
    assert tables.open(second, tables.opening(second)) == []
    assert (second.num_computed_tokens, second.block_table[10]) == (42, tail)
    assert tables.open(third, tables.opening(third)) == [(tail, third.block_table[10])]
    assert third.num_computed_tokens == 42
    tables.settle()
    for request in (second, third):
        request.num_computed_tokens = 45
        tables.commit(request)
        tables.close(request)
    assert start(tables, [*SYSTEM, 1, 2, 7, 7, 7, 7, 7]).num_computed_tokens == 45
    assert start(tables, [*SYSTEM, 1, 2, 8, 8, 8, 8, 8]).num_computed_tokens == 45


def test_what_a_choice_still_writes_is_no_tail(tables: BlockTables) -> None:
    parent = computed(tables, [1, 2, 3, 4, 5, 6])
    child = make_request("child", parent.prompt)
    tables.open(child, tables.opening_of_fork(child, parent))
    tables.close(parent)
    tables.check_integrity([child])
    assert start(tables, [1, 2, 3, 4, 5, 6, 7]).num_computed_tokens == 4


def test_a_tail_is_not_kept_twice(tables: BlockTables) -> None:
    one, two = computed(tables, [*SYSTEM, 1, 2, 3]), computed(tables, [*SYSTEM, 1, 2])
    tables.close(one)
    assert tables.pool.num_cached == 1  # the others are still read by the second one
    tables.close(two)
    assert tables.pool.num_cached == 11


def test_between_tenants_whole_blocks_alone_are_shared(tables: BlockTables) -> None:
    """By single tokens one tenant could find out what another one sent."""
    tables.close(computed(tables, [*SYSTEM, 1, 2, 3], tenant="a"))
    assert start(tables, [*SYSTEM, 1, 2, 9], tenant="b").num_computed_tokens == 40
    assert start(tables, [*SYSTEM, 1, 2, 9], tenant="a").num_computed_tokens == 42


def test_of_many_beginnings_the_newest_are_looked_at() -> None:
    tables = BlockTables(BlockPool(256, 4), PrefixCache(4))
    for number in range(MOST_LOOKED_AT + 1):
        tables.close(computed(tables, [1, 100 + number, 2, 3]))
    assert start(tables, [1, 101, 2, 3, 4]).num_computed_tokens == 4  # whole, however many there are
    assert start(tables, [1, 116, 2, 9, 9]).num_computed_tokens == 3
    assert start(tables, [1, 100, 2, 9, 9]).num_computed_tokens == 1


@given(
    st.lists(
        st.tuples(st.sampled_from([b"p", b"q"]), st.lists(st.integers(0, 2), min_size=1, max_size=4)),
        max_size=20,
    ),
    st.sets(st.integers(0, 19)),
    st.lists(st.integers(0, 2), max_size=5),
)
def test_beginnings_are_those_that_a_search_of_everything_finds(
    entered: list[tuple[bytes, list[int]]], forgotten: set[int], tokens: list[int]
) -> None:
    cache = PrefixCache(4)
    for block, (parent, held) in enumerate(entered):
        if len(held) == 4:
            cache.enter(parent + bytes(held), block, parent, held)
        else:
            cache.enter_tail(block, parent, held)
    for block in forgotten:
        cache.forget(block)
    cache.check_integrity()
    there = set(cache)
    expected = {
        block: next(
            (i for i, (a, b) in enumerate(zip(held, tokens, strict=False)) if a != b),
            min(len(held), len(tokens)),
        )
        for block, (parent, held) in enumerate(entered)
        if block in there and parent == b"p"
    }
    found = dict(cache.beginnings(b"p", tokens))
    assert found == dict(sorted(((b, n) for b, n in expected.items() if n), reverse=True)[:MOST_LOOKED_AT])


def test_a_burst_that_leaves_the_cache_in_one_block_computes_the_rest_once() -> None:
    driver = Driver(make_scheduler(num_blocks=128))
    driver.add(make_request("before", [*SYSTEM, 1, 2, 3, 4], 1))
    driver.run()
    before = driver.model.tokens_run
    rest = [*range(50, 80)]
    burst = [make_request(f"r{number}", [*SYSTEM, 1, 2, *rest, number], 1) for number in range(6)]
    driver.add(*burst)
    driver.run()
    assert driver.model.tokens_run - before <= len(rest) + 6 * 4
    assert [one.num_cached_tokens for one in burst] == [42, *[72] * 5]


def test_what_a_preempted_request_computed_is_there_to_the_last_token() -> None:
    driver = Driver(make_scheduler(num_blocks=20, max_sequences=1, speculate=False))
    low = make_request("low", [*range(30)], 20, priority=5)
    driver.add(low)
    for _ in range(8):
        driver.step()
    computed_then = low.num_computed_tokens
    driver.add(make_request("urgent", [9] * 8, 1))
    driver.step()
    assert low.num_preemptions == 1
    driver.step()
    assert driver.batches[-1] == [("low", computed_then, 1)]
    driver.run()


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
