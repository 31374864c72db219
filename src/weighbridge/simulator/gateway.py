"""The gateway under a virtual clock: the fleet's policies, queue, limits and length estimates, unchanged.

What it does with them is what `fleet.dispatch` does with sockets: choose among the replicas with room and
credit at once; where none has room, wait in the fair queue; draw the credit down as tokens come.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.weight import Weight
from weighbridge.engine.memory.prefix import Digest, PrefixCache
from weighbridge.engine.request import FinishReason, Request, SamplingParams
from weighbridge.errors import BadInput, Refused
from weighbridge.fleet.api import Arrival, Choice, Policy
from weighbridge.fleet.limits.tenant import Limiter
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue, least_seconds
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.simulator.replica import SimulatedReplica
from weighbridge.simulator.stepping import Truth
from weighbridge.workload.outcomes import Outcome, Outcomes
from weighbridge.workload.requests import END, SimulatedRequest

MODEL = "simulated"

#: Policies that ask only how many requests there are. For them, in fleets larger than this, the tokens of a
#: replica are counted when it is chosen and as requests end, not for every decision.
_COUNTING = frozenset({"round_robin", "random", "least_requests", "power_of_two"})
_LARGE_FLEET = 64


#: Sequences and context tokens of an iteration by whose time replicas of unequal speed are compared.
_USUAL_BATCH = (32, 32 * 512)


@dataclass(slots=True)
class _Flight:
    """A request in the gateway or on a replica."""

    request: SimulatedRequest
    arrival: Arrival
    outcome: Outcome
    replica: str = ""  # where it is; empty while it waits


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
        self.policy = policy
        self.outcomes = outcomes
        self.queue = queue or GatewayQueue()
        self.states: dict[str, ReplicaState] = {}
        self.index = index
        self.lengths = OutputLengths()
        self.peak_queue = 0
        self._imbalances = 0.0
        self._samples = 0
        self._replicas: dict[str, SimulatedReplica] = {}
        self._limiter = limiter
        self._blocks = PrefixCache(block_size)
        self._flights: dict[str, _Flight] = {}
        self._ended = ended
        self._moved = moved
        self._sample = sample
        self._rng = rng or random.Random(0)
        self._names: list[str] = []
        self._counts_tokens = policy.name not in _COUNTING

    # -- replicas come and go --------------------------------------------------------------------------

    def add_replica(self, replica: SimulatedReplica, state: ReplicaState, now: float) -> None:
        self._replicas[replica.name] = replica
        self.states[replica.name] = state
        self._names.append(replica.name)
        self._pump(now)

    def drain(self, name: str) -> None:
        """Nothing new goes there."""
        self.states[name].draining = True

    def keep(self, name: str, now: float) -> None:
        """It is not drained after all."""
        self.states[name].draining = False
        self._pump(now)

    def retire(self, name: str) -> None:
        """A drained replica without work goes."""
        self._replicas.pop(name)
        self.states.pop(name)
        self._names.remove(name)
        if self.index is not None:
            self.index.remove_replica(name)

    def lose(self, name: str, now: float) -> None:
        """The replica is dead. Requests without a byte out are tried elsewhere, first in line; others end."""
        self._replicas[name].tell(now)
        self._replicas.pop(name).die(now)
        self.states.pop(name)
        self._names.remove(name)
        if self.index is not None:
            self.index.remove_replica(name)
        lost = [flight for flight in self._flights.values() if flight.replica == name]
        for flight in lost:
            if flight.outcome.first == flight.outcome.first:  # not NaN: its stream had begun
                self._fail(flight, "replica_lost", now)
            else:
                flight.replica, flight.outcome.retries = "", flight.outcome.retries + 1
                self.queue.push(flight.arrival, now, front=True)
        self._pump(now)

    def tell(self, now: float) -> None:
        """Hear of all tokens that came until now."""
        for replica in self._replicas.values():
            replica.tell(now)
            self.states[replica.name].advance(now)

    @property
    def imbalance(self) -> float:
        """Mean over arrivals of (largest - mean) / mean seconds of work in flight on a replica; 0 is even."""
        return self._imbalances / self._samples if self._samples else 0.0

    def _sample_balance(self, names: list[str]) -> None:
        work = [
            self.states[name].outstanding_tokens * self._replicas[name].cost.decode_seconds(*_USUAL_BATCH)
            for name in names
        ]
        mean = sum(work) / len(work) if work else 0.0
        if mean > 0.0:
            self._imbalances += max(work) / mean - 1.0
            self._samples += 1

    # -- requests --------------------------------------------------------------------------------------

    def arrive(self, request: SimulatedRequest, now: float) -> None:
        arrival = self._weigh(request, now)
        outcome = Outcome(request.id, request.tenant, now, arrival.weight.prompt_tokens)
        flight = _Flight(request, arrival, outcome)
        self._flights[request.id] = flight
        try:
            if self._limiter is not None:
                self._limiter.reserve(request.tenant, request.id, arrival.weight.most_tokens, 0.0, now)
            choice = None if len(self.queue) else self._place(flight, now)
            if choice is not None:
                self.queue.charge(arrival, input_tokens=arrival.weight.prompt_tokens - choice.cached_tokens)
            elif self.states and not any(state.fits(arrival) for state in self.states.values()):
                self._fail(flight, "never_fits", now)
            else:
                self.queue.push(arrival, now, least_seconds=self._least_seconds(arrival))
                self.peak_queue = max(self.peak_queue, len(self.queue))
                self._pump(now)
        except (Refused, BadInput) as error:
            self._fail(flight, getattr(error, "code", "bad_input"), now)

    def tick(self, now: float) -> None:
        """Give up those in the queue whose deadline can no longer be met."""
        for arrival in self.queue.expired(now):
            self._fail(self._flights[arrival.id], "deadline_missed", now)

    def give_up(self, now: float) -> None:
        """Nothing will happen any more: whoever still waits found no replica."""
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

    def _place(self, flight: _Flight, now: float) -> Choice | None:
        """Send it where the policy says; None when no replica has room."""
        arrival, candidates = flight.arrival, []
        if self._sample is not None and self._sample < len(self._names):
            candidates = self._open(self._rng.sample(self._names, self._sample), arrival, now)
        candidates = candidates or self._open(self._names, arrival, now)
        if not candidates:
            return None
        choice = self.policy.choose(arrival, candidates, now)
        self.states[choice.replica].credit(arrival, choice.cached_tokens, now)
        flight.replica = flight.outcome.replica = choice.replica
        flight.outcome.dispatched = now
        replica = self._replicas[choice.replica]
        replica.tell(now)
        try:
            replica.add(_engine_request(flight.request, arrival, now), now)
        except (Refused, BadInput) as error:
            self._moved(replica)  # it was interrupted, and has other plans
            self._fail(flight, getattr(error, "code", "bad_input"), now)
            return choice
        self._moved(replica)
        return choice

    def _open(self, names: list[str], arrival: Arrival, now: float) -> list[ReplicaState]:
        """Of these replicas, those that may be sent `arrival` now."""
        if self._counts_tokens or len(names) <= _LARGE_FLEET:
            for name in names:
                self._replicas[name].tell(now)
            self._sample_balance(names)
        return [state for state in map(self.states.__getitem__, names) if state.accepts(arrival, now)]

    def _pump(self, now: float) -> None:
        while (arrival := self.queue.peek(now)) is not None:
            flight = self._flights[arrival.id]
            choice = self._place(flight, now)
            if choice is None:
                return
            self.queue.take(arrival, now, choice.cached_tokens)

    def _least_seconds(self, arrival: Arrival) -> float:
        if arrival.deadline is None:
            return 0.0
        return least_seconds(
            arrival.weight.prompt_tokens, [state.step_cost for state in self.states.values()]
        )

    def _fail(self, flight: _Flight, code: str, now: float) -> None:
        flight.outcome.error = code
        self._over(flight, now)

    def _over(self, flight: _Flight, now: float) -> None:
        arrival, outcome = flight.arrival, flight.outcome
        del self._flights[arrival.id]
        self.queue.remove(arrival.id)
        outcome.finished = now
        state = self.states.get(flight.replica)
        if state is not None:
            state.release(arrival.id, now)
        if self._limiter is not None:
            used = arrival.weight.prompt_tokens + outcome.output_tokens
            self._limiter.settle(arrival.id, used, 0.0, now)
        self.queue.charge(arrival, output_tokens=outcome.output_tokens)
        self.outcomes.add(outcome)
        self._ended(flight.request, outcome, now)

    # -- what replicas tell ----------------------------------------------------------------------------

    def first_token(self, request: Request, now: float) -> None:
        flight = self._flights[request.id]
        flight.outcome.first = now
        flight.outcome.cached_tokens = request.num_cached_tokens
        self.states[flight.replica].first_token(request.id, now)

    def tokens(self, request: Request, count: int, now: float) -> None:
        flight = self._flights[request.id]
        flight.outcome.output_tokens += count
        self.states[flight.replica].tokens(request.id, count, now)

    def finished(self, request: Request, reason: FinishReason, now: float) -> None:
        flight = self._flights[request.id]
        flight.outcome.preemptions = request.num_preemptions
        if len(self.queue):  # the place goes to somebody who waits: by what is known at this moment
            for replica in self._replicas.values():
                replica.tell(now)
        if reason is FinishReason.STOP:
            self.lengths.observe(request.tenant, MODEL, "", request.num_output_tokens)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._over(flight, now)
        else:
            self._fail(flight, reason.value, now)
        self._pump(now)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every counter agrees with what is in flight."""
        for state in self.states.values():
            state.check_integrity()
        self.queue.check_integrity()
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
