"""The gateway under a virtual clock: the fleet's desk, policies, limits and length estimates, unchanged.

`fleet.desk` decides who goes where; here it is told the time, and what it places is added to simulated replicas.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.weight import Weight
from weighbridge.engine.memory.prefix import Digest, PrefixCache
from weighbridge.engine.request import FinishReason, Request, SamplingParams
from weighbridge.errors import BadInput, NeverFits, Refused
from weighbridge.fleet.api import Arrival, Report
from weighbridge.fleet.desk import Desk, Lease, Patience, Standing
from weighbridge.fleet.limits.tenant import Limiter
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.policy import Policy
from weighbridge.simulator.replica import SimulatedReplica
from weighbridge.simulator.stepping import Truth
from weighbridge.workload.outcomes import Outcome, Outcomes
from weighbridge.workload.requests import END, SimulatedRequest

MODEL = "simulated"

#: A simulation waits to its end: another replica may come.
_ENDLESS = Patience(math.inf, math.inf, math.inf)

#: Policies that ask only how many requests there are. For them, in fleets larger than this, the tokens of a
#: replica are counted when it is chosen and as requests end, not for every decision.
_COUNTING = frozenset({"round_robin", "random", "least_requests", "power_of_two"})
_LARGE_FLEET = 64


#: Sequences and context tokens of an iteration by whose time replicas of unequal speed are compared.
_USUAL_BATCH = (32, 32 * 512)


@dataclass(slots=True, eq=False)
class SimulatedMember:
    """A simulated replica at the desk: always in reach, with no rate limits of its own."""

    replica: SimulatedReplica
    state: ReplicaState
    held_until: float = 0.0
    accepts: Callable[[Arrival, float], bool] = field(init=False)

    def __post_init__(self) -> None:
        self.accepts = self.state.accepts

    def can_ever(self, arrival: Arrival, now: float) -> bool:
        return self.state.fits(arrival)

    def usable(self, now: float) -> bool:
        return not self.state.draining

    def takes_turns(self, arrival: Arrival, now: float) -> bool:
        return self.state.open_to(arrival)

    def standing(self, now: float) -> Standing:
        return Standing.DRAINING if self.state.draining else Standing.UP

    def why(self, now: float) -> str:
        return ""

    def reserve(self, arrival: Arrival, now: float) -> bool:
        return True

    def sent(self, now: float) -> None: ...

    def settle(self, arrival: Arrival, produced: int, now: float) -> None: ...


@dataclass(slots=True)
class _Flight:
    """A request in the gateway or on a replica."""

    request: SimulatedRequest
    arrival: Arrival
    outcome: Outcome
    lease: Lease[SimulatedMember] | None = None  # None: it waits


class SimulatedGateway:
    """Places requests on replicas and follows them to their end. A `Listener` of every replica.

    `sample`: each request is placed on one of so many replicas drawn by `rng`, or if none of them has room, of all;
    what a gateway does that looks after thousands. For random choice and the power of two it changes nothing.
    `ended` is called with each request that is over and the time; `moved` with each replica that got work.
    """

    def __init__(
        self,
        policy: Policy,
        outcomes: Outcomes,
        *,
        queue: GatewayQueue | None = None,
        limiter: Limiter | None = None,
        index: PrefixIndex | None = None,
        block_size: int = 16,
        sample: int | None = None,
        rng: random.Random | None = None,
        ended: Callable[[SimulatedRequest, Outcome, float], None],
        moved: Callable[[SimulatedReplica], None],
    ) -> None:
        self.outcomes = outcomes
        self.queue = queue if queue is not None else GatewayQueue()  # an empty one is false
        self.desk: Desk[SimulatedMember] = Desk(
            MODEL, policy, self.queue, _ENDLESS, draw=self._drawn if sample else None, look=self._look
        )
        self.index = index
        self.lengths = OutputLengths()
        self.peak_queue = 0
        self._imbalances = 0.0
        self._samples = 0
        self._limiter = limiter
        self._blocks = PrefixCache(block_size)
        self._flights: dict[str, _Flight] = {}
        self._ended = ended
        self._moved = moved
        self._sample = sample or 0
        self._rng = rng or random.Random(0)
        self._names: list[str] = []
        self._counts_tokens = policy.name not in _COUNTING

    # -- replicas come and go --------------------------------------------------------------------------

    @property
    def states(self) -> dict[str, ReplicaState]:
        return {name: member.state for name, member in self.desk.members.items()}

    def add_replica(self, replica: SimulatedReplica, state: ReplicaState, now: float) -> None:
        self.desk.join(SimulatedMember(replica, state), now)
        self._names.append(replica.name)
        self._pump(now)

    def drain(self, name: str) -> None:
        """Send nothing new to a replica."""
        self.desk.members[name].state.draining = True

    def keep(self, name: str, now: float) -> None:
        """Take a replica back that was being drained."""
        self.desk.members[name].state.draining = False
        self.desk.touch(name, now)
        self._pump(now)

    def retire(self, name: str) -> SimulatedMember:
        """Remove a drained replica that has no work left."""
        self._names.remove(name)
        if self.index is not None:
            self.index.remove_replica(name)
        gone = self.desk.leave(name)
        assert gone is not None
        return gone

    def lose(self, name: str, now: float) -> None:
        """Take note that a replica died: requests without a byte out are tried elsewhere, first in line; others end."""
        self.desk.members[name].replica.tell(now)
        dead = self.retire(name)
        dead.replica.die(now)
        lost = [f for f in self._flights.values() if f.lease is not None and f.lease.member is dead]
        for flight in lost:
            if flight.outcome.first == flight.outcome.first:  # not NaN: its stream had begun
                self._fail(flight, "replica_lost", now)
            else:
                assert flight.lease is not None
                flight.lease.release(now)
                flight.lease, flight.outcome.retries = None, flight.outcome.retries + 1
                try:
                    self.desk.wait(flight.arrival, now, front=True)
                except Refused as error:
                    self._fail(flight, error.code or "refused", now)
        self._pump(now)

    def tell(self, now: float) -> None:
        """Hear of all tokens that came until now."""
        for member in self.desk.members.values():
            member.replica.tell(now)
            member.state.advance(now)

    @property
    def imbalance(self) -> float:
        """Return the mean over arrivals of (largest - mean) / mean seconds of work in flight on a replica; 0: even."""
        return self._imbalances / self._samples if self._samples else 0.0

    def _drawn(self) -> Sequence[str]:
        return self._rng.sample(self._names, self._sample) if self._sample < len(self._names) else ()

    def _look(self, members: Collection[SimulatedMember], now: float) -> None:
        """Let `members` learn what is known at this moment: they may be sent something now."""
        if not self._counts_tokens and len(members) > _LARGE_FLEET:
            return
        for member in members:
            member.replica.tell(now)
        work = [m.state.outstanding_tokens * m.replica.cost.decode_seconds(*_USUAL_BATCH) for m in members]
        mean = sum(work) / len(work) if work else 0.0
        if mean > 0.0:
            self._imbalances += max(work) / mean - 1.0
            self._samples += 1

    def report(self, name: str, report: Report, now: float) -> None:
        """Take in what a replica says of itself."""
        self.desk.members[name].state.report(report)
        self.desk.touch(name, now)
        self._pump(now)

    # -- requests --------------------------------------------------------------------------------------

    def arrive(self, request: SimulatedRequest, now: float) -> None:
        arrival = self._weigh(request, now)
        outcome = Outcome(request.id, request.tenant, now, arrival.weight.prompt_tokens)
        flight = _Flight(request, arrival, outcome)
        self._flights[request.id] = flight
        try:
            if self._limiter is not None:
                self._limiter.reserve(request.tenant, request.id, arrival.weight.most_tokens, 0.0, now)
            lease = self.desk.offer(arrival, now)
        except NeverFits:
            self._fail(flight, "never_fits", now)
        except (Refused, BadInput) as error:
            self._fail(flight, getattr(error, "code", "bad_input"), now)
        else:
            if lease is not None:
                self._send(lease, now)
                return
            self.peak_queue = max(self.peak_queue, len(self.queue))
            self._pump(now)

    def tick(self, now: float) -> None:
        """Give up those in the queue whose deadline can no longer be met."""
        for arrival, missed in self.desk.expire(now):
            self._fail(self._flights[arrival.id], missed.code, now)

    def give_up(self, now: float) -> None:
        """End whoever still waits: nothing will happen any more, so they found no replica."""
        for flight in list(self._flights.values()):
            self._fail(flight, "no_replica", now)

    def _weigh(self, request: SimulatedRequest, now: float) -> Arrival:
        prompt_tokens = request.prompt_tokens
        estimate = self.lengths.estimate(request.tenant, MODEL, "", request.max_tokens)
        chain: list[Digest] = []
        if self.index is not None:
            self._blocks.extend(chain, request.token_ids(), prompt_tokens)
        return Arrival(
            request.id,
            MODEL,
            Weight(prompt_tokens, request.max_tokens, estimate),
            now,
            request.tenant,
            priority=request.priority,
            deadline=None if request.deadline is None else now + request.deadline,
            chain=tuple(chain),
            session=request.session,
        )

    def _pump(self, now: float) -> None:
        for lease in self.desk.pump(now):
            self._send(lease, now)

    def _send(self, lease: Lease[SimulatedMember], now: float) -> None:
        """Add the request to the replica it was placed on."""
        flight, replica = self._flights[lease.arrival.id], lease.member.replica
        flight.lease, flight.outcome.replica, flight.outcome.dispatched = lease, replica.name, now
        replica.tell(now)
        try:
            replica.add(_engine_request(flight.request, lease.arrival, now), now)
        except (Refused, BadInput) as error:
            self._moved(replica)  # it was interrupted, and has other plans
            self._fail(flight, getattr(error, "code", "bad_input"), now)
        else:
            self._moved(replica)

    def _fail(self, flight: _Flight, code: str, now: float) -> None:
        flight.outcome.error = code
        self._over(flight, now)

    def _over(self, flight: _Flight, now: float) -> None:
        arrival, outcome = flight.arrival, flight.outcome
        del self._flights[arrival.id]
        self.desk.withdraw(arrival.id)
        outcome.finished = now
        if flight.lease is not None:
            flight.lease.release(now)
        if self._limiter is not None:
            used = arrival.weight.prompt_tokens + outcome.output_tokens
            self._limiter.settle(arrival.id, used, 0.0, now)
        self.outcomes.add(outcome)
        self._ended(flight.request, outcome, now)

    # -- what replicas tell ----------------------------------------------------------------------------

    def first_token(self, request: Request, now: float) -> None:
        flight = self._flights[request.id]
        flight.outcome.first = now
        flight.outcome.cached_tokens = request.num_cached_tokens
        assert flight.lease is not None
        flight.lease.first_byte(now)

    def tokens(self, request: Request, count: int, now: float) -> None:
        flight = self._flights[request.id]
        flight.outcome.output_tokens += count
        assert flight.lease is not None
        flight.lease.tokens(count, now)

    def finished(self, request: Request, reason: FinishReason, now: float) -> None:
        flight = self._flights[request.id]
        flight.outcome.preemptions = request.num_preemptions
        if len(self.queue):  # the place goes to somebody who waits: by what is known at this moment
            for member in self.desk.members.values():
                member.replica.tell(now)
        if reason is FinishReason.STOP:
            self.lengths.observe(request.tenant, MODEL, "", request.num_output_tokens)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._over(flight, now)
        else:
            self._fail(flight, reason.value, now)
        self._pump(now)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every counter agrees with what is in flight."""
        for member in self.desk.members.values():
            member.state.check_integrity()
        self.desk.check_integrity()
        if self._limiter is not None:
            self._limiter.check_integrity()


def _engine_request(request: SimulatedRequest, arrival: Arrival, now: float) -> Request:
    return Request(
        id=request.id,
        prompt=request.token_ids(),
        params=SamplingParams(max_tokens=request.max_tokens, temperature=0.0),
        arrival=now,
        tenant=request.tenant,
        priority=request.priority,
        deadline=arrival.deadline,
        stop_token_ids=_STOPS,
        sampler_state=Truth(request.output_tokens, request.answer),
    )


_STOPS = frozenset({END})
