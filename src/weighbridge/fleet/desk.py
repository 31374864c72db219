"""Who goes where, and when: the policy chooses among members with room, the rest wait in the fair queue.

Pure: the time is passed in, nothing is awaited. The live gateway (`fleet.dispatch`) puts futures around it, the
simulator a virtual clock; both are told by it where each request goes:

    offer -> a lease now, or a place in the queue          pump -> leases for those who wait, in the queue's order
    lease.release -> the member has room again             expire, doubts -> those who wait in vain

Every decision is credited at once, so that two of them in the same millisecond see each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Generic, Protocol, TypeVar

from weighbridge.cost.step import StepCost
from weighbridge.engine.schedule.fairness import Seats
from weighbridge.errors import DeadlineMissed, NeverFits, QueueFull, Refused, some_of, wording
from weighbridge.fleet.api import Arrival, Choice
from weighbridge.fleet.load.queue import MOST_LINES, SOON, FleetSpeed, GatewayQueue, deadline_missed
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.policy import ComparesCosts, Policy
from weighbridge.fleet.policies.shortlist import Shortlist

#: Replicas up to which every one is looked at for every request. Beyond, a policy that compares costs looks at a few.
LARGE_FLEET = 64

#: Seconds for which it is known whether a kind of request waits for particular replicas.
LOOK_AGAIN = 0.25

NOBODY: Set[str] = frozenset()


class Standing(StrEnum):
    """A replica's place in the fleet, as `fleet list` shows it."""

    STARTING = "starting"  # not heard of yet
    UP = "up"
    DOWN = "down"
    OPEN = "breaker_open"
    HELD = "held"  # asked us to wait, or refuses our key
    FAULTY = "misconfigured"  # is not what the configuration takes it for
    DRAINING = "draining"


#: Standings from which a replica can be expected back soon; without any such, waiting is pointless.
_HOPEFUL = frozenset({Standing.STARTING, Standing.UP, Standing.OPEN, Standing.HELD})


class NoReplica(Refused):
    """No replica of the model is up, and none is about to be."""

    status = 503
    code = "no_replica"


class Seat(Protocol):
    """A replica as the desk sees it."""

    held_until: float  # it asked to be left alone so long

    @property
    def state(self) -> ReplicaState: ...

    def accepts(self, arrival: Arrival, now: float) -> bool:
        """Whether it may be sent `arrival` now."""
        ...

    def can_ever(self, arrival: Arrival, now: float) -> bool:
        """Whether it could serve `arrival` if it had nothing else to do."""
        ...

    def usable(self, now: float) -> bool:
        """Whether it may be sent anything now, room or not."""
        ...

    def takes_turns(self, arrival: Arrival, now: float) -> bool:
        """Whether it may be sent `arrival` now, room or not, because it shares its seats among tenants by itself."""
        ...

    def standing(self, now: float) -> Standing: ...

    def why(self, now: float) -> str:
        """What stands against it now, in words; empty when nothing does."""
        ...

    def reserve(self, arrival: Arrival, now: float) -> bool:
        """Set the request aside in rate limits of the replica's own; False when they have no room for it."""
        ...

    def sent(self, now: float) -> None:
        """Take note that a request is on its way there."""
        ...

    def settle(self, arrival: Arrival, produced: int, now: float) -> None:
        """Take note that a request is over there, after `produced` output tokens."""
        ...


Member = TypeVar("Member", bound=Seat)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds a request waits in the queue at most, waits for any replica to come up, and for one that asked
    to be left alone."""

    max_wait: float = 600.0
    for_any: float = 10.0
    for_held: float = 10.0


@dataclass(slots=True, eq=False)
class Lease(Generic[Member]):
    """A request's place on a replica: credited before it is sent, drawn down as it streams, released once."""

    desk: Desk[Member]
    member: Member
    arrival: Arrival
    choice: Choice
    sent: float
    expected_first: float | None  # predicted seconds until its first token; None: not learned
    copy: bool = False  # a hedge
    started: bool = False
    produced: int = 0
    charged: int = 0  # of what is produced, so far

    def first_byte(self, now: float) -> None:
        self.started = True
        self.member.state.first_token(self.arrival.id, now)
        self.desk.touch(self.member.state.name, now)

    def tokens(self, count: int, now: float) -> None:
        self.produced += count
        self.member.state.tokens(self.arrival.id, count, now)
        self.desk.streamed(self)

    def look_away(self) -> None:
        """Learn nothing of the replica's speed from this one any more."""
        self.member.state.look_away(self.arrival.id)

    def release(self, now: float) -> None:
        """Give the place to whoever waits. Idempotent."""
        if self.member.state.release(self.arrival.id, now, self.produced):
            self.member.settle(self.arrival, self.produced, now)
            self.desk.over(self, now)


