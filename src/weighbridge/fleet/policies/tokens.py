"""Policies that count tokens, but do not ask what a token costs where."""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.fleet.api import Arrival, Choice, Randomness
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.candidates import lowest


class LeastTokens:
    """The one with the least outstanding work in tokens: prompts not computed, output not produced."""

    name = "least_tokens"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        scores = {replica.name: replica.total_tokens(now) for replica in replicas}
        chosen = lowest(replicas, scores, self._rng)
        reason = f"{scores[chosen.name]:.0f} tokens outstanding, the fewest of {len(replicas)}"
        return Choice(chosen.name, reason, scores, "tokens", chosen.cached_tokens(arrival))


class NewPrefillTimesBatch:
    """Least product of prompt tokens to be computed there and batch size (LMetric, arXiv 2603.15202).

    Prompt tokens are those queued there and this request's own that its cache does not hold; the batch
    includes this request.
    """

    name = "new_prefill_x_batch"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        prompt = arrival.weight.prompt_tokens
        scores, cached = {}, {}
        for replica in replicas:
            held = cached[replica.name] = replica.cached_tokens(arrival)
            new = replica.total_uncomputed(now) + prompt - held
            scores[replica.name] = new * (replica.total_requests(now) + 1)
        chosen = lowest(replicas, scores, self._rng)
        reason = (
            f"least product of {prompt - cached[chosen.name]} new prompt tokens and those queued "
            f"with a batch of {chosen.total_requests(now) + 1:.0f}"
        )
        return Choice(chosen.name, reason, scores, "tokens x requests", cached[chosen.name])
