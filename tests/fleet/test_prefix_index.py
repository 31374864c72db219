"""The prefix index against a plain model of sets, bounded and least recently used first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weighbridge.fleet.prefix_index import PrefixIndex

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
        for chain in CHAINS:
            held = [block in index._masks for block in chain]
            assert held == sorted(held, reverse=True)
            assert index.matched(tuple(chain)).get("x", 0) == sum(held)


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
        held = index._held["x"]
        assert set(held.answers) <= set(held.blocks)
        for whole in CHAINS:
            assert index.matched(whole).get("x", 0) <= min(len(whole), held.used)


def test_an_answer_sent_back_is_counted_once() -> None:
    index = PrefixIndex()
    index.add_replica("x", 9)
    index.enter("x", CHAINS[0][:4])
    index.occupy("x", 3, CHAINS[0][3])
    assert index.matched(CHAINS[0]) == {"x": 7}
    index.enter("x", CHAINS[0][:9])
    index.check_integrity()
    assert index.matched(CHAINS[0]) == {"x": 9}  # nothing was pushed out to make room for it twice
