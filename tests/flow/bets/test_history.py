"""A history of outcomes goes from one process to the next as JSON, and predicts there what it predicted here."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from weighbridge.flow.bets.predict import GuessedCall, History

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["a", "b", "c"])
OUTCOMES = (
    SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from("xy"), SCALARS, max_size=2)
)
CALLS = st.lists(st.tuples(st.sampled_from(["site", "other"]), SCALARS, OUTCOMES), max_size=30)


def calls_of(told: list[tuple[str, Any, Any]]) -> list[tuple[GuessedCall, Any]]:
    seen: dict[str, list[Any]] = {}
    found = []
    for site, argument, outcome in told:
        found.append((GuessedCall(site, (argument,), {}, tuple(seen.setdefault(site, []))), outcome))
        seen[site].append(outcome)
    return found


@given(CALLS, CALLS)
def test_predictions_are_the_same_behind_a_restart(before: list[Any], after: list[Any]) -> None:
    one = History()
    for call, outcome in calls_of(before):
        one.learn(call, outcome)
    other = History()
    other.restore(json.loads(json.dumps(one.as_dict())))
    for call, outcome in calls_of(after):
        assert other.predict(call) == one.predict(call)
        one.learn(call, outcome)
        other.learn(call, outcome)
    assert sorted(map(repr, one.as_dict()["contexts"])) == sorted(map(repr, other.as_dict()["contexts"]))


def test_what_json_would_change_and_what_lives_in_one_process_alone_stay_behind() -> None:
    history = History()
    for outcome in ((1, 2), float("nan"), object(), {1: 2}, b"x", [[[object()]]]):
        history.learn(GuessedCall("site", ("a",), {}), outcome)
    history.learn(GuessedCall("site", (object(),), {}), "kept in tables of no argument")
    rows = [row for *_, rows in history.as_dict()["contexts"] for row in rows]
    assert [value for _, value in rows] == ["kept in tables of no argument"]


def test_what_is_saved_is_bounded() -> None:
    history = History()
    for number in range(2 * History.SAVED_CONTEXTS):
        history.learn(GuessedCall("site", (number,), {}), number)
    saved = history.as_dict()["contexts"]
    assert len(saved) == History.SAVED_CONTEXTS
    other = History()
    other.restore(saved={"contexts": saved, "scores": []})
    last = 2 * History.SAVED_CONTEXTS - 1
    assert other.predict(GuessedCall("site", (last,), {}))[0].value == last
