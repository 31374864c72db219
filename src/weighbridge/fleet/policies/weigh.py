"""The default: what does it cost, in seconds, to put this request there?"""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.fleet.api import Arrival, Choice, Randomness
from weighbridge.fleet.policies.counting import lowest
from weighbridge.fleet.state import ReplicaState


class Weigh:
    """Least predicted marginal cost: own time to first token and finish, and the delay caused to others."""

    name = "weigh"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        weight = arrival.weight
        scores, cached = {}, {}
        for replica in replicas:
            replica.advance(now)
            held = cached[replica.name] = replica.cached_tokens(arrival)
            own = replica.prefill_work(weight.prompt_tokens - held, held)
            step = replica.decode_seconds
            first = replica.prefill_seconds + own + step
            scores[replica.name] = first + own * replica.decoding + step
        chosen = lowest(replicas, scores, self._rng)
        reason = f"{scores[chosen.name]:.3f} s predicted marginal cost, the least of {len(replicas)}"
        return Choice(chosen.name, reason, scores, "s", cached[chosen.name])
