"""Large fleets: a few replicas are looked at, kept in order as things happen, and nobody's room is overlooked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fleet.arrivals import COST, arrival
from weighbridge.errors import QueueFull
from weighbridge.fleet.api import Arrival, Capacity, Report
from weighbridge.fleet.desk import LARGE_FLEET, Desk, Lease, NoReplica, Patience, Standing
from weighbridge.fleet.load.cost_order import CostOrder
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue, QueueSettings
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.shortlist import (
    ASK_AGAIN,
    CHEAPEST,
    HOLDERS,
    LONG,
    RENEWED,
    SPREAD,
    TURN,
    Shortlist,
)
from weighbridge.fleet.policies.weigh import Weigh

FEW = HOLDERS + CHEAPEST + TURN


@dataclass(eq=False)
class Seat:
    """A replica that counts how often it is asked for room."""

    state: ReplicaState
    up: bool = True
    held_until: float = 0.0
    asked: int = 0
    log: list[str] = field(default_factory=list)

    def accepts(self, arrival: Arrival, now: float) -> bool:
        self.asked += 1
        return self.usable(now) and self.state.accepts(arrival, now)

    def can_ever(self, arrival: Arrival, now: float) -> bool:
        return self.state.fits(arrival)

    def usable(self, now: float) -> bool:
        return self.up and now >= self.held_until

    def takes_turns(self, arrival: Arrival, now: float) -> bool:
        return self.usable(now) and self.state.open_to(arrival)

    def standing(self, now: float) -> Standing:
        return Standing.UP if self.usable(now) else Standing.DOWN

    def why(self, now: float) -> str:
        return "" if self.usable(now) else "it rests"

    def reserve(self, arrival: Arrival, now: float) -> bool:
        return True

    def sent(self, now: float) -> None: ...

    def settle(self, arrival: Arrival, produced: int, now: float) -> None: ...


def seat(number: int, index: PrefixIndex | None = None, **capacity: Any) -> Seat:
    cost = COST.scaled(1.0 + number % 3)
    known = {"step_cost": cost, "kv_tokens": 100_000, "max_sequences": 64, **capacity}
    return Seat(ReplicaState(f"r{number}", Capacity(**known), index))


def desk_of(seats: list[Seat], policy: Any = None, large: int = LARGE_FLEET) -> Desk[Seat]:
    made: Desk[Seat] = Desk(
        "m", policy or Weigh(random.Random(0)), GatewayQueue(QueueSettings()), Patience(), large=large
    )
    for one in seats:
        made.join(one, 0.0)
    return made


def held(lease: Lease[Seat] | None) -> Lease[Seat]:
    assert lease is not None
    return lease


def chain(*parts: str) -> tuple[bytes, ...]:
    return tuple(f"{' '.join(parts[: end + 1])}".encode().ljust(64)[:64] for end in range(len(parts)))


# -- the order ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 3)))))
def test_the_order_is_that_of_the_costs_and_equals_take_turns(steps: list[tuple[str, int | None]]) -> None:
    order, model = CostOrder(), dict[str, tuple[int, int]]()
    for number, (name, cost) in enumerate(steps):
        if cost is None:
            order.discard(name)
            model.pop(name, None)
        else:
            order.set(name, cost)
            if name not in model or model[name][0] != cost:
                model[name] = (cost, number)
        order.check_integrity()
        assert list(order) == sorted(model, key=lambda one: model[one])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer"] * 5 + ["first", "release", "release", "report", "learn", "join", "leave"]),
        st.integers(0, 9),
        st.integers(1, 3000),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS, st.booleans())
def test_the_kept_order_is_the_one_computed_anew(steps: list[tuple[str, int, int]], known: bool) -> None:
    """Under any history of requests, reports, joins and leaves; time stands still, so that nothing else changes."""
    unknown: dict[str, Any] = {} if known else {"step_cost": None}
    desk = desk_of([seat(0), seat(1, max_sequences=2), seat(2, kv_tokens=4000), seat(3, **unknown)], large=2)
    leases: list[Lease[Seat]] = []
    for count, (kind, number, size) in enumerate(steps):
        name = f"r{number}"
        if kind == "offer":
            lease = desk.place(arrival(f"q{count}", size, choices=1 + number % 2), 1.0)
            leases += [] if lease is None else [lease]
        elif kind == "first" and leases:
            leases[number % len(leases)].first_byte(1.0)
        elif kind == "release" and leases:
            leases.pop(number % len(leases)).release(1.0)
        elif kind == "report" and name in desk.members:
            report = Report(1.0, queued_requests=number, running_requests=size % 7, queued_tokens=size)
            desk.members[name].state.report(report)
            desk.touch(name, 1.0)
        elif kind == "learn" and name in desk.members:
            desk.members[name].state.report(Report(1.0, step_cost=COST.scaled(1.0 + number)))
            desk.touch(name, 1.0)
        elif kind == "join" and name not in desk.members:
            desk.join(seat(number), 1.0)
        elif kind == "leave" and not any(lease.member.state.name == name for lease in leases):
            desk.leave(name)
        desk.check_integrity()
        check_against_scratch(desk)


def check_against_scratch(desk: Desk[Seat]) -> None:
    listed = desk._shortlist
    assert (listed is not None) == (len(desk.members) > 2)
    if listed is None:
        return
    smallest = arrival("smallest", 1, 1.0, max_tokens=1)
    roomy = {name for name, one in desk.members.items() if one.accepts(smallest, 1.0)}
    assert set(listed._room) == roomy
    policy = Weigh(random.Random(0))
    for name in roomy:
        state, usual = desk.members[name].state, listed._usual
        assert listed._room.cost(name) == policy.usual_cost(state, usual, usual.prompt_tokens, 1.0)
        assert listed._long.cost(name) == policy.usual_cost(state, usual, LONG * usual.prompt_tokens, 1.0)
    speeds = all(one.state.speed_known for one in desk.members.values())
    assert listed.usual(1.0).speeds_known is speeds
    assert listed._usual.speeds_known is speeds


def test_what_is_usual_changes_without_holding_up_a_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """All costs are computed anew, but not all of them with one request: of 500 replicas that takes milliseconds."""
    desk = desk_of([seat(number) for number in range(500)])
    listed = desk._shortlist
    assert listed is not None
    touched: list[str] = []
    touch = Shortlist.touch

    def counted(self: Shortlist[Seat], name: str, now: float) -> None:
        touched.append(name)
        touch(self, name, now)

    monkeypatch.setattr(Shortlist, "touch", counted)
    most, changes, before = 0, 0, listed._usual
    for number in range(2500):
        touched.clear()
        assert desk.place(arrival(f"q{number}", 500), 1.0) is not None
        most = max(most, len(touched))
        changes += listed._usual is not before
        before = listed._usual
    assert changes >= 2
    assert most <= RENEWED + 2 * CHEAPEST
    for _ in range(40):
        listed.usual(1.0)
    check_against_scratch(desk)


# -- what it must not change -------------------------------------------------------------------------------


class LooksAtAll:
    """`weigh` that is not told of large fleets."""

    name = "weigh"

    def __init__(self) -> None:
        self.choose = Weigh(random.Random(0)).choose


@pytest.mark.parametrize("size", [1, 8, LARGE_FLEET])
def test_up_to_64_replicas_every_decision_is_as_if_all_were_looked_at(size: int) -> None:
    taken = []
    for policy in (Weigh(random.Random(0)), LooksAtAll()):
        index, rng, leases = PrefixIndex(), random.Random(1), []
        desk = desk_of([seat(number, index) for number in range(size)], policy)
        for number in range(400):
            now = 0.01 * number
            request = arrival(f"q{number}", rng.randrange(100, 3000), chain=chain("s", f"{rng.randrange(9)}"))
            lease = desk.place(request, now)
            taken.append(lease and replace(lease.choice, why=lease.choice.reason))
            leases += [] if lease is None else [lease]
            if rng.random() < 0.5 and leases:
                one = leases.pop(rng.randrange(len(leases)))
                one.first_byte(now)
                one.release(now)
    assert taken[:400] == taken[400:]


# -- room is found -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["offer"] * 6 + ["release"] * 3 + ["down", "up", "hold", "drain"]),
            st.integers(0, 9),
            st.integers(1, 3900),
        ),
        max_size=60,
    )
)
def test_nobody_waits_while_a_replica_has_room(steps: list[tuple[str, int, int]]) -> None:
    """What happens to replicas without the desk's knowledge it notices within `ASK_AGAIN`; the rest at once."""
    desk = desk_of([seat(number, max_sequences=2, kv_tokens=6000) for number in range(5)], large=2)
    leases: list[Lease[Seat]] = []
    now = 0.0
    for count, (kind, number, size) in enumerate(steps):
        one = desk.members[f"r{number % 5}"]
        now += 0.001
        if kind == "release" and leases:
            leases.pop(number % len(leases)).release(now)
        elif kind in ("down", "up"):
            one.up = kind == "up"
        elif kind == "hold":
            one.held_until = now + 0.01
        elif kind == "drain":
            one.state.draining ^= True
        if kind in ("down", "up", "hold", "drain"):
            now += 2 * ASK_AGAIN
            continue
        if kind != "offer":
            continue
        avoid = {f"r{number % 5}"} if number > 7 else set[str]()
        request = arrival(f"q{count}", size, max_tokens=10)
        room = {n for n, m in desk.members.items() if n not in avoid and m.accepts(request, now)}
        lease = desk.place(request, now, avoid)
        assert (lease is not None) == bool(room)
        if lease is not None:
            assert lease.member.state.name in room
            leases.append(lease)
        desk.check_integrity()


