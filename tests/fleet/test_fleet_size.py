"""What a large fleet costs between requests: probes, sums over its members, messages."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.arrivals import arrival
from weighbridge.errors import some_of
from weighbridge.fleet.api import Answer, Call, Capacity, Report
from weighbridge.fleet.config.spec import HealthSpec, ReplicaSpec
from weighbridge.fleet.health import QUIET_RATE, QUIETEST, Watch
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.load.varieties import Varieties
from weighbridge.fleet.member import Member
from weighbridge.fleet.reliability.breaker import BreakerSettings, CircuitBreaker
from weighbridge.fleet.replica import Failure, ReplicaError


class Probed:
    """A replica that counts its probes, and answers them while it is well."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.probes = 0
        self.well = True
        self.report = Report(0.0)

    async def probe(self) -> Report:
        self.probes += 1
        if not self.well:
            raise ReplicaError(self.name, Failure.PROBE, "it does not answer")
        return self.report

    async def open(self, call: Call) -> Answer:
        raise NotImplementedError

    async def close(self) -> None: ...


def member_of(name: str) -> Member:
    replica, state = Probed(name), ReplicaState(name, Capacity())
    spec = ReplicaSpec(name, "url", "http://nowhere")
    return Member(spec, replica, state, CircuitBreaker(BreakerSettings()))


def probes(member: Member) -> int:
    assert isinstance(member.replica, Probed)
    return member.replica.probes


async def test_replicas_where_nothing_happens_share_a_rate_of_probes_and_others_are_asked_as_ever() -> None:
    heard: list[Member] = []
    watch = Watch(HealthSpec(interval=0.05), time.monotonic, heard.append, lambda member: None)
    members = [member_of(f"r{number}") for number in range(400)]
    busy, others = members[:2]
    busy.state.credit(arrival("a"), 0, 0.0)
    assert isinstance(others.replica, Probed)
    others.replica.report = Report(0.0, running_requests=2)
    for member in members:
        watch.start(member)
    await asyncio.sleep(0.3)
    before = [probes(member) for member in members]
    await asyncio.sleep(1.0)
    asked = [probes(member) - count for member, count in zip(members, before, strict=True)]
    await watch.stop_all()
    assert 400 / QUIET_RATE < QUIETEST
    assert sum(asked[2:]) < 0.2 * 400  # every 4 s each; every 0.05 s it would be 8,000
    assert min(asked[:2]) >= 5
    assert len(heard) == sum(probes(member) for member in members)


async def test_one_whose_probe_failed_is_quiet_no_more() -> None:
    watch = Watch(HealthSpec(failures=2), time.monotonic, lambda member: None, lambda member: None)
    member = member_of("a")
    assert isinstance(member.replica, Probed)
    await watch.probe(member)
    assert member.is_quiet
    member.replica.well = False
    member.alive_at = float("-inf")
    await watch.probe(member)
    assert not member.is_quiet
    assert member.state.healthy
    await watch.probe(member)
    assert not member.state.healthy


async def test_a_small_fleet_is_asked_at_the_interval() -> None:
    watch = Watch(HealthSpec(interval=0.05), time.monotonic, lambda member: None, lambda member: None)
    members = [member_of(f"r{number}") for number in range(4)]
    for member in members:
        watch.start(member)
    await asyncio.sleep(1.0)
    await watch.stop_all()
    assert min(probes(member) for member in members) >= 5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 2)), st.booleans())))
def test_varieties_are_each_value_that_somebody_has(steps: list[tuple[str, int | None, bool]]) -> None:
    varieties: Varieties[int | None] = Varieties()
    model: dict[str, int | None] = {}
    for name, value, leaves in steps:
        if leaves:
            varieties.discard(name)
            model.pop(name, None)
        else:
            varieties.set(name, value)
            model[name] = value
        assert sorted(varieties, key=str) == sorted(set(model.values()), key=str)


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (1, "r0"), (5, "r0, r1, r2, r3, r4"), (7, "r0, r1, r2, r3, r4, and 2 more")]
)
def test_messages_name_five(count: int, text: str) -> None:
    assert some_of([f"r{number}" for number in range(count)]) == text
