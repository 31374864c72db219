"""Arrivals and replicas for tests of the fleet's core."""

from __future__ import annotations

from weighbridge.cost.step import StepCost
from weighbridge.cost.weight import OutputEstimate, Weight
from weighbridge.fleet.abilities.ability import NOTHING, Needs
from weighbridge.fleet.api import Arrival, Capacity
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.state import ReplicaState

COST = StepCost(overhead=0.004, memory=0.008, per_token=5e-5, per_context_token=3e-8, per_sequence=1e-4)


def arrival(
    name: str,
    prompt: int = 100,
    output: float = 50.0,
    *,
    tenant: str = "t",
    priority: int = 0,
    deadline: float | None = None,
    chain: tuple[bytes, ...] = (),
    choices: int = 1,
    max_tokens: int = 1000,
    needs: Needs = NOTHING,
) -> Arrival:
    estimate = OutputEstimate(output, round(output), round(2 * output))
    weight = Weight(prompt, max_tokens, estimate, choices)
    return Arrival(
        name, "m", weight, 0.0, tenant, priority=priority, deadline=deadline, chain=chain, needs=needs
    )


def replica(
    name: str = "r", *, slower: float = 1.0, kv_tokens: int | None = 100_000, index: PrefixIndex | None = None
) -> ReplicaState:
    return ReplicaState(name, Capacity(COST.scaled(slower), kv_tokens=kv_tokens), index)
