"""The default: how long until the first token, there, and who else waits meanwhile?

For every replica, from its own step cost and what is known of its load (`ReplicaState.first_token_seconds`):

    seconds  = iterations until this request's first token: the prompts in line, what of its own the cache does
               not hold, the streams that run beside, memory that has to be freed or computed twice
    streams  = sequences there, this one included, over the mean of the replicas in question
    score    = seconds x (1/2 + streams) / (3/2)

All of these streams are held up while prompts are computed, so their number is the price of a second; the share
of one half keeps the own wait from being outbid by an empty but slow replica. On a usual replica the score is
the time to the first token itself. Nothing is tuned to a fleet: speeds come from the step costs and what the replica
makes of them (`pace.py`), and what is usual from the fleet at that moment. The finish is predicted for the ticket; in
the score it lengthens the tail of the first tokens (docs/measured/policies.md). Affinity is no rule of its own; a
cached prefix makes `seconds` short, and a line in front of it makes them long, for each request anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from weighbridge.cost.weight import Weight
from weighbridge.fleet.api import Arrival, Choice, Randomness
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.candidates import matched_tokens

#: What the own wait counts beside that of the streams on a usual replica.
OWN = 0.5


class Weigh:
    """Least predicted marginal cost, in seconds.

    Where replicas also serve others (several gateways in front of one fleet), what they were sent since the
    last report is not known. Scores within that uncertainty, the others' share of the load, count as equal
    and one of them is drawn: gateways that see the same report do not all send to the same best replica.
    """

    name = "weigh"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        prompt, choices = arrival.weight.prompt_tokens, arrival.weight.choices
        cached = matched_tokens(arrival, replicas)
        streams = [replica.streams(now) + choices for replica in replicas]
        usual = sum(streams) / len(streams)
        scale, own = 1.0 / (usual * (1.0 + OWN)), OWN * usual
        firsts = [
            replica.first_token_seconds(prompt - held, held, now)
            for replica, held in zip(replicas, cached, strict=True)
        ]
        scores = [first * (own + count) * scale for first, count in zip(firsts, streams, strict=True)]
        best = self._draw(replicas, scores, now)
        held, chosen = cached[best], replicas[best]
        return Choice(
            chosen.name,
            _reason(chosen, arrival.weight, held, firsts[best], len(replicas)),
            {replica.name: score for replica, score in zip(replicas, scores, strict=True)},
            "s",
            held,
        )

    def _draw(self, replicas: Sequence[ReplicaState], scores: Sequence[float], now: float) -> int:
        """Index of the lowest score; of those equal to it within what is not known, any."""
        least = min(scores)
        unseen = replicas[scores.index(least)].others_share(now)
        limit = least * (1.0 + unseen)
        near = [index for index, score in enumerate(scores) if score <= limit]
        return near[0] if len(near) == 1 else near[int(self._rng.random() * len(near))]


def _reason(replica: ReplicaState, weight: Weight, cached: int, first: float, count: int) -> str:
    prompt = weight.prompt_tokens
    line = f"behind {replica.uncomputed_tokens:.0f} prompt tokens and beside {replica.decoding} streams"
    own = f"{prompt - cached} of {prompt} prompt tokens to compute" if cached else f"{prompt} prompt tokens"
    last = replica.last_token_seconds(first, prompt, weight.output.mean, weight.choices)
    when = f"first token in about {first * 1e3:.0f} ms, last in about {last:.2g} s"
    return f"{own} {line}: {when}, the least cost of {count}"
