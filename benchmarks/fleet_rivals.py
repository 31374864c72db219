"""Choosing rules of other routers, under the product's policy contract, for `fleet_policies.py`.

vLLM's router offers `round_robin`, `random` and `power_of_two` (requests in flight, the fewer of two drawn): the
product's policies of these names are the same rules. Only its `cache_aware` needs a class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weighbridge.fleet.api import Arrival, Choice, Randomness
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.policy import Policy

#: Defaults of the router's `CacheAwareConfig`; its launchers document up to 64 and 1.5 for the last two.
CACHE_THRESHOLD = 0.5
BALANCE_ABSOLUTE = 32
BALANCE_RELATIVE = 1.1


class CacheAware:
    """vllm-router's `cache_aware` (vllm-project/router, src/policies/cache_aware.rs).

    When requests in flight are out of balance (most - fewest above an absolute, and most above a relative
    threshold): the fewest. Else the worker that had this session before, by its exact name. Else the one whose
    earlier prompts match the longest prefix, if that is more than a share of the prompt; else the fewest
    requests. The router matches characters; blocks of tokens stand for them here. Its eviction is left
    out: the trees here remember all, in its favour.
    """

    name = "cache_aware"

    def __init__(self, rng: Randomness) -> None:
        self._holders: dict[bytes, set[str]] = {}
        self._sessions: dict[str, str] = {}

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        loads = {replica.name: float(replica.total_requests(now)) for replica in replicas}
        most, fewest = max(loads.values()), min(loads.values())
        matched, share = self._match(arrival, loads)
        if most - fewest > BALANCE_ABSOLUTE and most > BALANCE_RELATIVE * fewest:
            name, reason = min(loads, key=lambda one: loads[one]), "out of balance: the fewest requests"
        elif arrival.session and self._sessions.get(arrival.session) in loads:
            name, reason = self._sessions[arrival.session], "it had this session before"
        elif matched and share > CACHE_THRESHOLD:
            name, reason = matched, f"{share:.0%} of the prompt matches its tree"
        else:
            name, reason = min(loads, key=lambda one: loads[one]), "no match: the fewest requests"
        self._insert(arrival, name)
        chosen = next(replica for replica in replicas if replica.name == name)
        return Choice(name, reason, loads, "requests", chosen.cached_tokens(arrival))

    def _match(self, arrival: Arrival, names: dict[str, float]) -> tuple[str, float]:
        """The worker whose tree holds most leading blocks, and their share of the prompt."""
        alive = set(names)
        depth = 0
        for digest in arrival.chain:
            further = alive & self._holders.get(digest, set())
            if not further:
                break
            alive, depth = further, depth + 1
        if not depth:
            return "", 0.0
        return min(alive), depth / len(arrival.chain)

    def _insert(self, arrival: Arrival, name: str) -> None:
        if arrival.session:
            self._sessions[arrival.session] = name
        for digest in arrival.chain:
            self._holders.setdefault(digest, set()).add(name)


RIVALS: dict[str, Callable[[Randomness], Policy]] = {CacheAware.name: CacheAware}
