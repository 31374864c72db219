"""The gateway's waiting line: when every replica is full, requests wait here and not in a replica's queue.

The order is the engine's (`engine.schedule.queue.FairQueue`): strict priority classes, inside a class the tenant with
the least service first (VTC), first come inside a tenant. It is a dispatch, not a score: whoever's turn it is
goes to whichever replica the policy says, so that no tenant can crowd out another by sending more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from weighbridge.cost.step import StepCost
from weighbridge.engine.schedule.admission import deadline_left
from weighbridge.engine.schedule.places import Backlog
from weighbridge.engine.schedule.queue import FairQueue
from weighbridge.errors import BadInput, DeadlineMissed, QueueFull
from weighbridge.fleet.api import Arrival

#: Lines of those that stand aside. Who would need one more waits in the common line, in which others wait behind.
MOST_LINES = 64
#: Seconds of a Retry-After that is no prediction.
SOON = 1.0
#: Replicas from which on what the fleet produces is worked out once for so many seconds.
LARGE, KEPT = 64, 0.1
#: Different step costs among which the fastest is looked for each time.
_FEW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Bounds of the line. Raises BadInput for values that cannot work."""

    max_requests: int = 4096
    max_tokens: int | None = None  # tokens of work of all that wait; None: no limit
    input_weight: float = 1.0  # service charged per prompt token computed (VTC)
    output_weight: float = 2.0  # and per token produced
    ageing_seconds: float | None = 30.0  # a class unserved for so long gets a turn; None: strictly never
    tenant_patience: float = (
        0.5  # a tenant that got no place for so long may crowd in where tenants share seats
    )

    def __post_init__(self) -> None:
        if self.max_requests < 0:
            raise BadInput("max_requests must not be negative; 0 refuses whatever cannot go at once")
        if not self.tenant_patience >= 0.0:
            raise BadInput("tenant_patience must be seconds of at least 0; inf waits for a free place")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}, but must be at least 1; leave it out for none")