@dataclass(frozen=True, slots=True)
class _Waiting:
    arrival: Arrival
    avoid: Set[str]
    streamed: bool


class Desk(Generic[Member]):
    """Places the requests of one model on its members.

    `freed` is called when a lease is released: whoever owns the desk pumps then, or later. `draw` picks the names
    of those that are looked at for one request, in fleets too large to ask everybody; if it picks none, or none of
    them has room, all are looked at. `look` hears of members before they are asked. In fleets of more than `large`
    replicas a policy that compares costs sees a few of them (see `policies.shortlist`).
    """

    def __init__(
        self,
        model: str,
        policy: Policy,
        queue: GatewayQueue,
        patience: Patience,
        *,
        freed: Callable[[float], None] = lambda now: None,
        draw: Callable[[], Sequence[str]] | None = None,
        look: Callable[[Collection[Member], float], None] | None = None,
        large: int = LARGE_FLEET,
    ) -> None:
        self.model = model
        self.policy = policy
        self.queue = queue
        self.patience = patience
        self._members: dict[str, Member] = {}
        self._speed = FleetSpeed(self._step_costs)
        self._compares = policy if isinstance(policy, ComparesCosts) else None
        self._shortlist: Shortlist[Member] | None = None  # of a large fleet
        self._freed = freed
        self._draw = draw
        self._large = large
        self._look = look
        self._waiting: dict[str, _Waiting] = {}
        self._places = Seats()  # in flight, by tenant
        self._in_flight: dict[int, int] = {}  # sequences by class
        self._classes: dict[str, dict[int, int]] = {}  # the same of each member
        self._hopeless_since: float | None = None
        self._line_hopeless: dict[Hashable, float] = {}  # the same, of those who stand aside
        self._aside_first = False
        self._particular: dict[Hashable, tuple[float, bool]] = {}  # until when it is known

    # -- replicas come and go --------------------------------------------------------------------------

    @property
    def members(self) -> Mapping[str, Member]:
        """By name. They change by `join` and `leave`."""
        return self._members

    def join(self, member: Member, now: float) -> None:
        """Take a replica into the fleet, under the name of its state."""
        name = member.state.name
        self.leave(name)
        self._members[name] = member
        self._hopeless_since = None  # however long there was nobody: patience begins with who has come
        self._speed.changed()
        if self._shortlist is not None:
            self._shortlist.join(name, now)
        elif len(self._members) > self._large and self._compares is not None:
            self._shortlist = Shortlist(self._compares, self._members, now)

    def leave(self, name: str) -> Member | None:
        """Take a replica out of the fleet; None when it is not there."""
        member = self._members.pop(name, None)
        self._speed.changed()
        if member is not None and self._shortlist is not None:
            self._shortlist.leave(name)
            if len(self._members) <= self._large:
                self._shortlist = None
        return member

    def touch(self, name: str, now: float) -> None:
        """Take note that something changed at a replica that the desk was not told of otherwise: a report, a pause."""
        if self._shortlist is not None and name in self._members:
            self._shortlist.touch(name, now)

    # -- requests come ---------------------------------------------------------------------------------

    def place(
        self,
        arrival: Arrival,
        now: float,
        avoid: Set[str] = NOBODY,
        *,
        streamed: bool = True,
        copy: bool = False,
    ) -> Lease[Member] | None:
        """The place the policy chooses, credited; None when no member outside `avoid` has room.

        `streamed`: tokens will tell how far it has come. `copy`: a second one of a request that runs elsewhere.
        """
        refusing = avoid
        while candidates := self._candidates(arrival, refusing, now):
            choice = self._choose(arrival, candidates, now)
            member = self._members[choice.replica]
            if member.reserve(arrival, now):
                return self._credit(member, arrival, choice, now, streamed, copy)
            refusing = refusing | {choice.replica}
        return None

    def offer(
        self,
        arrival: Arrival,
        now: float,
        avoid: Set[str] = NOBODY,
        *,
        streamed: bool = True,
        again: bool = False,
    ) -> Lease[Member] | None:
        """Return a place now; else the request waits, and `pump` has its lease one day.

        `avoid` holds unless there is nobody else; `again`: it was placed before and its replica failed, so it goes to
        the front. Raises Refused: NeverFits, QueueFull, DeadlineMissed, NoReplica; then it does not wait.
        """
        if again or not len(self.queue):
            lease = self.place(arrival, now, avoid, streamed=streamed)
            if lease is not None:
                if not again:
                    self.queue.charge_prompt(arrival, lease.choice.cached_tokens)
                return lease
        self._check_possible(arrival, now)
        self.wait(arrival, now, avoid, streamed=streamed, front=again)
        return None

    def wait(
        self,
        arrival: Arrival,
        now: float,
        avoid: Set[str] = NOBODY,
        *,
        streamed: bool = True,
        front: bool = False,
    ) -> None:
        """Put it in the queue. Raises QueueFull and DeadlineMissed."""
        full = not front and self.queue.is_full(arrival)
        drain = self.drain_seconds(now, arrival.weight.expected_tokens) if full else 0.0
        self.queue.push(
            arrival, now, drain_seconds=drain, least_seconds=self._least_seconds(arrival, now), front=front
        )
        self._waiting[arrival.id] = _Waiting(arrival, avoid, streamed)

    def put(self, arrival: Arrival, name: str, now: float, *, streamed: bool = True) -> Lease[Member] | None:
        """Return the lease of a request that went to a member without being asked, room or not; None where there is no
        such member."""
        member = self._members.get(name)
        if member is None:
            return None
        choice = self.policy.choose(arrival, [member.state], now)
        return self._credit(member, arrival, choice, now, streamed, False)

    def withdraw(self, request_id: str) -> None:
        """Take a request out of the queue: its client is gone, or it has waited too long."""
        if self._waiting.pop(request_id, None) is not None:
            self.queue.remove(request_id)

    @property
    def waiting(self) -> list[str]:
        """The ids of those who wait."""
        return list(self._waiting)

    # -- places come free ------------------------------------------------------------------------------

    def pump(self, now: float) -> Iterator[Lease[Member]]:
        """Return a lease for as many of those who wait as there is room for, in the queue's order.

        A lease that was yielded is taken: who does not want it releases it. Tenants that have waited for too long
        crowd in behind the others, where replicas share their seats among tenants. Who waits for particular replicas
        stands aside, so that nobody waits behind for those that are free: before the others and behind them in turns,
        unless one of both is more urgent.
        """
        lines = self.queue.lines
        first = self._lines_first(lines, now) if lines else ()
        for kind in first:
            yield from self._pump_line(kind, now)
        while (arrival := self.queue.peek(now)) is not None:
            lease = self._place_waiting(arrival, now)
            if lease is not None:
                yield self._taken(lease, now)
            elif not self._is_particular(arrival, now) or not self.queue.set_aside(
                arrival, _kind(arrival), now
            ):
                break
        for kind in lines:
            if kind not in first:
                yield from self._pump_line(kind, now)
        while (arrival := self._overdue(now)) is not None:
            lease = self._beyond_seats(arrival, now)
            if lease is None:
                return
            yield self._taken(lease, now)

    def _place_waiting(self, arrival: Arrival, now: float) -> Lease[Member] | None:
        """Return a place for one of those who wait; None when there is none for it now."""
        waiting = self._waiting[arrival.id]
        lease = self.place(arrival, now, self._avoiding(waiting, now), streamed=waiting.streamed)
        if lease is None and self._is_more_urgent(arrival):
            lease = self._beyond_seats(arrival, now, partial(self._makes_room, arrival))
        return lease

    def _lines_first(self, lines: Sequence[Hashable], now: float) -> Sequence[Hashable]:
        """Return the lines of those aside that go before the common one: of one urgency, they take turns."""
        self._aside_first = not self._aside_first
        common = self.queue.peek(now)
        if common is None:
            return lines
        limit = common.priority if self._aside_first else common.priority - 1
        heads = [(kind, self.queue.peek_aside(kind, now)) for kind in lines]
        return [kind for kind, head in heads if head is not None and head.priority <= limit]

    def _pump_line(self, kind: Hashable, now: float) -> Iterator[Lease[Member]]:
        """Return leases for those of a line that stands aside, as long as there is room for its next one."""
        while (arrival := self.queue.peek_aside(kind, now)) is not None:
            lease = self._place_waiting(arrival, now)
            if lease is None:
                return
            yield self._taken(lease, now)

    def _is_particular(self, arrival: Arrival, now: float) -> bool:
        """Whether others than the next in line could go to replicas that can never serve this one.

        Looked up for a kind of request now and then only: everybody is asked.
        """
        kind = _kind(arrival)
        known = self._particular.get(kind)
        if known is None or now >= known[0]:
            if len(self._particular) >= MOST_LINES:
                self._particular.clear()
            members = self._members.values()
            found = any(member.usable(now) and not member.can_ever(arrival, now) for member in members)
            known = self._particular[kind] = now + LOOK_AGAIN, found
        return known[1]

    def stranded(self, now: float) -> list[tuple[Arrival, Refused]]:
        """Return those who wait for particular replicas, none of which is up or about to be for `patience.for_any`."""
        gone: list[tuple[Arrival, Refused]] = []
        hopeless: dict[Hashable, float] = {}
        for kind in self.queue.lines:
            head = self.queue.peek_aside(kind, now)
            if head is None or self._hope_for(head, now):
                continue
            since = hopeless[kind] = self._line_hopeless.get(kind, now)
            if now - since >= self.patience.for_any:
                error = NoReplica(
                    wording(
                        "no replica of {!r} that can serve this request is up{}", self.model, self._why(now)
                    ),
                    retry_after=5.0,
                )
                gone += [(arrival, error) for arrival in self.queue.in_line(kind)]
        self._line_hopeless = hopeless
        return gone

    def _hope_for(self, arrival: Arrival, now: float) -> bool:
        return any(
            member.standing(now) in _HOPEFUL and member.can_ever(arrival, now)
            for member in self._members.values()
        )

    def over(self, lease: Lease[Member], now: float) -> None:
        """Charge what was produced, since a lease was released."""
        self._places.give_back(lease.arrival.tenant)
        self._count_class(lease.member.state.name, lease.arrival, -1)
        self._charge(lease)
        self.touch(lease.member.state.name, now)
        self._freed(now)

    def streamed(self, lease: Lease[Member]) -> None:
        """Note that more was produced. It counts at once while somebody waits: who has all places and lets them work
        for long would else be next again."""
        if self._waiting:
            self._charge(lease)

    def _charge(self, lease: Lease[Member]) -> None:
        self.queue.charge(lease.arrival, output_tokens=lease.produced - lease.charged)
        lease.charged = lease.produced

    def expire(self, now: float) -> list[tuple[Arrival, DeadlineMissed]]:
        """Take out and return those who can no longer meet their deadline."""
        gone = self.queue.expired(now)
        for arrival in gone:
            del self._waiting[arrival.id]
        return [
            (arrival, deadline_missed(arrival, now, self._least_seconds(arrival, now))) for arrival in gone
        ]

    def doubt(self, now: float) -> Refused | None:
        """Why waiting is in vain, for everybody; None while a member may come up or have room."""
        if not self._waiting:
            self._hopeless_since = None if self._hope(now) else self._hopeless_since or now
            return None
        try:
            self._check_hope(now)
        except Refused as error:
            return error
        return None

    # -- what is predicted -----------------------------------------------------------------------------

    def drain_seconds(self, now: float, more: float = 0.0) -> float | None:
        """Return the seconds in which the replicas that are up work off what waits and `more` tokens; at least
        a second."""
        seconds = self.work_seconds(self.queue.tokens + more, now)
        return None if seconds is None else max(seconds, SOON)

    def work_seconds(self, tokens: float, now: float) -> float | None:
        """Return the seconds in which the replicas that are up and of known speed produce `tokens` together.

        None when replicas are up, but the speed of none of them is known.
        """
        return self._speed.work_seconds(tokens, now)

    def backlog_seconds(
        self, states: Collection[ReplicaState], now: float
    ) -> tuple[float | None, float | None]:
        """Return the seconds in which what waits to be begun, here or at `states`, is worked off; and the same with all
        that is in flight there."""
        # A prompt that is not computed has not begun.
        waiting = self.queue.tokens + sum(state.uncomputed_tokens for state in states)
        produced = sum(state.remaining_output for state in states)
        return self.work_seconds(waiting, now), self.work_seconds(waiting + produced, now)

    # -- inside ----------------------------------------------------------------------------------------

    def _taken(self, lease: Lease[Member], now: float) -> Lease[Member]:
        """Note that who has this lease waits no more."""
        self.queue.take(lease.arrival, now, lease.choice.cached_tokens)
        del self._waiting[lease.arrival.id]
        return lease

    def _overdue(self, now: float) -> Arrival | None:
        """Return who may crowd in: its tenant got nothing for `tenant_patience`, and has two places fewer than another.

        Those passed over have places, so that no more of them are looked at than there are places.
        """
        if self._places.most < 2:
            return None
        for arrival, since in self.queue.unserved():
            if now < since + self.queue.settings.tenant_patience:
                return None
            if self._places.of(arrival.tenant) + 2 <= self._places.most:
                return arrival
        return None

    def _is_more_urgent(self, arrival: Arrival) -> bool:
        """Whether anything less urgent is in flight, and nobody is to wait for a free place."""
        if self.queue.settings.tenant_patience == math.inf:
            return False
        return max(self._in_flight, default=arrival.priority) > arrival.priority

    def _makes_room(self, arrival: Arrival, name: str) -> bool:
        """Whether a replica that has no seat free would let something less urgent give way: one that does so for us has
        seats that are not taken by what is as urgent."""
        there = self._classes.get(name, {})
        as_urgent = sum(count for priority, count in there.items() if priority <= arrival.priority)
        seats = self._members[name].state.capacity.max_sequences
        return sum(there.values()) > as_urgent and as_urgent + arrival.weight.choices <= seats

    def _beyond_seats(
        self, arrival: Arrival, now: float, may: Callable[[str], bool] = lambda name: True
    ) -> Lease[Member] | None:
        """Return a place beyond the seats of a replica that shares them out by itself; None where there is none.

        `may`: whether the replica of a name is one of them.
        """
        waiting = self._waiting[arrival.id]
        avoid = self._avoiding(waiting, now)
        if self._shortlist is not None:
            takers = self._shortlist.takers(arrival, avoid, now)
        else:
            takers = [m for n, m in self._members.items() if n not in avoid and m.takes_turns(arrival, now)]
        takers = [member for member in takers if may(member.state.name)]
        if not takers:
            return None
        choice = self._choose(arrival, [member.state for member in takers], now)
        member = self._members[choice.replica]
        if not member.reserve(arrival, now):
            return None
        return self._credit(member, arrival, choice, now, waiting.streamed, False)

    def _choose(self, arrival: Arrival, candidates: Sequence[ReplicaState], now: float) -> Choice:
        if self._shortlist is None or self._compares is None:
            return self.policy.choose(arrival, candidates, now)
        choice = self._compares.choose_of(arrival, candidates, now, self._shortlist.usual(now))
        self._shortlist.sent(arrival.weight.prompt_tokens - choice.cached_tokens)
        return choice

    def _candidates(self, arrival: Arrival, refusing: Set[str], now: float) -> list[ReplicaState]:
        members = self._members
        if arrival.among is not None:
            some = {name: members[name] for name in sorted(arrival.among) if name in members}
            return self._open(some, arrival, refusing, now)
        if self._draw is not None and (names := self._draw()):
            drawn = self._open({name: members[name] for name in names}, arrival, refusing, now)
            if drawn:
                return drawn
        if self._shortlist is None:
            return self._open(members, arrival, refusing, now)
        listed = self._shortlist.candidates(arrival, refusing, now)
        if self._look is not None:
            self._look(listed, now)
        return [member.state for member in listed]

    def _open(
        self, members: dict[str, Member], arrival: Arrival, refusing: Set[str], now: float
    ) -> list[ReplicaState]:
        if self._look is not None:
            self._look(members.values(), now)
        return [
            member.state
            for name, member in members.items()
            if name not in refusing and member.accepts(arrival, now)
        ]

    def _credit(
        self, member: Member, arrival: Arrival, choice: Choice, now: float, streamed: bool, copy: bool
    ) -> Lease[Member]:
        state, held = member.state, choice.cached_tokens
        forecast = choice.forecast
        if forecast is None:
            forecast = state.expected_first(arrival.weight.prompt_tokens - held, held, now)
        state.credit(arrival, held, now, streamed=streamed, forecast=forecast)
        self._places.take(arrival.tenant)
        self._count_class(state.name, arrival, 1)
        member.sent(now)
        self.touch(state.name, now)
        return Lease(self, member, arrival, choice, now, None if forecast is None else forecast.first, copy)

    def _count_class(self, name: str, arrival: Arrival, sign: int) -> None:
        """Count an arrival, or take it out, in what is in flight at a member of this name."""
        there = self._classes.get(name)
        if there is None:
            there = self._classes[name] = {}
        priority, change = arrival.priority, sign * arrival.weight.choices
        for counts in (self._in_flight, there):
            count = counts.get(priority, 0) + change
            if count:
                counts[priority] = count
            else:
                del counts[priority]
        if not there:
            del self._classes[name]

    def _avoiding(self, waiting: _Waiting, now: float) -> Set[str]:
        if not waiting.avoid:
            return NOBODY
        others = (m for name, m in self._members.items() if name not in waiting.avoid)
        return waiting.avoid if any(m.usable(now) and m.state.healthy for m in others) else NOBODY

    def _check_possible(self, arrival: Arrival, now: float) -> None:
        members = self._members.values()
        if members and not any(member.state.fits(arrival) for member in members):
            limits = {m.state.capacity.max_model_len or m.state.capacity.kv_tokens for m in members}
            longest = max(limit for limit in limits if limit is not None)
            weight = arrival.weight
            prompt = weight.prompt_tokens // weight.prompts
            raise NeverFits(
                f"{prompt} prompt tokens and up to {weight.max_tokens} more are beyond the "
                f"{longest} tokens that any replica of {self.model!r} takes; shorten the prompt or lower max_tokens"
            )
        if members and not any(member.can_ever(arrival, now) for member in members):
            raise NeverFits(
                f"no replica of {self.model!r} has both room for {arrival.weight.prompt_tokens} prompt tokens and up "
                f"to {arrival.weight.max_tokens} more and what else this request needs; shorten it or lower max_tokens"
            )
        self._check_hope(now)

    def _hope(self, now: float) -> bool:
        return any(member.standing(now) in _HOPEFUL for member in self._members.values())

    def _check_hope(self, now: float) -> None:
        """Raise NoReplica or QueueFull when waiting would be in vain."""
        if not self._hope(now):
            self._hopeless_since = self._hopeless_since or now
            if now - self._hopeless_since >= self.patience.for_any:
                message = wording("no replica of {!r} is up{}", self.model, self._why(now))
                raise NoReplica(message, retry_after=5.0)
            return
        self._hopeless_since = None
        if self.patience.for_held == math.inf:
            return
        members = self._members.values()
        if members and all(self._held_for(member, now) > self.patience.for_held for member in members):
            raise QueueFull(
                wording(
                    "every replica of {!r} asked to be left alone for a while{}", self.model, self._why(now)
                ),
                retry_after=min(self._held_for(member, now) for member in members),
            )

    def _held_for(self, member: Member, now: float) -> float:
        if member.standing(now) in (Standing.DOWN, Standing.DRAINING):
            return math.inf
        return max(member.held_until - now, 0.0)

    def _why(self, now: float) -> str:
        reasons = [wording("{}: {}", name, m.why(now)) for name, m in self._members.items() if m.why(now)]
        return wording(" ({})", some_of(reasons, joint="; ")) if reasons else ""

    def _least_seconds(self, arrival: Arrival, now: float) -> float:
        """What the prompt takes at least: on the fastest replica, idle. 0 where the speed of one is not known."""
        return (
            0.0 if arrival.deadline is None else self._speed.least_seconds(arrival.weight.prompt_tokens, now)
        )

    def _step_costs(self, now: float, up: bool) -> list[StepCost | None]:
        members = self._members.values()
        return [m.state.step_cost for m in members if not up or m.standing(now) is Standing.UP]

    def check_integrity(self) -> None:
        """Raise AssertionError unless all who wait are in the queue, and nobody else."""
        self.queue.check_integrity()
        if len(self._waiting) != len(self.queue) or any(name not in self.queue for name in self._waiting):
            raise AssertionError("the queue does not hold exactly those who wait")
        if sum(map(Counter, self._classes.values()), Counter()) != self._in_flight:
            raise AssertionError("what is in flight is not counted by class")
        if self._shortlist is not None:
            self._shortlist.check_integrity()


def _kind(arrival: Arrival) -> Hashable:
    """What those have in common that the same replicas can serve: what they need, and about how long they are."""
    weight = arrival.weight
    return arrival.needs, arrival.among, weight.fitting_tokens.bit_length()