def test_whoever_holds_the_prompt_is_looked_at_however_busy() -> None:
    index = PrefixIndex()
    desk = desk_of([seat(number, index, step_cost=COST) for number in range(200)])
    prompt = chain(*[f"{number}" for number in range(190)])
    index.enter("r123", prompt)
    for number in range(3):
        desk.members["r123"].state.credit(arrival(f"other {number}", 50), 0, 0.0)
    desk.touch("r123", 0.0)
    lease = held(desk.place(arrival("q", 190 * 16 + 5, chain=prompt), 0.0))
    assert lease.member.state.name == "r123"
    assert lease.choice.cached_tokens == 190 * 16


def test_the_cheapest_is_found_and_the_ticket_says_of_how_many() -> None:
    seats = [seat(number, step_cost=COST.scaled(2.0)) for number in range(200)]
    seats[77] = seat(77, step_cost=COST)
    choice = held(desk_of(seats).place(arrival("q", 500), 0.0)).choice
    assert choice.replica == "r77"
    assert f"{len(choice.scores)} looked at of 200" in choice.reason
    assert len(choice.scores) <= FEW


def test_while_a_speed_is_unknown_requests_are_compared() -> None:
    desk = desk_of([seat(number, step_cost=None if number == 5 else COST) for number in range(100)])
    names = [held(desk.place(arrival(f"q{number}"), 0.0)).member.state.name for number in range(100)]
    assert sorted(names) == sorted(desk.members)  # one for each, whatever its speed


