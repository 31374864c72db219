"""Who goes where, and when: the policy chooses among replicas with room, the rest wait in the fair queue.

Every decision is synchronous and credited at once, so concurrent requests see each other. Only waiting is
asynchronous: one future per request in the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass

from weighbridge.errors import BadInput, DeadlineMissed, NeverFits, QueueFull, RateLimited, Refused
from weighbridge.fleet.api import Arrival, Choice, Policy
from weighbridge.fleet.load.queue import SOON, GatewayQueue, deadline_missed, least_seconds, work_seconds
from weighbridge.fleet.member import Member, Standing

NOBODY: Set[str] = frozenset()

#: Standings from which a replica can be expected back soon; without any such, waiting is pointless.
_HOPEFUL = frozenset({Standing.STARTING, Standing.UP, Standing.OPEN, Standing.HELD})


class NoReplica(Refused):
    """No replica of the model is up, and none is about to be."""

    status = 503
    code = "no_replica"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds a request waits in the queue at most, waits for any replica to come up, and for one that asked
    to be left alone."""

    max_wait: float = 600.0
    for_any: float = 10.0
    for_held: float = 10.0


@dataclass(slots=True, eq=False)
class Lease:
    """A request's place on a replica: credited before it is sent, drawn down as it streams, released once."""

    dispatcher: Dispatcher
    member: Member
    arrival: Arrival
    choice: Choice
    sent: float
    expected_first: float | None  # predicted seconds until its first token; None: not learned
    copy: bool = False  # a hedge
    started: bool = False
    produced: int = 0

    def first_byte(self, now: float) -> None:
        self.started = True
        self.member.state.first_token(self.arrival.id, now)

    def tokens(self, count: int, now: float) -> None:
        self.produced += count
        self.member.state.tokens(self.arrival.id, count, now)

    def release(self, now: float) -> None:
        """Idempotent. Whoever waits may have the place."""
        if self.member.state.release(self.arrival.id, now):
            if self.member.account is not None:
                used = self.arrival.weight.prompt_tokens + self.produced
                self.member.account.settle(self.arrival.id, used, 0.0, now)
            self.dispatcher.release(self, now)


@dataclass(slots=True, eq=False)
class _Waiting:
    arrival: Arrival
    avoid: Set[str]
    streamed: bool
    place: asyncio.Future[Lease]


