"""Policies that count requests, or nothing at all: what load balancers do today."""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.fleet.api import Arrival, Choice, Randomness
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.candidates import lowest


class RoundRobin:
    """One after the other, whatever they hold."""

    name = "round_robin"

    def __init__(self, rng: Randomness) -> None:
        self._turn = 0

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        chosen = replicas[self._turn % len(replicas)]
        self._turn += 1
        reason = f"its turn, {self._turn - 1} went before"
        return Choice(chosen.name, reason, cached_tokens=chosen.cached_tokens(arrival))


class Random:
    """Any of them, with the same chance."""

    name = "random"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        chosen = replicas[int(self._rng.random() * len(replicas))]
        reason = f"drawn from {len(replicas)}"
        return Choice(chosen.name, reason, cached_tokens=chosen.cached_tokens(arrival))


class LeastRequests:
    """The one with the fewest requests, of equals any."""

    name = "least_requests"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        scores = {replica.name: float(replica.total_requests(now)) for replica in replicas}
        chosen = lowest(replicas, scores, self._rng)
        reason = f"{scores[chosen.name]:.0f} requests in flight, the fewest of {len(replicas)}"
        return Choice(chosen.name, reason, scores, "requests", chosen.cached_tokens(arrival))


class PowerOfTwo:
    """Of two drawn at random, the one with fewer requests (Mitzenmacher 2001)."""

    name = "power_of_two"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        first = int(self._rng.random() * len(replicas))
        second = first
        if len(replicas) > 1:
            second = (first + 1 + int(self._rng.random() * (len(replicas) - 1))) % len(replicas)
        pair = (replicas[first], replicas[second])
        scores = {replica.name: float(replica.total_requests(now)) for replica in pair}
        chosen = min(pair, key=lambda replica: scores[replica.name])
        reason = f"{scores[chosen.name]:.0f} requests in flight, the fewer of two drawn"
        return Choice(chosen.name, reason, scores, "requests", chosen.cached_tokens(arrival))
