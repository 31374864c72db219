"""Ways to let the end of an answer count in `weigh`'s score, under the product's policy contract, for comparison.

    python benchmarks/fleet_policies.py --loads 0.9 --seeds 2 --first-seed 10 \\
        --policies weigh,weigh_sum,weigh_plus_finish,weigh_times_finish

The product's own score leaves it out; docs/measured/policies.md says what these do instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from weighbridge.fleet.api import Arrival, Choice, Randomness
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.candidates import matched_tokens
from weighbridge.fleet.policies.policy import Policy
from weighbridge.fleet.policies.weigh import Weigh

#: What a second of the answer counts beside a second of waiting for its first token.
SHARE = 0.1


class _Rescored(ABC):
    """`weigh`, with another score made of its own, the predicted times and the delay to others."""

    name = ""

    def __init__(self, rng: Randomness) -> None:
        self._weigh = Weigh(rng)

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        usual = self._weigh.choose(arrival, replicas, now)
        weight, cached = arrival.weight, matched_tokens(arrival, replicas)
        firsts, finishes = [], []
        for replica, held in zip(replicas, cached, strict=True):
            first = replica.first_token_seconds(weight.prompt_tokens - held, held, now)
            last = replica.last_token_seconds(first, weight.prompt_tokens, weight.output.mean, weight.choices)
            firsts.append(first)
            finishes.append(last - first)
        mean = sum(finishes) / len(finishes) or 1.0
        scores = {}
        for index, replica in enumerate(replicas):
            work = replica.prefill_work(weight.prompt_tokens - cached[index], cached[index])
            scores[replica.name] = self._score(
                usual.scores[replica.name], firsts[index], finishes[index], mean, work * replica.decoding
            )
        best = min(range(len(replicas)), key=lambda index: scores[replicas[index].name])
        return Choice(replicas[best].name, self.name, scores, "s", cached[best])

    @abstractmethod
    def _score(self, usual: float, first: float, finish: float, mean: float, delay: float) -> float:
        """Of one replica: `weigh`'s own, seconds to the first token, of the answer there and on average, to others."""


class Sum(_Rescored):
    """Plain marginal cost: own first token, own answer, and the prefill that every stream there waits for."""

    name = "weigh_sum"

    def _score(self, usual: float, first: float, finish: float, mean: float, delay: float) -> float:
        return first + finish + delay


class Plus(_Rescored):
    """A share of the seconds of the answer on top. Divided by the output it chooses the same."""

    name = "weigh_plus_finish"

    def _score(self, usual: float, first: float, finish: float, mean: float, delay: float) -> float:
        return usual + SHARE * finish


class Times(_Rescored):
    """Dearer by the root of how much slower than usual the answer would be."""

    name = "weigh_times_finish"

    def _score(self, usual: float, first: float, finish: float, mean: float, delay: float) -> float:
        return usual * (finish / mean) ** 0.5


FINISHES: dict[str, Callable[[Randomness], Policy]] = {one.name: one for one in (Sum, Plus, Times)}