class Dispatcher:
    """Places the requests of one model on its replicas."""

    def __init__(
        self, model: str, policy: Policy, queue: GatewayQueue, patience: Patience, clock: Callable[[], float]
    ) -> None:
        self.model = model
        self.policy = policy
        self.queue = queue
        self.members: dict[str, Member] = {}
        self._patience = patience
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._hopeless_since: float | None = None

    def place_now(
        self, arrival: Arrival, avoid: Set[str] = NOBODY, *, streamed: bool = True, copy: bool = False
    ) -> Lease | None:
        """The place the policy chooses, credited; None when no replica outside `avoid` has room.

        `streamed`: tokens will tell how far it has come. `copy`: a second one of a request that runs elsewhere.
        """
        now = self._clock()
        refusing = set(avoid)
        while True:
            candidates = [
                member.state
                for name, member in self.members.items()
                if name not in refusing and member.accepts(arrival, now)
            ]
            if not candidates:
                return None
            choice = self.policy.choose(arrival, candidates, now)
            member = self.members[choice.replica]
            if self._account_allows(member, arrival, now):
                return self._credit(member, arrival, choice, now, streamed, copy)
            refusing.add(choice.replica)

    async def place(
        self, arrival: Arrival, avoid: Set[str] = NOBODY, *, streamed: bool = True, again: bool = False
    ) -> Lease:
        """A place now or when one is free. `avoid` holds unless there is nobody else; `again`: it was placed
        before and its replica failed, so it goes to the front.

        Raises Refused: NeverFits, QueueFull, DeadlineMissed, NoReplica.
        """
        if not len(self.queue) or again:
            lease = self.place_now(arrival, avoid, streamed=streamed)
            if lease is not None:
                if not again:
                    self.queue.charge(arrival, input_tokens=_fresh(lease))
                return lease
        self._check_possible(arrival)
        now = self._clock()
        self.queue.push(
            arrival,
            now,
            drain_seconds=self.drain_seconds(arrival.weight.expected_tokens),
            least_seconds=self._least_seconds(arrival),
            front=again,
        )
        waiting = _Waiting(arrival, avoid, streamed, asyncio.get_running_loop().create_future())
        self._waiting[arrival.id] = waiting
        self.pump()
        return await self._wait(waiting)

    async def _wait(self, waiting: _Waiting) -> Lease:
        limit, place = self._patience.max_wait, waiting.place
        try:
            async with asyncio.timeout(limit):
                return await place
        except BaseException as error:
            if place.done() and not place.cancelled() and place.exception() is None:
                place.result().release(self._clock())  # it got its place in the moment it gave up
            if not isinstance(error, TimeoutError):
                raise
            raise QueueFull(
                f"no replica had room for this request within {limit:g} s; try again later",
                retry_after=self.drain_seconds() or SOON,
            ) from None
        finally:
            self._waiting.pop(waiting.arrival.id, None)
            self.queue.remove(waiting.arrival.id)

    def pump(self) -> None:
        """Place as many of those who wait as there is room for, in the queue's order."""
        now = self._clock()
        while (arrival := self.queue.peek(now)) is not None:
            waiting = self._waiting[arrival.id]
            lease = self.place_now(arrival, self._avoiding(waiting, now), streamed=waiting.streamed)
            if lease is None:
                return
            self.queue.take(arrival, now, lease.choice.cached_tokens)
            if waiting.place.done():  # cancelled in this very moment
                lease.release(now)
            else:
                waiting.place.set_result(lease)

    def tick(self) -> None:
        """Called now and then: give up those who wait in vain, and look again at who has room."""
        now = self._clock()
        if not self._waiting:
            self._hopeless_since = None if self._hope(now) else self._hopeless_since or now
            return
        for arrival in self.queue.expired(now):
            self._refuse(arrival.id, deadline_missed(arrival, now, self._least_seconds(arrival)))
        self.pump()
        try:
            self._check_hope(now)
        except Refused as error:
            for request_id in list(self._waiting):
                self.queue.remove(request_id)
                self._refuse(request_id, error)

    def release(self, lease: Lease, now: float) -> None:
        """A place is free: charge what was produced, and let the next one in."""
        self.queue.charge(lease.arrival, output_tokens=lease.produced)
        if len(self.queue):
            self.pump()

    def refuse_all(self, error: Refused) -> None:
        """Everybody who waits is told `error`: the gateway is going down."""
        for request_id in list(self._waiting):
            self.queue.remove(request_id)
            self._refuse(request_id, error)

    def drain_seconds(self, more: float = 0.0) -> float | None:
        """In which the replicas that are up work off what waits and `more` tokens; at least a second."""
        seconds = self.work_seconds(self.queue.tokens + more)
        return None if seconds is None else max(seconds, SOON)

    def work_seconds(self, tokens: float) -> float | None:
        """In which the replicas that are up produce `tokens` together, those of known speed alone counted.

        None when replicas are up, but the speed of none of them is known.
        """
        now = self._clock()
        up = [m.state.step_cost for m in self.members.values() if m.standing(now) is Standing.UP]
        return work_seconds(tokens, up)

    # -- inside ----------------------------------------------------------------------------------------

    def _credit(
        self, member: Member, arrival: Arrival, choice: Choice, now: float, streamed: bool, copy: bool
    ) -> Lease:
        state, held = member.state, choice.cached_tokens
        expected_first = state.first_token_seconds(arrival.weight.prompt_tokens - held, held, now)
        state.credit(arrival, held, now, streamed=streamed)
        member.breaker.sent(now)
        member.counts.requests += 1
        return Lease(self, member, arrival, choice, now, expected_first, copy)

    def _account_allows(self, member: Member, arrival: Arrival, now: float) -> bool:
        """Reserve the request in the replica's own rate limits, as a cloud account has them."""
        if member.account is None:
            return True
        try:
            tokens = round(arrival.weight.expected_tokens)
            usd = member.cost(arrival.weight.prompt_tokens, round(arrival.weight.output.mean), 0)
            member.account.reserve(member.name, arrival.id, tokens, usd, now)
        except RateLimited as error:
            member.hold(now + min(error.retry_after or 1.0, 5.0), str(error))
            return False
        except BadInput:
            return False  # larger than the whole limit, or already there
        return True

    def _avoiding(self, waiting: _Waiting, now: float) -> Set[str]:
        others = (m for name, m in self.members.items() if name not in waiting.avoid)
        return waiting.avoid if any(m.usable(now) and m.state.healthy for m in others) else NOBODY

    def _check_possible(self, arrival: Arrival) -> None:
        members = list(self.members.values())
        if members and not any(member.state.fits(arrival) for member in members):
            limits = {m.state.capacity.max_model_len or m.state.capacity.kv_tokens for m in members}
            longest = max(limit for limit in limits if limit is not None)
            weight = arrival.weight
            raise NeverFits(
                f"{weight.prompt_tokens} prompt tokens and up to {weight.max_tokens} more are beyond the "
                f"{longest} tokens that any replica of {self.model!r} takes; shorten the prompt or lower max_tokens"
            )
        self._check_hope(self._clock())

    def _hope(self, now: float) -> bool:
        return any(member.standing(now) in _HOPEFUL for member in self.members.values())

    def _check_hope(self, now: float) -> None:
        """Raise NoReplica or QueueFull when waiting would be in vain."""
        if not self._hope(now):
            self._hopeless_since = self._hopeless_since or now
            if now - self._hopeless_since >= self._patience.for_any:
                raise NoReplica(f"no replica of {self.model!r} is up{self._why(now)}", retry_after=5.0)
            return
        self._hopeless_since = None
        waits = [self._held_for(member, now) for member in self.members.values()]
        if waits and min(waits) > self._patience.for_held:
            raise QueueFull(
                f"every replica of {self.model!r} asked to be left alone for a while{self._why(now)}",
                retry_after=min(waits),
            )

    def _held_for(self, member: Member, now: float) -> float:
        if member.standing(now) in (Standing.DOWN, Standing.DRAINING):
            return float("inf")
        return max(member.held_until - now, 0.0)

    def _why(self, now: float) -> str:
        reasons = [f"{name}: {m.why(now)}" for name, m in self.members.items() if m.why(now)]
        return f" ({'; '.join(reasons)})" if reasons else ""

    def _least_seconds(self, arrival: Arrival) -> float:
        """What the prompt takes at least: on the fastest replica, idle. 0 where the speed of one is not known."""
        return least_seconds(
            arrival.weight.prompt_tokens, [member.state.step_cost for member in self.members.values()]
        )

    def _refuse(self, request_id: str, error: Refused) -> None:
        waiting = self._waiting.pop(request_id, None)
        if waiting is not None and not waiting.place.done():
            waiting.place.set_exception(error)


def _fresh(lease: Lease) -> int:
    return lease.arrival.weight.prompt_tokens - lease.choice.cached_tokens


__all__ = ["DeadlineMissed", "Dispatcher", "Lease", "NoReplica", "Patience"]