def test_equally_idle_replicas_take_turns() -> None:
    desk = desk_of([seat(number, step_cost=COST) for number in range(100)])
    used = set()
    for number in range(400):
        lease = held(desk.place(arrival(f"q{number}"), 0.01 * number))
        used.add(lease.member.state.name)
        lease.release(0.01 * number + 0.005)
    assert len(used) > 90


# -- what it costs -----------------------------------------------------------------------------------------


def asked(desk: Desk[Seat]) -> int:
    return sum(one.asked for one in desk.members.values())


def test_a_decision_asks_a_few_of_a_thousand() -> None:
    desk = desk_of([seat(number) for number in range(1000)])
    before = asked(desk)
    leases = [held(desk.place(arrival(f"q{number}", 700), 0.001 * number)) for number in range(500)]
    for lease in leases:
        lease.first_byte(1.0)
        lease.release(1.0)
    assert (asked(desk) - before) / 500 < 2 * FEW
    assert max(len(lease.choice.scores) for lease in leases) <= FEW


def test_an_end_in_a_full_fleet_asks_a_few_of_a_thousand() -> None:
    desk = desk_of([seat(number, max_sequences=1) for number in range(1000)])
    leases = [held(desk.offer(arrival(f"q{number}"), 0.0)) for number in range(1000)]
    for number in range(200):
        assert desk.offer(arrival(f"w{number}"), 0.0) is None
    before = asked(desk)
    for number in range(200):
        now = 0.0001 * number
        leases[number].release(now)
        placed = list(desk.pump(now))
        assert [lease.member.state.name for lease in placed] == [leases[number].member.state.name]
    assert (asked(desk) - before) / 200 < 2 * FEW


