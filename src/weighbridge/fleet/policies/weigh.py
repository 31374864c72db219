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

A speed that is neither told nor stated is learned (`speed.py`). Until it is, seconds cannot be compared: a measured
cost against a default says which of the two was measured, not which replica is quicker. Whose speed is not known is
found out: it gets the next request as long as it has no more than a few, and no more than anybody else; of several,
and while nobody's speed is known, the one with the fewest requests, of equals the one with the fewest tokens. One that
was found slow and stands idle for a while beside busy ones is tried again by one request, if one comes in time whose
prompt is no longer than usual there: a long one would pay most for finding out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from weighbridge.cost.weight import Weight
from weighbridge.fleet.api import Arrival, Choice, ExpectedFirst, Randomness
from weighbridge.fleet.load.experience import interval
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.candidates import matched_tokens
from weighbridge.fleet.policies.policy import Usual
from weighbridge.ticket.decisions import Words

#: What the own wait counts beside that of the streams on a usual replica.
OWN = 0.5
#: Beside so many tokens, others make half a request's difference among those with equally many requests.
_MANY_TOKENS = 1e6
#: Requests at a time that one whose speed is not known gets, to find it out, where that of others is.
EXPLORED = 4
#: Seconds for which a replica that was found slow is left idle beside busy ones; then one request tries it again.
LEFT_IDLE = 5.0
#: The same until one with a long prompt tries it, too.
LEFT_LONG = 20.0
#: Stands where nothing can be predicted.
_NEVER = ExpectedFirst(math.inf, math.inf)
#: How much slower than it tells a replica must have been to be tried again.
FOUND_SLOW = 1.5


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
        return self._choose(arrival, replicas, now, None)

    def choose_of(
        self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float, usual: Usual
    ) -> Choice:
        """One of a few of a large fleet: what is usual is the fleet's, not theirs."""
        return self._choose(arrival, replicas, now, usual)

    def usual_cost(self, replica: ReplicaState, usual: Usual, prompt_tokens: int, now: float) -> float:
        """The score, but for a factor; where seconds are not compared, requests and then tokens."""
        expected = replica.expected_first(prompt_tokens, 0, now) if usual.speeds_known else None
        if expected is None:
            tokens = replica.total_tokens(now)
            return replica.total_requests(now) + tokens / (tokens + _MANY_TOKENS)
        return expected.first * (1.0 + replica.streams(now) + OWN * (1.0 + usual.streams))

    def _choose(
        self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float, fleet: Usual | None
    ) -> Choice:
        prompt, choices = arrival.weight.prompt_tokens, arrival.weight.choices
        cached = matched_tokens(arrival, replicas, few=fleet is not None)
        streams = [
            choices + (replica.streams(now) if replica.others.queued_requests else replica.sequences)
            for replica in replicas
        ]
        usual = sum(streams) / len(streams) if fleet is None else choices + fleet.streams
        scale, own = 1.0 / (usual * (1.0 + OWN)), OWN * usual
        firsts: list[ExpectedFirst] = []
        unknown = False
        for replica, held in zip(replicas, cached, strict=True):
            expected = replica.expected_first(prompt - held, held, now)
            unknown = unknown or expected is None
            firsts.append(expected or _NEVER)
        if unknown and _to_find_out(replicas, now):
            return self._by_requests(arrival, replicas, cached, now, fleet)
        scores = [first * (own + count) * scale for (first, _), count in zip(firsts, streams, strict=True)]
        best = self._draw(replicas, scores, now)
        again = _to_try_again(replicas, best, prompt, now)
        best = best if again is None else again
        held, chosen = cached[best], replicas[best]
        idle_s = None if again is None else now - chosen.heard_at
        return Choice(
            chosen.name,
            _why(chosen, arrival.weight, held, firsts[best].first, (len(replicas), fleet), idle_s),
            {r.name: score for r, score in zip(replicas, scores, strict=True) if r.step_cost is not None},
            "s",
            held,
            firsts[best],
        )

    def _by_requests(
        self,
        arrival: Arrival,
        replicas: Sequence[ReplicaState],
        cached: Sequence[int],
        now: float,
        fleet: Usual | None,
    ) -> Choice:
        """The fewest requests, of equals the fewest tokens with this one, of equals any; no seconds compared."""
        prompt = arrival.weight.prompt_tokens
        requests = [replica.total_requests(now) for replica in replicas]
        tokens = [
            replica.total_tokens(now) + prompt - held for replica, held in zip(replicas, cached, strict=True)
        ]
        least = min(requests)
        unseen = replicas[requests.index(least)].others_share(now)
        near = [index for index, count in enumerate(requests) if count <= least * (1.0 + unseen)]
        if not unseen:
            fewest = min(tokens[index] for index in near)
            near = [index for index in near if tokens[index] == fewest]
        best = near[0] if len(near) == 1 else near[int(self._rng.random() * len(near))]
        chosen = replicas[best]
        return Choice(
            chosen.name,
            f"{requests[best]:.0f} requests there and {tokens[best]:.0f} tokens with this one, the fewest of "
            f"{_count(len(replicas), fleet)}: {_unknown(replicas)} not learned yet, so no seconds are compared",
            {replica.name: float(count) for replica, count in zip(replicas, requests, strict=True)},
            "requests",
            cached[best],
        )

    def _draw(self, replicas: Sequence[ReplicaState], scores: Sequence[float], now: float) -> int:
        """Index of the lowest score; of those equal to it within what is not known, any."""
        least = min(scores)
        unseen = replicas[scores.index(least)].others_share(now)
        limit = least * (1.0 + unseen)
        near = [index for index, score in enumerate(scores) if score <= limit]
        return near[0] if len(near) == 1 else near[int(self._rng.random() * len(near))]