class GatewayQueue:
    """Arrivals that wait for a replica. All operations are O(log n) or better.

    The caller dispatches: `peek`, choose a replica, `take`; then `charge` what is produced as it streams.
    `expired` gives up those whose deadline can no longer be met. `remove` is for clients that went away.

    Who waits for particular replicas is `set_aside`: those behind can go to others meanwhile. All who need the same
    have one line, which is as fair as the common one, and stay in the totals.
    """

    def __init__(self, settings: QueueSettings | None = None) -> None:
        self.settings = settings or QueueSettings()
        self._fair = self._new_line()
        self._aside: dict[Hashable, FairQueue[Arrival]] = {}
        self._line_of: dict[str, Hashable] = {}  # of those that stand aside
        self._latest: list[tuple[float, int, Arrival]] = []  # heap: when each must start at the latest
        self._count = 0

    def __len__(self) -> int:
        return len(self._fair)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._fair

    def by_class(self) -> dict[tuple[int, str], Backlog]:
        """What waits, by class and tenant. O(n)."""
        return self._fair.by_class()

    @property
    def tokens(self) -> int:
        """Expected tokens of work of all that wait."""
        return self._fair.num_tokens

    def push(
        self,
        arrival: Arrival,
        now: float,
        *,
        drain_seconds: float | None = 0.0,
        least_seconds: float = 0.0,
        front: bool = False,
    ) -> None:
        """Queue `arrival`, or raise QueueFull, DeadlineMissed or BadInput and keep nothing.

        `drain_seconds`: in which the fleet would work off what waits (see `work_seconds`), which becomes
        Retry-After; None: nobody knows, so no time is named. `least_seconds`: what the request takes at least on an
        idle replica. `front`: it was dispatched before and comes back, because its replica failed; it is never
        refused for the bound.
        """
        if arrival.id in self._fair:
            raise BadInput(f"a request with id {arrival.id!r} waits already; ids must differ", param="id")
        self._check_deadline(arrival, now, least_seconds)
        if not front:
            self._check_room(arrival, drain_seconds)
        self._fair.push(arrival, now, round(arrival.weight.expected_tokens), front=front)
        if arrival.deadline is not None:
            self._watch(arrival, arrival.deadline - least_seconds)

    def peek(self, now: float) -> Arrival | None:
        """Whose turn it is; None when nobody waits."""
        turn = self._fair.peek(now)
        return turn[0] if turn else None

    def set_aside(self, arrival: Arrival, kind: Hashable, now: float) -> bool:
        """Let those behind `arrival` pass: it stands in the line of its `kind` from now on. False: too many lines."""
        line = self._aside.get(kind)
        if line is None:
            if len(self._aside) >= MOST_LINES:
                return False
            line = self._aside[kind] = self._new_line()
        self._fair.hold(arrival.id)
        line.push(arrival, now, round(arrival.weight.expected_tokens))
        self._line_of[arrival.id] = kind
        return True

    @property
    def lines(self) -> list[Hashable]:
        """The kinds of those that stand aside."""
        return list(self._aside)

    def peek_aside(self, kind: Hashable, now: float) -> Arrival | None:
        """Whose turn it is in the line of a kind; None when there is none."""
        line = self._aside.get(kind)
        turn = None if line is None else line.peek(now)
        return turn[0] if turn else None

    def in_line(self, kind: Hashable) -> list[Arrival]:
        """All who stand aside in one line."""
        return list(self._aside.get(kind, ()))

    def unserved(self) -> Iterator[tuple[Arrival, float]]:
        """Yield the next request of each tenant in the most urgent class, and since when that tenant got nothing:
        the longest first."""
        return self._fair.unserved()

    def take(self, arrival: Arrival, now: float, cached_tokens: int = 0) -> None:
        """Take out `arrival`, which is dispatched: its tenant is charged the prompt tokens to be computed."""
        line = self._aside.get(self._line_of.get(arrival.id))
        if line is not None:
            line.take(arrival, now)
            self._left_line(arrival.id)
        self._fair.take(arrival, now)
        self.charge_prompt(arrival, cached_tokens)

    def charge_prompt(self, arrival: Arrival, cached_tokens: int) -> None:
        """Charge what of a prompt is to be computed: at least its last token, so that no place is for free."""
        self.charge(arrival, input_tokens=max(arrival.weight.prompt_tokens - cached_tokens, 1))

    def charge(self, arrival: Arrival, *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """Charge service that the tenant received meanwhile; negative to take a charge back."""
        self._fair.charge(arrival, input_tokens=input_tokens, output_tokens=output_tokens)
        for line in self._aside.values():
            line.charge(arrival, input_tokens=input_tokens, output_tokens=output_tokens)

    def remove(self, request_id: str) -> Arrival | None:
        """Take out a request whose client went away; None when it does not wait."""
        line = self._aside.get(self._line_of.get(request_id))
        if line is not None:
            line.remove(request_id)
            self._left_line(request_id)
        return self._fair.remove(request_id)

    def expired(self, now: float) -> list[Arrival]:
        """Take out and return those that can no longer meet their deadline, even if they went now."""
        gone: list[Arrival] = []
        while self._latest and self._latest[0][0] < now:
            arrival = heappop(self._latest)[2]
            if self._waits(arrival):
                self.remove(arrival.id)
                gone.append(arrival)
        return gone

    def wake_at(self) -> float | None:
        """When `expired` will have something to say, unless the line moves first."""
        while self._latest and not self._waits(self._latest[0][2]):
            heappop(self._latest)
        return self._latest[0][0] if self._latest else None

    # -- inside ----------------------------------------------------------------------------------------

    def _new_line(self) -> FairQueue[Arrival]:
        settings = self.settings
        return FairQueue(settings.input_weight, settings.output_weight, settings.ageing_seconds)

    def _left_line(self, request_id: str) -> None:
        kind = self._line_of.pop(request_id)
        if not len(self._aside[kind]):
            del self._aside[kind]

    def _waits(self, arrival: Arrival) -> bool:
        return arrival.id in self._fair

    def _check_deadline(self, arrival: Arrival, now: float, least_seconds: float) -> None:
        if arrival.deadline is not None and now + least_seconds > arrival.deadline:
            raise deadline_missed(arrival, now, least_seconds)

    def is_full(self, arrival: Arrival) -> bool:
        """Whether there is no room for `arrival`: too many wait, or too many tokens with it, and its tenant has its
        share of the line."""
        limits = self.settings
        tokens = arrival.weight.expected_tokens
        return self._fair.is_full_for(arrival.tenant, tokens, limits.max_requests, limits.max_tokens)

    def _check_room(self, arrival: Arrival, drain_seconds: float | None) -> None:
        if self.is_full(arrival):
            limits, tokens, waiting = self.settings, arrival.weight.expected_tokens, len(self)
            full = waiting >= limits.max_requests
            limit = f"{limits.max_requests} requests" if full else f"{limits.max_tokens} tokens"
            when = "later" if drain_seconds is None else f"in about {drain_seconds:.0f} s"
            raise QueueFull(
                f"{waiting} requests with {self.tokens} tokens of work wait for a replica, this one adds "
                f"{tokens:.0f}, and the queue takes at most {limit}; try again {when}",
                retry_after=SOON if drain_seconds is None else drain_seconds,
            )

    def _watch(self, arrival: Arrival, latest: float) -> None:
        """Sweep out, now and then, those that left long before their deadline."""
        self._count += 1
        heappush(self._latest, (latest, self._count, arrival))
        if len(self._latest) > 2 * len(self._fair) + 64:
            self._latest = [entry for entry in self._latest if self._waits(entry[2])]
            heapify(self._latest)

    def check_integrity(self) -> None:
        """Raise AssertionError unless totals and lines agree and every deadline of the line is watched."""
        self._fair.check_integrity()
        for kind, line in self._aside.items():
            line.check_integrity()
            if not len(line) or any(self._line_of.get(one.id) != kind for one in line):
                raise AssertionError("a line of those that stand aside is empty, or not theirs")
        if any(name not in self._fair or not self._fair.holds(name) for name in self._line_of):
            raise AssertionError("who stands aside is in the common line, or gone")
        watched = {entry[2].id for entry in self._latest}
        if any(a.deadline is not None and a.id not in watched for a in self._fair):
            raise AssertionError("a deadline in the queue is not watched")


def deadline_missed(arrival: Arrival, now: float, least_seconds: float) -> DeadlineMissed:
    """The error for a request that can no longer end in time."""
    left = (arrival.deadline or now) - now
    return DeadlineMissed(
        f"the deadline {deadline_left(left)}, but this request takes at least {least_seconds * 1e3:.0f} ms "
        "on the fastest replica; allow more time or shorten the prompt"
    )


#: Sequences of a usual batch, and the context of each: what the speed of a loaded replica is told by.
_BATCH, _CONTEXT = 32, 512


def work_seconds(tokens: float, costs: Sequence[StepCost | None]) -> float | None:
    """Return the seconds in which replicas with these step costs produce `tokens` together, in batches of usual size.

    Those whose speed is not known are left out, so that it is an upper bound; None when it is known of none. 0
    without replicas.
    """
    known = [cost.decode_seconds(_BATCH, _BATCH * _CONTEXT) / _BATCH for cost in costs if cost is not None]
    if costs and not known:
        return None
    return drain_seconds(tokens, known)


def drain_seconds(tokens: float, seconds_per_token: Sequence[float]) -> float:
    """Return the seconds in which replicas with these speeds work off `tokens` together; 0 without replicas."""
    speed = sum(1.0 / seconds for seconds in seconds_per_token if seconds > 0.0)
    return tokens / speed if speed else 0.0


def least_seconds(prompt_tokens: int, costs: Sequence[StepCost | None]) -> float:
    """What a prompt takes at least: on the fastest of these replicas, idle.

    0 where the speed of one is not known: nobody can say that it would be too slow.
    """
    return min((0.0 if cost is None else cost.prefill_seconds(prompt_tokens) for cost in costs), default=0.0)


class FleetSpeed:
    """What the replicas of a fleet produce together, and what a prompt takes on the fastest of them.

    `costs`: their step costs at a time, of those that are up only or of all. In a fleet of more than LARGE replicas
    they are asked again only after KEPT seconds, or where somebody has come or gone (`changed`): these are words for
    those who wait and are refused, of whom there may be thousands a second.
    """

    def __init__(self, costs: Callable[[float, bool], Sequence[StepCost | None]]) -> None:
        self._costs = costs
        self._up: Sequence[StepCost | None] = ()
        self._all: Sequence[StepCost | None] = ()
        self._replicas = 0
        self.changed()

    def changed(self) -> None:
        """Somebody has come or gone."""
        self._at = -math.inf

    def work_seconds(self, tokens: float, now: float) -> float | None:
        """Return the seconds in which those that are up work off `tokens` together (see the function)."""
        self._look(now)
        return work_seconds(tokens, self._up)

    def least_seconds(self, prompt_tokens: int, now: float) -> float:
        """Return what a prompt takes at least: on the fastest, idle. Where many are of different speeds, on one that is
        in each respect as fast as the fastest in that."""
        self._look(now)
        return least_seconds(prompt_tokens, self._all)

    def _look(self, now: float) -> None:
        if self._replicas > LARGE and 0.0 <= now - self._at < KEPT:
            return
        self._at = now
        everybody = self._costs(now, False)
        self._replicas = len(everybody)
        if self._replicas <= LARGE:
            self._up, self._all = self._costs(now, True), everybody
            return
        self._up = _together(self._costs(now, True))
        different = set(everybody)
        self._all = list(different) if len(different) <= _FEW or None in different else [_floor(different)]


def _together(costs: Sequence[StepCost | None]) -> Sequence[StepCost | None]:
    """One that is as fast as all of them together."""
    seconds = work_seconds(1.0, costs)
    if not seconds:
        return costs[:1]
    return (StepCost(0.0, 0.0, seconds, 0.0, 0.0),)


def _floor(costs: Iterable[StepCost | None]) -> StepCost:
    """A step cost that is below each of them."""
    known = [cost for cost in costs if cost is not None]
    return StepCost(
        overhead=min(cost.overhead for cost in known),
        memory=min(cost.memory for cost in known),
        per_token=min(cost.per_token for cost in known),
        per_context_token=min(cost.per_context_token for cost in known),
        per_sequence=min(cost.per_sequence for cost in known),
        per_prompt_pair=min(cost.per_prompt_pair for cost in known),
    )