# -- refusals ----------------------------------------------------------------------------------------------


def test_a_refusal_names_five() -> None:
    desk = desk_of([seat(number) for number in range(1000)])
    for one in desk.members.values():
        one.up = False
    assert desk.offer(arrival("a"), 1.0) is None
    with pytest.raises(NoReplica) as refused:
        desk.offer(arrival("b"), 100.0)
    assert str(refused.value).count("it rests") == 5
    assert "and 995 more" in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_pause_of_all_names_five_too() -> None:
    desk = desk_of([seat(number) for number in range(100)])
    for one in desk.members.values():
        one.held_until, one.standing = 60.0, lambda now: Standing.HELD  # type: ignore[method-assign]
    with pytest.raises(QueueFull) as refused:
        desk.offer(arrival("b"), 1.0)
    assert str(refused.value).count("it rests") == 5
    assert refused.value.retry_after == 59.0


def test_where_all_is_others_each_gateway_looks_somewhere_else() -> None:
    """All hear from the same reports who is cheapest; what each sends there until the next, nobody else knows."""
    fleet = 4 * LARGE_FLEET

    def one(turns: int, there: int) -> list[str]:
        """The candidates of a gateway that has decided so often before, all replicas but r5 having so many requests of
        others'."""
        seats = [seat(3 * number) for number in range(fleet)]
        for number, other in enumerate(seats):
            running = 0 if number == 5 else there
            other.state.report(Report(at=0.0, running_requests=running, running_tokens=100 * running))
        desk = desk_of(seats)
        shortlist = desk._shortlist
        assert shortlist is not None
        for _ in range(turns):
            shortlist._next(TURN)
        return [found.state.name for found in shortlist.candidates(arrival("x"), frozenset(), 0.0)]

    alone = [one(turns, 0) for turns in (20, 60)]
    assert [len(names) for names in alone] == [TURN + CHEAPEST] * 2
    shared = [one(turns, 20) for turns in (20, 60)]
    assert [len(names) for names in shared] == [SPREAD] * 2
    assert not set(shared[0]) & set(shared[1])


def test_where_none_of_those_whose_turn_it_is_has_room_the_cheapest_are_looked_at() -> None:
    seats = [seat(3 * number, max_sequences=4) for number in range(2 * LARGE_FLEET)]
    for other in seats[:LARGE_FLEET]:
        other.state.report(Report(at=0.0, running_requests=4, running_tokens=400))
    for other in seats[LARGE_FLEET:]:
        other.state.report(Report(at=0.0, running_requests=3, running_tokens=300))
    desk = desk_of(seats)
    shortlist = desk._shortlist
    assert shortlist is not None
    found = shortlist.candidates(arrival("x"), frozenset(), 0.0)
    assert len(found) == CHEAPEST
    assert {one.state.others.queued_requests for one in found} == {3}
