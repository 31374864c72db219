"""Who is in memory: never too much, nobody thrown out of work, nobody forgotten, and no thrashing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.on_demand.world import Request, World
from weighbridge.errors import DeadlineMissed
from weighbridge.fleet.on_demand.occupancy import (
    LoadFailed,
    ModelNeeds,
    NotLoaded,
    Occupancy,
    OccupancyRules,
    Presence,
    Visit,
)

A, B, C = (ModelNeeds(name, 4) for name in "abc")
TWO = OccupancyRules(memory=8, hold=0.25, turn=2.0)
ONE = replace(TWO, memory=4)


def loaded(occupancy: Occupancy, name: str, now: float, took: float = 1.0) -> None:
    """Have a model loaded, `took` seconds before `now`."""
    occupancy.want(name, now - took)
    assert name in occupancy.step(now - took).loads
    occupancy.loaded(name, now)
    occupancy.step(now)


def visit(name: str, now: float, tokens: float = 100.0) -> Visit:
    return Visit(name, tokens, now)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, list[Request]]:
    sizes = draw(st.lists(st.integers(1, 10), min_size=2, max_size=5))
    keep = draw(st.booleans())
    models = [
        ModelNeeds(
            f"m{index}", size, keep=keep and index == 0, keep_alive=draw(st.sampled_from([None, 0.0, 5.0]))
        )
        for index, size in enumerate(sizes)
    ]
    others = sizes[1:] if keep else sizes
    memory = max(others) + (sizes[0] if keep else 0) + draw(st.integers(0, 10))
    rules = OccupancyRules(
        memory=memory,
        hold=draw(st.sampled_from([0.0, 0.25, 1.0])),
        turn=draw(st.sampled_from([0.0, 1.0, 3.0])),
        max_wait=draw(st.sampled_from([5.0, 1000.0])),
        max_waiting=draw(st.sampled_from([3, 1000])),
    )
    failing = draw(st.sampled_from([0.0, 0.0, 0.3]))
    chance = random.Random(draw(st.integers(0, 1000)))
    load_s = {one.name: draw(st.floats(0.1, 10.0)) for one in models}
    world = World(models, rules, load_s, unload_s=draw(st.sampled_from([0.0, 0.5])))
    world.fails = lambda name, load: chance.random() < failing
    requests = draw(
        st.lists(
            st.builds(
                Request,
                st.floats(0.0, 60.0),
                st.sampled_from([one.name for one in models]),
                st.floats(0.0, 20.0),
                patience=st.sampled_from([None, None, 2.0]),
            ),
            max_size=40,
        )
    )
    late = draw(st.booleans())
    return world, [replace(one, deadline=one.at + 10.0) if late else one for one in requests]


@given(worlds())
def test_memory_is_kept_to_nobody_loses_work_and_everybody_is_served_or_refused(
    case: tuple[World, list[Request]],
) -> None:
    world, requests = case
    world.run(requests)  # looks at each step that nobody is unloaded with work, and at the books
    assert world.peak <= world.rules.memory
    ends = [*world.served, *world.refused, *world.left]
    assert len(ends) == len(set(ends)) == len(requests)


@given(
    st.integers(2, 4),
    st.floats(0.05, 3.0),
    st.floats(0.0, 1.0),
    st.floats(2.5, 8.0),
    st.sampled_from([0.1, 0.25, 1.0]),
)
def test_the_time_between_two_switches_is_bounded_however_requests_alternate(
    models: int, gap: float, seconds: float, load_s: float, hold: float
) -> None:
    """The adversary: one place, and each request wants another model than the one before it."""
    names = [f"m{index}" for index in range(models)]
    rules = OccupancyRules(memory=1, hold=hold, turn=2.0, max_wait=1e6)
    world = World([ModelNeeds(name, 1) for name in names], rules, dict.fromkeys(names, load_s), unload_s=0.1)
    requests = [Request(gap * index, names[index % models], seconds) for index in range(120)]
    world.run(requests)
    assert len(world.served) == len(requests)
    assert world.switches <= world.loads <= len(requests)
    # Between two switches a model is loaded and stays for `hold` times loading both ways; what a load takes is a guess
    # (2 s) until each was loaded once, so it stays as long as that at least.
    stays = load_s + 0.1 + hold * 2.0 * 2.0
    assert world.switches <= world.now / stays + 1


@pytest.mark.parametrize("seed", range(3))
def test_under_load_one_switch_serves_all_who_came_meanwhile(seed: int) -> None:
    """Twenty requests a second for three models in memory for two, loads of 3 s: without patience most time goes into
    loading, with it a bounded part."""
    chance = random.Random(seed)
    at, requests = 0.0, []
    for _ in range(600):
        at += chance.expovariate(20.0)
        requests.append(Request(at, chance.choice("abc"), chance.uniform(0.1, 0.6)))
    load_s = {"a": 3.0, "b": 3.0, "c": 3.0}
    patient = World([A, B, C], TWO, load_s).run(requests)
    hasty = World([A, B, C], replace(TWO, hold=0.0, turn=0.0), load_s).run(requests)
    assert len(patient.served) == len(hasty.served) == len(requests)
    assert patient.switches < 0.7 * hasty.switches


def test_a_request_for_a_model_that_is_there_goes_in_at_once() -> None:
    occupancy = Occupancy([A, B], TWO)
    assert not occupancy.enter("a", visit("1", 0.0), 0.0)
    assert occupancy.step(0.0).loads == ["a"]
    occupancy.loaded("a", 2.0)
    (admitted,) = occupancy.step(2.0).admitted
    assert (admitted.id, admitted.waited, admitted.load_seconds, admitted.displaced) == ("1", 2.0, 2.0, ())
    assert occupancy.enter("a", visit("2", 3.0), 3.0)


def test_the_least_recently_used_idle_model_makes_room_and_is_named() -> None:
    occupancy = Occupancy([A, B, C], TWO)
    loaded(occupancy, "a", 0.0)
    loaded(occupancy, "b", 1.0)
    assert occupancy.enter("a", visit("1", 50.0), 50.0)
    occupancy.leave("a", "1", 51.0)
    occupancy.enter("c", visit("2", 100.0), 100.0)
    assert occupancy.step(100.0).unloads == ["b"]
    assert not occupancy.step(100.1).loads, "its memory is not given back yet"
    occupancy.unloaded("b")
    assert occupancy.step(100.5).loads == ["c"]
    occupancy.loaded("c", 102.0)
    (admitted,) = occupancy.step(102.0).admitted
    assert admitted.displaced == ("b",)


def test_one_that_was_used_a_moment_ago_stays_a_while_so_that_a_pause_is_not_taken_for_the_end() -> None:
    occupancy = Occupancy([A, B], ONE)
    loaded(occupancy, "a", 10.0, took=4.0)
    occupancy.model("b").load_s = 4.0
    assert occupancy.enter("a", visit("1", 10.0), 10.0)
    occupancy.leave("a", "1", 20.0)
    occupancy.enter("b", visit("2", 20.0), 20.0)
    assert not occupancy.step(20.0).unloads
    assert occupancy.next_look() == pytest.approx(22.0)  # a quarter of 4 + 4
    assert occupancy.enter("a", visit("3", 21.0), 21.0), "who comes meanwhile needs no switch"
    occupancy.leave("a", "3", 21.5)
    assert not occupancy.step(23.4).unloads
    assert occupancy.step(23.5).unloads == ["a"]


def test_one_with_work_keeps_its_turn_then_its_door_is_closed_and_nobody_inside_is_lost() -> None:
    occupancy = Occupancy([A, B], ONE)
    loaded(occupancy, "a", 10.0, took=2.0)
    occupancy.model("b").load_s = 3.0
    assert occupancy.enter("a", visit("1", 10.0), 10.0)
    occupancy.enter("b", visit("2", 11.0), 11.0)
    assert not occupancy.step(19.9).unloads
    assert occupancy.next_look() == pytest.approx(20.0)  # two turns of 2 + 3, since it was loaded
    assert not occupancy.step(20.0).unloads, "it has work"
    assert not occupancy.enter("a", visit("3", 21.0), 21.0), "its door is closed"
    assert occupancy.enter("a", visit("1", 21.0), 21.0), "who is inside may try again"
    occupancy.leave("a", "1", 25.0)
    assert occupancy.step(25.0).unloads == ["a"]
    occupancy.unloaded("a")
    assert occupancy.step(25.5).loads == ["b"]


def test_who_is_less_urgent_than_what_a_model_has_waits_until_it_is_idle() -> None:
    occupancy = Occupancy([A, B], ONE)
    loaded(occupancy, "a", 0.0)
    occupancy.enter("a", visit("1", 0.0), 0.0)
    occupancy.enter("b", replace(visit("2", 1.0), priority=10), 1.0)
    occupancy.step(500.0)
    assert occupancy.model("a").closed_for is None
    occupancy.leave("a", "1", 500.0)
    assert occupancy.step(500.0).unloads == ["a"], "its turn was over long ago"


def test_a_closed_door_opens_again_when_nobody_waits_for_its_place_any_more() -> None:
    occupancy = Occupancy([A, B], ONE)
    loaded(occupancy, "a", 0.0)
    occupancy.enter("a", visit("1", 0.0), 0.0)
    occupancy.enter("b", visit("2", 1.0), 1.0)
    occupancy.step(100.0)
    occupancy.enter("a", visit("3", 101.0), 101.0)
    occupancy.leave("b", "2", 102.0)
    step = occupancy.step(102.0)
    assert [one.id for one in step.admitted] == ["3"]
    assert not step.unloads


def test_who_came_first_for_more_room_is_not_passed_by_those_who_need_less() -> None:
    large, small, other = ModelNeeds("large", 8), ModelNeeds("small", 4), ModelNeeds("other", 4)
    occupancy = Occupancy([large, small, other, ModelNeeds("tiny", 1)], OccupancyRules(memory=9))
    loaded(occupancy, "small", 0.0)
    loaded(occupancy, "other", 0.0)
    occupancy.enter("small", visit("1", 0.0), 0.0)
    occupancy.enter("large", visit("2", 1.0), 1.0)
    occupancy.enter("tiny", visit("3", 2.0), 2.0)
    assert occupancy.step(3.0).loads == ["tiny"], "it fits beside all that the first one needs"
    occupancy.loaded("tiny", 3.5)
    closed = occupancy.step(200.0)
    assert closed.unloads == ["other"]
    assert occupancy.model("small").closed_for == "large"
    assert not occupancy.enter("other", visit("4", 201.0), 201.0)
    occupancy.unloaded("other")
    assert not occupancy.step(202.0).loads, "what is free now is large's"
    occupancy.leave("small", "1", 203.0)
    assert occupancy.step(203.0).unloads == ["small"]
    occupancy.unloaded("small")
    assert occupancy.step(204.0).loads == ["large"]


def test_kept_models_are_loaded_at_start_and_never_make_room() -> None:
    kept = ModelNeeds("kept", 4, keep=True, keep_alive=1.0)
    occupancy = Occupancy([kept, A, B], TWO)
    assert occupancy.step(0.0).loads == ["kept"]
    occupancy.loaded("kept", 1.0)
    loaded(occupancy, "a", 2.0)
    occupancy.enter("b", visit("1", 1000.0), 1000.0)
    assert occupancy.step(1000.0).unloads == ["a"]
    occupancy.gone("kept", "it was ended by SIGKILL", 1001.0)
    occupancy.unloaded("a")
    assert set(occupancy.step(1001.0).loads) == {"kept", "b"}


def test_idle_models_are_unloaded_after_what_was_configured_or_asked_for() -> None:
    occupancy = Occupancy([ModelNeeds("a", 4, keep_alive=10.0), B], TWO)
    loaded(occupancy, "a", 0.0)
    loaded(occupancy, "b", 0.0)
    occupancy.step(9.9)
    assert occupancy.next_look() == pytest.approx(10.0)
    assert occupancy.step(10.0).unloads == ["a"]
    occupancy.enter("b", visit("1", 20.0), 20.0)
    occupancy.leave("b", "1", 21.0)
    occupancy.stay("b", 0.0)
    assert occupancy.step(21.0).unloads == ["b"]
    occupancy.unloaded("b")
    assert occupancy.model("b").keep_alive is None, "the wish of a request holds until its model is unloaded"


def test_a_load_that_fails_refuses_who_waits_with_the_reason_and_is_tried_again_later() -> None:
    occupancy = Occupancy([A], ONE)
    occupancy.enter("a", visit("1", 0.0), 0.0)
    occupancy.step(0.0)
    occupancy.failed("a", "its file is damaged", 1.0)
    ((_, name, error),) = occupancy.step(1.0).refused
    assert (name, error.status, error.code) == ("1", 503, "model_load_failed")
    assert "its file is damaged" in str(error)
    assert error.retry_after == pytest.approx(1.0)
    with pytest.raises(LoadFailed, match="damaged"):
        occupancy.enter("a", visit("2", 1.5), 1.5)
    assert not occupancy.enter("a", visit("3", 2.0), 2.0)
    assert occupancy.step(2.0).loads == ["a"]
    occupancy.failed("a", "its file is damaged", 3.0)
    assert occupancy.model("a").retry_at == pytest.approx(5.0), "twice as long"
    occupancy.step(3.0)
    occupancy.want("a", 5.0)
    occupancy.step(5.0)
    occupancy.loaded("a", 6.0)
    assert (occupancy.model("a").failure, occupancy.model("a").failures) == ("", 0)


def test_waiting_is_bounded_in_time_in_number_and_in_tokens() -> None:
    rules = replace(ONE, max_wait=10.0, max_waiting=2, max_waiting_tokens=250)
    occupancy = Occupancy([A, B], rules)
    occupancy.enter("a", Visit("1", 100.0, 0.0, deadline=5.0), 0.0)
    occupancy.step(0.0)
    with pytest.raises(NotLoaded):
        occupancy.enter("b", visit("2", 1.0, tokens=200.0), 1.0)
    occupancy.enter("b", visit("3", 2.0), 2.0)
    with pytest.raises(NotLoaded, match="2 requests wait") as caught:
        occupancy.enter("b", visit("4", 3.0), 3.0)
    assert caught.value.retry_after is not None
    ((_, first, late),) = occupancy.step(5.0).refused
    assert first == "1"
    assert isinstance(late, DeadlineMissed)
    ((_, second, tired),) = occupancy.step(12.0).refused
    assert second == "3"
    assert (tired.status, tired.code) == (503, "model_not_loaded")


def test_a_model_that_is_gone_is_loaded_again_for_those_inside_and_one_that_dies_young_has_failed() -> None:
    occupancy = Occupancy([A], ONE)
    loaded(occupancy, "a", 0.0)
    occupancy.enter("a", visit("1", 50.0), 50.0)
    occupancy.gone("a", "it was ended by SIGKILL", 100.0)
    assert occupancy.step(100.0).loads == ["a"]
    assert not occupancy.enter("a", visit("1", 100.5), 100.5), "who was inside waits as anybody does"
    occupancy.loaded("a", 101.0)
    assert [one.id for one in occupancy.step(101.0).admitted] == ["1"]
    occupancy.gone("a", "it was ended by SIGSEGV", 102.0)
    with pytest.raises(LoadFailed, match="SIGSEGV"):
        occupancy.enter("a", visit("1", 102.5), 102.5)


def test_operators_load_and_unload_and_work_is_waited_for() -> None:
    occupancy = Occupancy([A, B], TWO)
    loaded(occupancy, "a", 0.0)
    occupancy.enter("a", visit("1", 1.0), 1.0)
    occupancy.unwant("a")
    assert not occupancy.step(1.0).unloads
    occupancy.enter("a", visit("2", 2.0), 2.0)
    occupancy.leave("a", "1", 3.0)
    assert occupancy.step(3.0).unloads == ["a"]
    occupancy.unloaded("a")
    assert occupancy.step(4.0).loads == ["a"], "somebody has asked for it meanwhile"
    occupancy.unwant("a")
    occupancy.want("a", 4.5)
    occupancy.loaded("a", 5.0)
    assert [one.id for one in occupancy.step(5.0).admitted] == ["2"]
    assert occupancy.model("a").presence is Presence.LOADED
