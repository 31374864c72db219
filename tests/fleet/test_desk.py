"""The desk: who goes where and who waits, as a pure machine under any history."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.arrivals import COST, arrival
from weighbridge.errors import BadInput, NeverFits, QueueFull
from weighbridge.fleet.abilities.ability import Ability
from weighbridge.fleet.api import Arrival, Capacity
from weighbridge.fleet.desk import Desk, Lease, NoReplica, Patience, Standing
from weighbridge.fleet.load.queue import GatewayQueue, QueueSettings
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies import make_policy


@dataclass(eq=False)
class Seat:
    """A replica with so many seats, which a test can turn off, hold or limit."""

    state: ReplicaState
    up: bool = True
    held_until: float = 0.0
    shares: bool = True  # its seats among tenants
    can: frozenset[Ability] = frozenset(Ability)
    refuses: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def accepts(self, arrival: Arrival, now: float) -> bool:
        return self.usable(now) and arrival.needs <= self.can and self.state.accepts(arrival, now)

    def can_ever(self, arrival: Arrival, now: float) -> bool:
        return self.state.fits(arrival) and arrival.needs <= self.can

    def usable(self, now: float) -> bool:
        return self.up and now >= self.held_until

    def takes_turns(self, arrival: Arrival, now: float) -> bool:
        return self.shares and self.usable(now) and self.state.open_to(arrival)

    def standing(self, now: float) -> Standing:
        return Standing.DOWN if not self.up else Standing.HELD if now < self.held_until else Standing.UP

    def why(self, now: float) -> str:
        return "" if self.usable(now) else "it rests"

    def reserve(self, arrival: Arrival, now: float) -> bool:
        return arrival.id not in self.refuses

    def sent(self, now: float) -> None:
        self.log.append("sent")

    def settle(self, arrival: Arrival, produced: int, now: float) -> None:
        self.log.append(f"{arrival.id} {produced}")


def desk_of(
    *seats: int, policy: str = "least_requests", draw: Sequence[str] | None = None, **queue: int
) -> Desk[Seat]:
    made: Desk[Seat] = Desk(
        "m",
        make_policy(policy, random.Random(0)),
        GatewayQueue(QueueSettings(**queue)),
        Patience(),
        draw=None if draw is None else lambda: draw,
    )
    for number, count in enumerate(seats):
        state = ReplicaState(f"r{number}", Capacity(COST, max_sequences=count, max_model_len=4096))
        made.join(Seat(state), 0.0)
    return made


def held(lease: Lease[Seat] | None) -> Lease[Seat]:
    assert lease is not None
    return lease


def test_who_finds_no_room_waits_and_has_the_next_place() -> None:
    desk = desk_of(1)
    first = held(desk.offer(arrival("a"), 0.0))
    assert desk.offer(arrival("b"), 0.0) is None
    assert desk.offer(arrival("c"), 0.0) is None
    assert list(desk.pump(1.0)) == []
    first.tokens(3, 1.0)
    first.release(2.0)
    assert first.member.log == ["sent", "a 3"]
    assert [lease.arrival.id for lease in desk.pump(2.0)] == ["b"]
    assert desk.waiting == ["c"]
    desk.check_integrity()


def test_nobody_overtakes_those_who_wait() -> None:
    desk = desk_of(1)
    lease = held(desk.offer(arrival("a"), 0.0))
    assert desk.offer(arrival("b"), 0.0) is None
    lease.release(1.0)
    assert desk.offer(arrival("c"), 1.0) is None
    assert [lease.arrival.id for lease in desk.pump(1.0)] == ["b"]


def test_who_is_more_urgent_is_sent_at_once_where_somebody_gives_way() -> None:
    """A replica that shares out its seats makes room by class: no patience is needed for that."""
    desk = desk_of(2, 2)
    usual = [held(desk.offer(arrival(f"usual{i}"), 0.0)) for i in range(4)]
    for number in range(4):
        assert desk.offer(arrival(f"waits{number}", tenant="other"), 0.0) is None
    assert list(desk.pump(0.0)) == []
    desk.members["r0"].shares = False
    urgent = []
    for number in range(3):
        assert desk.offer(arrival(f"urgent{number}", priority=-1), 0.0) is None
        urgent += list(desk.pump(0.0))
    assert [(one.arrival.id, one.member.state.name) for one in urgent] == [
        ("urgent0", "r1"),
        ("urgent1", "r1"),
    ]
    desk.check_integrity()
    next(one for one in usual if one.member.state.name == "r1").release(0.1)
    assert list(desk.pump(0.1)) == []  # both of its seats have something urgent
    urgent[0].release(0.1)
    assert [one.arrival.id for one in desk.pump(0.1)] == ["urgent2"]
    desk.check_integrity()


def test_one_whose_replica_failed_goes_first_and_elsewhere() -> None:
    desk = desk_of(1, 1)
    leases = [held(desk.offer(arrival(name), 0.0)) for name in "ab"]
    assert desk.offer(arrival("waits"), 0.0) is None
    failed = leases[0]
    assert desk.offer(arrival("again"), 1.0, {failed.member.state.name}, again=True) is None
    failed.release(1.0)  # its own place is free, but it is to be avoided
    assert list(desk.pump(1.0)) == []
    leases[1].release(2.0)
    placed = [(lease.arrival.id, lease.member) for lease in desk.pump(2.0)]
    assert placed[0] == ("again", leases[1].member)


def test_what_is_avoided_is_used_when_nobody_else_is_there() -> None:
    desk = desk_of(1, 1)
    lease = held(desk.offer(arrival("a"), 0.0, {"r1"}))
    assert desk.offer(arrival("b"), 0.0, {"r1"}) is None
    desk.members["r0"].up = False
    assert [one.member.state.name for one in desk.pump(0.5)] == ["r1"]
    lease.release(1.0)


def test_a_member_without_room_in_its_own_limits_is_passed_over() -> None:
    desk = desk_of(4, 4, policy="round_robin")
    for member in desk.members.values():
        member.refuses = {"a"}
    assert desk.place(arrival("a"), 0.0) is None
    desk.members["r1"].refuses.clear()
    assert held(desk.place(arrival("a"), 0.0)).member.state.name == "r1"


def test_what_can_never_fit_or_come_is_said_at_once() -> None:
    desk = desk_of(1)
    with pytest.raises(NeverFits, match="4096"):
        desk.offer(arrival("a", 4000), 0.0)
    desk.members["r0"].up = False
    assert desk.offer(arrival("b"), 5.0) is None  # it may come back
    assert desk.doubt(5.1) is None
    assert isinstance(desk.doubt(20.0), NoReplica)
    with pytest.raises(NoReplica, match="it rests"):
        desk.offer(arrival("c"), 20.0)
    desk.members["r0"].up, desk.members["r0"].held_until = True, 60.0
    assert isinstance(desk.doubt(20.0), QueueFull)
    desk.withdraw("b")
    assert desk.doubt(20.0) is None
    desk.check_integrity()


def test_a_full_queue_keeps_nothing() -> None:
    desk = desk_of(1, max_requests=1)
    held(desk.offer(arrival("a"), 0.0))
    assert desk.offer(arrival("b"), 0.0) is None
    with pytest.raises(QueueFull) as refused:
        desk.offer(arrival("c"), 0.0)
    assert refused.value.retry_after == desk.drain_seconds(0.0, arrival("c").weight.expected_tokens)
    with pytest.raises(BadInput, match="differ"):
        desk.wait(arrival("b"), 0.0, front=True)
    assert desk.waiting == ["b"]
    desk.check_integrity()


def test_a_deadline_that_cannot_be_met_is_given_up() -> None:
    desk = desk_of(1)
    held(desk.offer(arrival("a"), 0.0))
    assert desk.offer(arrival("b", deadline=5.0), 0.0) is None
    assert desk.expire(4.0) == []
    [(gone, error)] = desk.expire(5.0)
    assert (gone.id, error.code) == ("b", "deadline_missed")
    assert desk.waiting == []
    desk.check_integrity()


def test_a_tenant_behind_full_seats_crowds_in_where_they_are_shared() -> None:
    desk = desk_of(4)
    for number in range(40):
        desk.offer(arrival(f"a{number}", tenant="a"), 0.0)
    for number in range(9):
        assert desk.offer(arrival(f"b{number}", tenant="b"), 1.0) is None
    assert list(desk.pump(1.4)) == []
    desk.members["r0"].shares = False
    assert list(desk.pump(1.6)) == []  # where they are not, waiting here is as good as waiting there
    desk.members["r0"].shares = True
    assert [lease.arrival.id for lease in desk.pump(1.6)] == ["b0"]
    assert list(desk.pump(1.7)) == []
    assert [lease.arrival.id for lease in desk.pump(2.2)] == ["b1"]
    assert [lease.arrival.id for lease in desk.pump(2.8)] == ["b2"]
    assert list(desk.pump(9.0)) == []  # the replica evens four and three out
    desk.check_integrity()


def test_a_tenant_alone_crowds_nowhere() -> None:
    desk = desk_of(2, 2)
    leases = [desk.offer(arrival(f"a{number}", tenant="a"), 0.0) for number in range(40)]
    assert sum(lease is not None for lease in leases) == 4
    assert list(desk.pump(100.0)) == []


def test_outputs_count_as_they_come() -> None:
    desk = desk_of(2)
    first = [held(desk.offer(arrival(f"a{number}", tenant="a"), 0.0)) for number in range(2)]
    for tenant in "ab":
        for number in range(2, 6):
            desk.offer(arrival(f"{tenant}{number}", tenant=tenant), 0.0)
    first[0].tokens(70, 0.1)
    first[1].tokens(70, 0.1)
    first[0].produced = 60  # as its usage says in the end
    for lease in first:
        lease.release(0.2)
    assert [lease.arrival.tenant for lease in desk.pump(0.2)] == ["b", "b"]
    counters = desk.queue._fair._classes[0].counters
    assert counters.counter("a") == 2 * 100 + 2 * (60 + 70)


def test_requests_that_compute_nothing_new_have_their_price_too() -> None:
    desk = desk_of(1)
    desk.queue.charge_prompt(arrival("a", 10, 0, tenant="a"), cached_tokens=10)
    assert desk.queue._fair._classes[0].counters.counter("a") >= 1.0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=120),
    st.integers(1, 6),
    st.booleans(),
)
def test_no_tenant_waits_long_for_a_first_place(
    steps: list[tuple[str, bool]], seats: int, shares: bool
) -> None:
    """As long as seats are shared there, and another has two; places in flight are counted to the last."""
    desk = desk_of(seats, max_requests=1000)
    desk.members["r0"].shares = shares
    leases: list[Lease[Seat]] = []
    waits_since: dict[str, float] = {}
    now = 0.0
    for number, (tenant, ends) in enumerate(steps):
        now += 0.2
        if ends and leases:
            leases.pop(number % len(leases)).release(now)
        lease = desk.offer(arrival(f"{tenant}{number}", tenant=tenant), now)
        leases += [] if lease is None else [lease]
        leases += desk.pump(now)
        desk.check_integrity()
        having = [lease.arrival.tenant for lease in leases]
        for name in "abc":
            waits = any(one.startswith(name) for one in desk.waiting)
            others = max((having.count(other) for other in "abc" if other != name), default=0)
            if name in having or not waits or others < 2:
                waits_since[name] = now
            if shares:
                assert now - waits_since[name] <= desk.queue.settings.tenant_patience + 0.2 + 1e-9
        if not shares:
            assert len(leases) <= seats
    for lease in leases:
        lease.release(now)
    assert desk._places.most == 0 or desk.waiting


def test_those_drawn_are_asked_first_and_all_when_they_have_no_room() -> None:
    desk = desk_of(1, 1, 1, draw=["r2"])
    names = [held(desk.offer(arrival(name), 0.0)).member.state.name for name in "abc"]
    assert names[0] == "r2"
    assert sorted(names) == ["r0", "r1", "r2"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["offer", "release", "withdraw", "turn", "expire"]), st.integers(0, 7))
    ),
    st.sampled_from(["weigh", "round_robin", "least_tokens"]),
)
def test_nobody_is_lost_or_placed_twice(steps: list[tuple[str, int]], policy: str) -> None:
    desk = desk_of(1, 2, policy=policy, max_requests=4)
    leases: dict[str, Lease[Seat]] = {}
    there: set[str] = set()
    now = 0.0
    for kind, number in steps:
        now += 0.5
        name = f"q{number}"
        if kind == "offer" and name not in there:
            deadline = now + 2.0 if number % 2 else None
            try:
                lease = desk.offer(arrival(name, deadline=deadline), now)
            except QueueFull:
                continue
            there.add(name)
            if lease is not None:
                leases[name] = lease
        elif kind == "release" and name in leases:
            leases.pop(name).release(now)
            there.discard(name)
        elif kind == "withdraw" and name not in leases:
            desk.withdraw(name)
            there.discard(name)
        elif kind == "turn":
            desk.members[f"r{number % 2}"].up ^= True
        elif kind == "expire":
            there -= {gone.id for gone, _ in desk.expire(now)}
        for lease in desk.pump(now):
            assert lease.arrival.id not in leases
            leases[lease.arrival.id] = lease
        desk.check_integrity()
        assert there == leases.keys() | set(desk.waiting)
        assert sum(member.state.requests for member in desk.members.values()) == len(leases)


SEES = frozenset({Ability.VISION})


def blind_and_seeing(*seats: int) -> Desk[Seat]:
    """Replicas of which the first alone can see."""
    desk = desk_of(*seats)
    for name, seat in desk.members.items():
        seat.shares = False
        if name != "r0":
            seat.can = frozenset()
    return desk


def test_nobody_waits_for_a_free_replica_behind_those_who_need_another() -> None:
    desk = blind_and_seeing(1, 1)
    seeing = held(desk.offer(arrival("sees0", needs=SEES), 0.0))
    for number in range(1, 4):
        assert desk.offer(arrival(f"sees{number}", needs=SEES), 0.0) is None
    assert desk.offer(arrival("blind"), 0.0) is None
    assert [one.arrival.id for one in desk.pump(0.0)] == ["blind"]
    desk.check_integrity()
    seeing.release(1.0)
    assert [one.arrival.id for one in desk.pump(1.0)] == ["sees1"]
    assert set(desk.waiting) == {"sees2", "sees3"}
    desk.withdraw("sees2")
    desk.check_integrity()


def test_those_aside_and_the_others_take_turns_at_a_replica_that_both_want() -> None:
    desk = blind_and_seeing(1, 1)
    busy = [held(desk.offer(arrival("first", needs=SEES), 0.0)), held(desk.offer(arrival("second"), 0.0))]
    for number in range(6):
        for needs in (SEES, frozenset[Ability]()):
            assert desk.offer(arrival(f"{len(needs)}{number}", needs=needs), 0.0) is None
    list(desk.pump(0.0))
    lease, order = busy[0], []
    for step in range(1, 7):
        lease.release(float(step))
        (lease,) = desk.pump(float(step))
        order.append(lease.arrival.id[0])
    assert sorted(order) == ["0"] * 3 + ["1"] * 3
    desk.check_integrity()


def test_patience_begins_anew_with_a_replica_that_comes_however_long_there_was_none() -> None:
    desk = desk_of(1)
    came = desk.leave("r0")
    assert came is not None
    assert desk.doubt(1.0) is None
    desk.join(came, 1000.0)
    came.up = False
    assert desk.offer(arrival("a"), 1000.0) is None, "it waits"
    assert isinstance(desk.doubt(1020.0), NoReplica)


def test_who_needs_a_replica_that_is_down_is_told_in_time() -> None:
    desk = blind_and_seeing(1, 1)
    desk.members["r0"].up = False
    assert desk.offer(arrival("sees", needs=SEES), 0.0) is None
    list(desk.pump(0.0))
    assert desk.stranded(0.1) == []
    assert desk.doubt(60.0) is None, "others may be served"
    ((gone, error),) = desk.stranded(20.0)
    assert (gone.id, type(error)) == ("sees", NoReplica)
    desk.members["r0"].up = True
    assert desk.stranded(21.0) == []


def test_what_is_too_long_for_those_who_could_is_refused_at_once() -> None:
    desk = blind_and_seeing(1, 1)
    seeing = desk.members["r0"].state
    seeing.update_capacity(replace(seeing.capacity, max_model_len=512))
    with pytest.raises(NeverFits, match="what else this request needs"):
        desk.offer(arrival("long", 1000, needs=SEES), 0.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sees", "blind", "end", "gone", "down", "up", "tick"]),
            st.integers(0, 7),
            st.integers(-1, 1),
        ),
        max_size=60,
    )
)
def test_whatever_happens_nobody_is_lost_and_nobody_who_could_go_is_left(
    events: list[tuple[str, int, int]],
) -> None:
    desk, now = blind_and_seeing(1, 2, 1), 0.0
    leases: list[Lease[Seat]] = []
    offered: dict[str, Arrival] = {}
    over: set[str] = set()
    for kind, number, priority in events:
        now += 0.3  # beyond what is remembered of kinds
        if kind in ("sees", "blind"):
            needs = SEES if kind == "sees" else frozenset[Ability]()
            one = arrival(f"{len(offered)}", priority=priority, needs=needs, tenant=f"t{number % 3}")
            offered[one.id] = one
            try:
                lease = desk.offer(one, now)
            except NoReplica:
                over.add(one.id)
                continue
            leases += [lease] if lease is not None else []
        elif kind == "end" and leases:
            ended = leases.pop(number % len(leases))
            ended.release(now)
            over.add(ended.arrival.id)
        elif kind == "gone" and desk.waiting:
            over.add(gone := desk.waiting[number % len(desk.waiting)])
            desk.withdraw(gone)
        elif kind in ("down", "up"):
            desk.members[f"r{number % 3}"].up = kind == "up"
        leases += list(desk.pump(now))
        desk.check_integrity()
        assert offered.keys() == over | set(desk.waiting) | {one.arrival.id for one in leases}
        for seat in desk.members.values():
            assert not any(seat.accepts(offered[name], now) for name in desk.waiting), "it could go there"
