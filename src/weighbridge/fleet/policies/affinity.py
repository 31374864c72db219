"""Requests that share a prefix go to the same replica, unless it has too much already."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from weighbridge.fleet.api import Arrival, Choice, Randomness
from weighbridge.fleet.load.state import ReplicaState

#: How far above the mean a replica's requests may go before its arrivals spill over (Mirrokni et al. 2018).
BALANCE = 1.25
#: Leading blocks that name a prefix.
KEY_BLOCKS = 4


class PrefixAffinity:
    """Bounded-load consistent hashing of the session, or of the first prompt blocks.

    Rendezvous hashing: the replica with the highest hash of (key, replica) is the first choice, then the next,
    so that one replica more or less moves only its own share. One that holds over `BALANCE` times the mean is
    passed over for this request alone; the key returns as soon as there is room.
    """

    name = "prefix_affinity"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        key = self._key(arrival)
        loads = {replica.name: replica.total_requests(now) for replica in replicas}
        bound = BALANCE * (sum(loads.values()) + 1.0) / len(replicas)
        ranked = sorted(replicas, key=lambda replica: _hash(key, replica.name), reverse=True)
        room = (rank for rank, replica in enumerate(ranked) if loads[replica.name] + 1.0 <= max(bound, 1.0))
        rank = next(room, 0)
        replica = ranked[rank]
        passed = f", {rank} before it above {bound:.1f} requests" if rank else ""
        return Choice(
            replica.name,
            f"the hash of its prefix leads there{passed}",
            {name: float(load) for name, load in loads.items()},
            "requests",
            replica.cached_tokens(arrival),
        )

    def _key(self, arrival: Arrival) -> bytes:
        if arrival.session:
            return arrival.session.encode()
        if arrival.chain:
            return arrival.chain[min(KEY_BLOCKS, len(arrival.chain)) - 1]
        return arrival.id.encode()


def _hash(key: bytes, name: str) -> bytes:
    return blake2b(key + b"\0" + name.encode(), digest_size=8).digest()
