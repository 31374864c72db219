"""The prefix index against models that count block by block, bounded and least recently used first."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fleet.block_index import BlockIndex
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.prefix_tree import BlockRun

CHAINS = [tuple(f"{tree}{depth}".encode() * 8 for depth in range(9)) for tree in "abc"]


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 2), st.integers(1, 9)), max_size=30))
def test_matches_are_what_was_sent(sent: list[tuple[str, int, int]]) -> None:
    index, truth = PrefixIndex(), {}
    for name in "xyz":
        index.add_replica(name, 1000)
    for name, tree, length in sent:
        index.enter(name, CHAINS[tree][:length])
        truth[name, tree] = max(truth.get((name, tree), 0), length)
    for tree, chain in enumerate(CHAINS):
        expected = {name: truth[name, tree] for name in "xyz" if (name, tree) in truth}
        assert index.matched(chain) == expected
    index.check_integrity()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(0, 4)), max_size=40))
def test_a_replica_never_holds_more_than_its_cache_and_always_a_prefix(
    sent: list[tuple[int, int, int]],
) -> None:
    index = PrefixIndex()
    index.add_replica("x", 12)
    for tree, length, output in sent:
        index.enter("x", CHAINS[tree][:length])
        index.occupy("x", output)
        index.check_integrity()
        held = [index.matched(tuple(chain)).get("x", 0) for chain in CHAINS]
        assert sum(held) == index.blocks("x") <= 12 - output


def test_a_removed_replica_holds_nothing() -> None:
    index = PrefixIndex()
    index.add_replica("x")
    index.enter("x", CHAINS[0])
    index.remove_replica("x")
    assert index.matched(CHAINS[0]) == {}
    index.check_integrity()


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "answer", "forget"]), st.integers(0, 2), st.integers(1, 9)),
        max_size=60,
    )
)
def test_answers_stay_within_the_bound_and_go_with_their_prompt(steps: list[tuple[str, int, int]]) -> None:
    index = PrefixIndex()
    index.add_replica("x", 14)
    for kind, tree, length in steps:
        chain = CHAINS[tree][:length]
        if kind == "enter":
            index.enter("x", chain)
        elif kind == "answer":
            index.occupy("x", length, CHAINS[tree][3])
        else:
            index.forget("x", CHAINS[tree], length - 1)
        index.check_integrity()
        for whole in CHAINS:
            assert index.matched(whole).get("x", 0) <= min(len(whole), 14)


def test_an_answer_sent_back_is_counted_once() -> None:
    index = PrefixIndex()
    index.add_replica("x", 9)
    index.enter("x", CHAINS[0][:4])
    index.occupy("x", 3, CHAINS[0][3])
    assert index.matched(CHAINS[0]) == {"x": 7}
    index.enter("x", CHAINS[0][:9])
    index.check_integrity()
    assert index.matched(CHAINS[0]) == {"x": 9}  # nothing was pushed out to make room for it twice


def test_an_answer_belongs_to_a_prompt_that_was_held_ever_since() -> None:
    index = PrefixIndex()
    index.add_replica("x", 9)
    index.enter("x", CHAINS[0][:4])
    index.enter("x", CHAINS[1])  # pushes it out
    index.enter("x", CHAINS[0][:6])
    index.occupy("x", 2, CHAINS[0][3])
    assert index.matched((*CHAINS[0][:4], *CHAINS[1][4:])) == {"x": 4}


def test_another_size_shows_at_once() -> None:
    index = PrefixIndex()
    index.add_replica("x", 9)
    index.enter("x", CHAINS[0])
    assert index.matched(CHAINS[0]) == {"x": 9}
    index.add_replica("x", 5)
    assert index.matched(CHAINS[0]) == {"x": 5}


# -- against the model -------------------------------------------------------------------------------------

Path = tuple[int, ...]

#: A block's place in a tree of prompts that forks in two everywhere: chains share prefixes of every length.
PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple)


def chain_of(path: Path) -> tuple[bytes, ...]:
    """A digest names a block and all before it."""
    return tuple(bytes((*path[:end], 2)).ljust(16, b"-") for end in range(1, len(path) + 1))


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, str, Path, int]:
    kind = draw(st.sampled_from(["enter"] * 6 + ["occupy", "answer", "answer", "forget", "size", "remove"]))
    return kind, draw(st.sampled_from("uvwxyz")), draw(PATHS), draw(st.integers(0, 9))


def apply(index: PrefixIndex | BlockIndex, kind: str, name: str, path: Path, number: int) -> None:
    chain = chain_of(path)
    if kind == "enter":
        index.enter(name, chain)
    elif kind == "occupy":
        index.occupy(name, number)
    elif kind == "answer":
        index.occupy(name, number, chain[-1])
    elif kind == "forget":
        index.forget(name, chain, number)
    elif kind == "size":
        index.add_replica(name, 4 * number + 1)
    else:
        index.remove_replica(name)
        index.add_replica(name, 4 * number + 1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=6, max_size=6), st.lists(changes(), max_size=60))
def test_runs_count_what_blocks_count(sizes: list[int], steps: list[tuple[str, str, Path, int]]) -> None:
    index, model = PrefixIndex(), BlockIndex()
    for name, size in zip("uvwxyz", sizes, strict=True):
        index.add_replica(name, size)
        model.add_replica(name, size)
    seen = {path[:1] * 9 for *_, path, _ in steps}
    for kind, name, path, number in steps:
        apply(index, kind, name, path, number)
        apply(model, kind, name, path, number)
        index.check_integrity()
        seen.add((*path, 0))
        for asked in seen:
            chain, held = chain_of(asked), model.matched(chain_of(asked))
            assert dict(index.matched(chain)) == held
            assert dict(index.matched(chain, "wyx")) == {one: held[one] for one in "wxy" if one in held}
            leading = index.leading(chain, 1 + number % 6, number)
            assert len(set(leading)) == len(leading) == min(len(held), 1 + number % 6)
            assert held.keys() >= set(leading)
        assert [index.blocks(name) for name in "uvwxyz"] == [model.blocks(name) for name in "uvwxyz"]


def test_those_who_hold_most_lead_and_equals_take_turns() -> None:
    index = PrefixIndex()
    for name in "abcdefgh":
        index.add_replica(name, 100)
        index.enter(name, CHAINS[0][:2])
    index.enter("b", CHAINS[0][:4])
    index.enter("f", CHAINS[0][:9])
    index.enter("g", CHAINS[0][:9])
    index.occupy("f", 95)  # the end of it is forgotten
    assert index.leading(CHAINS[0], 1) == ["g"]
    assert index.leading(CHAINS[0], 3) == ["g", "f", "b"]
    assert set(index.leading(CHAINS[0], 3, 5)) == {"g", "f", "b"}
    others = {name for turn in range(8) for name in index.leading(CHAINS[0], 4, turn)[3:]}
    assert others == set("acdeh")
    assert index.leading(CHAINS[1], 3) == []


def test_what_is_forgotten_takes_no_memory() -> None:
    """A replica that forgets block by block, and prompts that fork, leave no digests behind."""
    index = PrefixIndex()
    for name in "xy":
        index.add_replica(name, 2000)
    shared = [os.urandom(32) for _ in range(500)]
    tracemalloc.start()
    try:
        for number in range(1200):
            index.enter("xy"[number % 2], (*shared[: number % 500], *(os.urandom(32) for _ in range(100))))
            index.occupy("x", 7)
            if number == 400:
                before = tracemalloc.get_traced_memory()[0]
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    index.check_integrity()
    assert after < 1.2 * before < 4_000_000


@pytest.mark.parametrize("homes", ["x", "xy", "xxxy", "xyz"])
def test_a_further_turn_of_a_conversation_does_not_walk_all_turns_before(
    monkeypatch: pytest.MonkeyPatch, homes: str
) -> None:
    """Whether it stays at one replica or moves between a few: what was used together is one run."""
    index = PrefixIndex()
    for name in "xyz":
        index.add_replica(name, 10**6)
    shared = tuple(f"s{number}".encode().ljust(16) for number in range(5))
    index.enter("z", (*shared, b"o" * 16))  # another conversation, with the same beginning
    chain = (*shared, *(f"{number}".encode().ljust(16) for number in range(1200)))
    looked_at = _runs_looked_at(monkeypatch)
    for turn in range(1, 401):
        seen = tuple(chain[: 5 + 3 * turn])
        index.matched(seen)
        index.enter(homes[turn % len(homes)], seen)
        index.occupy(homes[turn % len(homes)], 2, seen[-1])
    assert sum(looked_at) < 400 * 12
    index.check_integrity()


def _runs_looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    looked_at: list[int] = []
    agreement = BlockRun.agreement

    def counted(run: BlockRun, chain: Sequence[bytes], start: int) -> int:
        looked_at.append(1)
        return agreement(run, chain, start)

    monkeypatch.setattr(BlockRun, "agreement", counted)
    return looked_at
