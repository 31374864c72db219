"""What several policies ask of the replicas they choose from."""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.fleet.api import Arrival, Randomness
from weighbridge.fleet.load.state import ReplicaState


def matched_tokens(arrival: Arrival, replicas: Sequence[ReplicaState], *, few: bool = False) -> list[int]:
    """Prompt tokens that each of `replicas` is believed to hold, in their order. `few`: of a large fleet, so that
    nobody else is looked up."""
    index = replicas[0].index  # one for the whole fleet
    if index is None or not arrival.chain:
        return [0] * len(replicas)
    held = index.matched(arrival.chain, [replica.name for replica in replicas] if few else None)
    tellers = any(replica.kv is not None for replica in replicas)
    if not held and not tellers:
        return [0] * len(replicas)
    most = arrival.weight.prompt_tokens - 1  # at least one token is left to compute
    guessed = [
        min(held[replica.name] * replica.capacity.block_size, most) if replica.name in held else 0
        for replica in replicas
    ]
    if not tellers:
        return guessed
    known = [replica.known_tokens(arrival) for replica in replicas]
    return [guess if tokens is None else tokens for tokens, guess in zip(known, guessed, strict=True)]


def lowest(replicas: Sequence[ReplicaState], scores: dict[str, float], rng: Randomness) -> ReplicaState:
    """The replica with the lowest score, of equals one at random."""
    least = min(scores.values())
    best = [replica for replica in replicas if scores[replica.name] == least]
    return best[0] if len(best) == 1 else best[int(rng.random() * len(best))]
