"""The seam of a balancing policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from weighbridge.fleet.api import Arrival, Choice
from weighbridge.fleet.load.state import ReplicaState


class Policy(Protocol):
    """One way to choose. Pure: the time is passed in, randomness comes from a generator given at construction."""

    name: str

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        """One of `replicas` (never empty; all of them may take the request now)."""
        ...
