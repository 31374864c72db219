"""The seams of a balancing policy: it chooses among replicas; one that compares costs can serve large fleets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from weighbridge.fleet.api import Arrival, Choice
from weighbridge.fleet.load.state import ReplicaState


class Policy(Protocol):
    """One way to choose. Pure: the time is passed in, randomness comes from a generator given at construction."""

    name: str

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        """One of `replicas` (never empty; all of them may take the request now)."""
        ...


@dataclass(frozen=True, slots=True)
class Usual:
    """What a large fleet is like: its replicas, sequences on each of them and prompt tokens of a request that its
    caches do not hold, on average, and whether the speed of every one is known."""

    replicas: int
    streams: float
    prompt_tokens: int
    speeds_known: bool


@runtime_checkable
class ComparesCosts(Policy, Protocol):
    """A policy that need not see all replicas of a large fleet (see `shortlist`)."""

    def usual_cost(self, replica: ReplicaState, usual: Usual, prompt_tokens: int, now: float) -> float:
        """What a request with so long a prompt, none of it cached, would cost there: who costs least is looked at
        first."""
        ...

    def choose_of(
        self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float, usual: Usual
    ) -> Choice:
        """One of `replicas`, which are a few of a fleet that is as `usual` says."""
        ...