def _to_find_out(replicas: Sequence[ReplicaState], now: float) -> bool:
    """Whether requests are to be counted: nobody's speed is known, or that of one who has few of them is not."""
    if not any(replica.speed_known for replica in replicas):
        return True
    least = min(replica.total_requests(now) for replica in replicas if not replica.speed_known)
    return least < EXPLORED and all(replica.total_requests(now) >= least for replica in replicas)


def _to_try_again(replicas: Sequence[ReplicaState], best: int, prompt: int, now: float) -> int | None:
    """Index of one that was found slow and has been passed over since: nobody would learn that it is not any more."""
    if not replicas[best].sequences:
        return None
    idle = [
        index
        for index, one in enumerate(replicas)
        if not one.sequences
        and one.speed_known
        and now - one.heard_at > LEFT_IDLE
        and not one.others.queued_requests
        and (not one.believed or one.stretch > FOUND_SLOW)
        and (prompt <= one.experience.usual_prompt or now - one.heard_at > LEFT_LONG)
    ]
    return min(idle, key=lambda index: replicas[index].heard_at, default=None)


def _why(
    replica: ReplicaState,
    weight: Weight,
    cached: int,
    first: float,
    seen: tuple[int, Usual | None],
    idle_s: float | None,
) -> Words:
    """What will say why, from what is known now; `seen`: how many were looked at, of what fleet. `idle_s`: for so long
    it was idle, where it is tried again."""
    experience, weighed = replica.experience, (weight.prompt_tokens, cached)
    last = replica.last_token_seconds(first, weighed[0], weight.output.mean, weight.choices)
    line = replica.uncomputed_tokens, replica.decoding
    spread = experience.score.square.value if experience.score.count else None
    learned = None if replica.believed else experience.words(told=replica.tells)
    return partial(_reason, weighed, (first, last), line, seen, (spread, learned, idle_s))


def _reason(
    weighed: tuple[int, int],
    when: tuple[float, float | None],
    line: tuple[float, int],
    seen: tuple[int, Usual | None],
    known: tuple[float | None, Words | None, float | None],
) -> str:
    (prompt, cached), (first, last), (ahead, streams) = weighed, when, line
    own = f"{prompt - cached} of {prompt} prompt tokens to compute" if cached else f"{prompt} prompt tokens"
    assert last is not None  # its speed is known: it has a `first`
    spread, learned, idle_s = known
    parts = [] if idle_s is None else [f"found slow, and idle for {idle_s:.0f} s, so tried again: "]
    parts.append(
        f"{own} behind {ahead:.0f} prompt tokens and beside {streams} stream{'s' * (streams != 1)}: first token in "
        f"about {first * 1e3:.0f} ms, last in about {last:.2g} s, the least cost of {_count(*seen)}"
    )
    if spread is not None:  # how such predictions held up there
        low, high = interval(first, spread)
        parts.append(f"; four of five such predictions held between {low * 1e3:.0f} and {high * 1e3:.0f} ms")
    if learned is not None:  # what they rest on where nobody told
        parts.append(f"; {learned()}")
    return "".join(parts)


def _count(replicas: int, fleet: Usual | None) -> str:
    return f"{replicas}" if fleet is None else f"{replicas} looked at of {fleet.replicas}"


def _unknown(replicas: Sequence[ReplicaState]) -> str:
    names = [replica.name for replica in replicas if not replica.speed_known]
    if len(names) > 3:
        return f"the speeds of {len(names)} of them are"
    return f"the speed of {names[0]} is" if len(names) == 1 else f"the speeds of {' and '.join(names)} are"
