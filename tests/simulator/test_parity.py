"""One desk, two shells: the events of a simulation through the live dispatcher give the same choices."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from weighbridge.fleet.api import Arrival, Choice
from weighbridge.fleet.config.spec import ReplicaSpec as MemberSpec
from weighbridge.fleet.desk import Patience
from weighbridge.fleet.dispatch import Dispatcher, Lease
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue, QueueSettings
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.member import Member
from weighbridge.fleet.policies import make_policy
from weighbridge.fleet.policies.policy import Policy
from weighbridge.fleet.reliability.breaker import BreakerSettings, CircuitBreaker
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.synthetic import Synthetic, from_rows
from weighbridge.workload.traces import read_rows

Decision = tuple[str, str, tuple[tuple[str, float], ...]]


class Logged:
    """A policy that keeps what it decided."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.name = policy.name
        self.decisions: list[Decision] = []

    def choose(self, arrival: Arrival, replicas: Any, now: float) -> Choice:
        choice = self._policy.choose(arrival, replicas, now)
        self.decisions.append((arrival.id, choice.replica, tuple(sorted(choice.scores.items()))))
        return choice


def policy_of(name: str) -> Logged:
    return Logged(make_policy(name, random.Random(5)))


class Recorder:
    """Listens at the desk of a simulated gateway and keeps what a live one sees: arrivals, chunks, ends."""

    def __init__(self, simulation: Simulation) -> None:
        self.events: list[tuple[float, str, Any, int]] = []
        gateway = simulation.gateway
        desk = gateway.desk
        offer, over, first, tokens = desk.offer, desk.over, gateway.first_token, gateway.tokens

        def recorded_offer(arrival: Arrival, now: float) -> Any:
            for replica in simulation.replicas.values():
                replica.tell(now)  # chunks of this very moment came before it, here and there
            self.events.append((now, "arrive", arrival, 0))
            return offer(arrival, now)

        def recorded_over(lease: Any, now: float) -> None:
            self.events.append((now, "end", lease.arrival.id, 0))
            over(lease, now)

        def recorded_first(request: Any, now: float) -> None:
            self.events.append((now, "first", request.id, 0))
            first(request, now)

        def recorded_tokens(request: Any, count: int, now: float) -> None:
            self.events.append((now, "tokens", request.id, count))
            tokens(request, count, now)

        desk.offer = recorded_offer  # type: ignore[method-assign, assignment]
        desk.over = recorded_over  # type: ignore[method-assign]
        gateway.first_token = recorded_first  # type: ignore[method-assign]
        gateway.tokens = recorded_tokens  # type: ignore[method-assign]


async def replay(events: list[tuple[float, str, Any, int]], spec: SimulatedFleet, policy: Logged) -> None:
    """Drive the live dispatcher through `events` at their times."""
    now = 0.0
    dispatcher = Dispatcher("simulated", policy, GatewayQueue(spec.queue), Patience(), lambda: now)
    # Looks between two events go by the clock of the machine, which is not that of the events.
    dispatcher._look_soon = lambda: None  # type: ignore[method-assign]
    index = PrefixIndex()
    for number, replica in enumerate(spec.replicas):
        name = f"r{number}"
        member = Member(
            MemberSpec(name, "url", "http://127.0.0.1:1", dialect="weighbridge"),
            None,  # type: ignore[arg-type]
            ReplicaState(name, replica.capacity, index),
            CircuitBreaker(BreakerSettings()),
            heard=True,
        )
        dispatcher.desk.join(member, now)
    placing: dict[str, asyncio.Task[Lease]] = {}
    for at, what, subject, count in events:
        now = at
        if what == "arrive":
            placing[subject.id] = asyncio.create_task(dispatcher.place(subject))
            await asyncio.sleep(0)
            continue
        for _ in range(3):  # a place that was given a moment ago
            await asyncio.sleep(0)
        lease = placing[subject].result()
        if what == "first":
            lease.first_byte(now)
        elif what == "tokens":
            lease.tokens(count, now)
        else:
            lease.release(now)
    await asyncio.gather(*placing.values())


@pytest.mark.parametrize(
    "policy", ["weigh", "least_tokens", "power_of_two", "round_robin", "prefix_affinity"]
)
@pytest.mark.parametrize("seats", [4, 256])
async def test_simulated_and_live_gateway_choose_alike(policy: str, seats: int) -> None:
    workload = Synthetic.parse(
        "shared_prefix:rate=12,requests=120,prefixes=6,tenants=3,output=lognormal:60:0.6"
    )
    settings = SimulatedEngine(kv_tokens=40_000 if seats == 4 else 4_000_000, max_sequences=seats).settings()
    replica = SimulatedReplicaSpec(settings=settings)
    queue = QueueSettings(max_requests=1 << 20)
    spec = SimulatedFleet(replicas=(replica, replica, replica.slowed(2.0)), policy=policy, queue=queue)
    simulated, live = policy_of(policy), policy_of(policy)
    simulation = Simulation(spec, workload.generate(2), policy=simulated)
    recorder = Recorder(simulation)
    run = simulation.run()
    assert (run.peak_queue > 0) == (seats == 4)  # the gateway's queue was used, or it was not
    await replay(recorder.events, spec, live)
    assert live.decisions == simulated.decisions
    assert len(live.decisions) == 120


def test_tickets_of_a_live_server_are_a_trace(tmp_path: Path) -> None:
    """Times, lengths, tenants and limits of each ticket; those without an answer are no requests to replay."""
    tickets = [
        {
            "id": "a",
            "prompt_hash": "x",
            "arrived": 100.0,
            "prompt_tokens": 30,
            "output_tokens": 7,
            "max_tokens": 64,
        },
        {
            "id": "b",
            "prompt_hash": "y",
            "arrived": 101.5,
            "prompt_tokens": 40,
            "output_tokens": 0,
            "max_tokens": 64,
        },
        {
            **{"id": "c", "prompt_hash": "z", "arrived": 102.0, "prompt_tokens": 50, "output_tokens": 9},
            **{"max_tokens": 128, "tenant": "acme", "priority": 3},
        },
    ]
    path = tmp_path / "tickets.jsonl"
    path.write_text("".join(json.dumps(ticket) + "\n" for ticket in tickets))
    first, last = from_rows(read_rows(path))
    assert (first.at, first.prompt_tokens, first.output_tokens, first.max_tokens) == (0.0, 30, 7, 64)
    assert (last.at, last.tenant, last.priority, last.max_tokens) == (2.0, "acme", 3, 128)
