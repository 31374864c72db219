"""Which replicas of a large fleet are worth looking at for one request, without looking at all.

    holders   those that hold the longest beginnings of its prompt            (`load.prefix_index`)
    cheapest  those where a usual request would cost least, or one with a long prompt    (`load.cost_order`)
    turn      the next few of all, one after the other

Where others send to the same replicas, who is cheapest is known to all of them alike, from the same reports, and all
would send there until the next ones. So the more of what is there is others', the fewer of the cheapest are looked at,
and the more of those whose turn it is: each gateway is elsewhere in its round.

A replica's place in the order is what was true when something last happened there: a request sent, a first token, an
end, a report. Time changes it too: lines are worked off, pauses end, reports fade. Whose turn it is, is looked at
anew, so that nobody's place is older than a round; and where nobody has room, everybody is asked once in a while.
Pure, and without chance: the same history gives the same list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Generic, Protocol, TypeVar

from weighbridge.cost.mean import Mean
from weighbridge.cost.weight import OutputEstimate, Weight
from weighbridge.fleet.api import Arrival
from weighbridge.fleet.load.cost_order import CostOrder
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.policy import ComparesCosts, Usual

#: How many of each kind are looked at.
HOLDERS, CHEAPEST, TURN = 6, 8, 2
#: How many whose turn it is are looked at where all that is there is others'.
SPREAD = 12
#: Of the holders, those with the longest beginnings, and of how many others the rest are the cheapest.
DEEPEST, LEADING = 3, 32
_ENOUGH = HOLDERS + CHEAPEST + TURN
#: Replicas asked for room at most once somebody has it.
ASKED = 128
#: Seconds between two times that everybody is asked for room in vain.
ASK_AGAIN = 0.05
#: A long prompt, by which the second order goes, in usual ones; and from where on a prompt counts as long.
LONG, LONG_FROM = 4, 2
#: By how much the usual may change until all costs are computed anew, and of how many replicas with each decision: a
#: thousand at once would hold up the loop for 10 ms.
DRIFT, RENEWED = 1.5, 16

#: Who has no room for this one has none for anybody who does not find its prompt cached.
_SMALLEST = Arrival("", "", Weight(1, 1, OutputEstimate(1.0, 1, 1)), 0.0)


class Listed(Protocol):
    """A replica as the list sees it."""

    @property
    def state(self) -> ReplicaState: ...
    def accepts(self, arrival: Arrival, now: float) -> bool: ...
    def usable(self, now: float) -> bool: ...
    def takes_turns(self, arrival: Arrival, now: float) -> bool: ...


One = TypeVar("One", bound=Listed)


class Shortlist(Generic[One]):
    """Told of every change by `join`, `leave` and `touch`. `members` is the fleet, shared with the desk."""

    def __init__(self, policy: ComparesCosts, members: Mapping[str, One], now: float) -> None:
        self._policy = policy
        self._members = members
        self._room = CostOrder()  # those that had room when last looked at
        self._long = CostOrder()  # the same, by what a long prompt costs
        self._full = CostOrder()  # those that had none, or were not to be used: the latter at the end
        self._streams: dict[str, float] = {}  # of those with room
        self._total = 0.0  # of these
        self._foreign: dict[str, float] = {}  # streams there that are others'
        self._others = 0.0  # of these
        self._unknown: set[str] = set()  # whose speed nobody knows, of those in use
        self._prompt = Mean(0.01)
        self._usual = Usual(0, 1.0, 512, True)  # as the costs in the order were computed
        self._old: list[str] = []  # whose costs were computed for what was usual before
        self._round: list[str] = []
        self._turn = 0
        self._vain: _Vain | None = None
        for name in members:
            self.join(name, now)

    # -- what changes ----------------------------------------------------------------------------------

    def join(self, name: str, now: float) -> None:
        self._round.append(name)
        self.touch(name, now)

    def leave(self, name: str) -> None:
        """Forget a replica that is in the fleet no more."""
        self._round.remove(name)
        for order in (self._room, self._long, self._full):
            order.discard(name)
        self._forget_streams(name)
        self._unknown.discard(name)

    def touch(self, name: str, now: float) -> None:
        """Look at a replica anew, since something happened there."""
        member = self._members[name]
        state = member.state
        has_room = member.accepts(_SMALLEST, now)
        usable = has_room or (member.usable(now) and state.healthy)
        if usable and not state.speed_known:
            self._unknown.add(name)
        else:
            self._unknown.discard(name)
        self._forget_streams(name)
        usual, cost = self._usual, self._policy.usual_cost
        if has_room:
            self._full.discard(name)
            self._room.set(name, cost(state, usual, usual.prompt_tokens, now))
            self._long.set(name, cost(state, usual, LONG * usual.prompt_tokens, now))
            self._streams[name] = streams = state.streams(now)
            self._total += streams
            self._foreign[name] = foreign = streams - state.sequences
            self._others += foreign
            if self._vain is not None:
                self._vain.since[name] = None
        else:
            self._room.discard(name)
            self._long.discard(name)
            self._full.set(name, cost(state, usual, usual.prompt_tokens, now) if usable else math.inf)
            if self._vain is not None:
                self._vain.since.pop(name, None)

    def _forget_streams(self, name: str) -> None:
        self._total -= self._streams.pop(name, 0.0)
        self._others -= self._foreign.pop(name, 0.0)

    def sent(self, fresh_tokens: int) -> None:
        """Take note of a request of whose prompt so many tokens are to be computed where it was sent."""
        self._prompt.add(fresh_tokens)

    def usual(self, now: float) -> Usual:
        """What the fleet is like. Has all costs computed anew where that has become something else: a few with each
        decision, or all at once where they are in another unit from now on."""
        here = len(self._streams)
        streams = self._total / here if here else self._usual.streams
        prompt = self._prompt.value or self._usual.prompt_tokens
        usual = Usual(len(self._members), streams, max(round(prompt), 1), not self._unknown)
        at_once = usual.speeds_known is not self._usual.speeds_known
        if at_once or _differ(usual, self._usual):
            self._usual = usual
            self._old = self._round[:]
        for name in self._old[-RENEWED:] if not at_once else self._old:
            if name in self._members:
                self.touch(name, now)
        del self._old[-RENEWED if not at_once else 0 :]
        return usual

    # -- what is asked ---------------------------------------------------------------------------------

    def candidates(self, arrival: Arrival, refusing: Set[str], now: float) -> list[One]:
        """Return replicas outside `refusing` that may be sent `arrival` now: a few good ones; none where nobody may, as
        far as is known."""
        found: dict[str, One] = {}
        alone = 1.0 - self._others / self._total if self._total > 0.0 else 1.0
        cheapest = round(CHEAPEST * alone)
        turn = self._next(round(SPREAD + (TURN - SPREAD) * alone))
        for name in turn:
            self.touch(name, now)
        holders, fresh = self._holders(arrival)
        self._ask((*holders, *turn), found, arrival, refusing, now)
        if self._vain is not None and self._vain.covers(arrival, now):
            self._ask(list(self._vain.since), found, arrival, refusing, now)
            return list(found.values())
        self._vain = None
        is_long = fresh > LONG_FROM * self._usual.prompt_tokens
        self._ask_cheapest(
            self._long if is_long else self._room,
            CHEAPEST if not found else cheapest,
            found,
            arrival,
            refusing,
            now,
        )
        if not found:
            self._ask(self._full, found, arrival, refusing, now)
            for name in found:
                self.touch(name, now)
        if not found:
            self._vain = _Vain(arrival if len(self._room) else _SMALLEST, now, refusing)
        return list(found.values())

    def takers(self, arrival: Arrival, avoid: Set[str], now: float) -> list[One]:
        """Return replicas outside `avoid` that share their seats among tenants and may be sent `arrival` beyond
        them: the cheapest few."""
        found: list[One] = []
        for order in (self._full, self._room):
            for name in order:
                member = self._members[name]
                if name not in avoid and member.takes_turns(arrival, now):
                    found.append(member)
                    if len(found) >= CHEAPEST:
                        return found
        return found

    # -- inside ----------------------------------------------------------------------------------------

    def _holders(self, arrival: Arrival) -> tuple[list[str], int]:
        """Who holds most of the prompt, and how many tokens are to be computed there at least."""
        prompt = arrival.weight.prompt_tokens
        if not arrival.chain or not self._round:
            return [], prompt
        index = self._members[self._round[0]].state.index  # one for the whole fleet
        if index is None:
            return [], prompt
        names = [one for one in index.leading(arrival.chain, LEADING, self._turn) if one in self._members]
        if len(names) > HOLDERS:
            names[DEEPEST:] = sorted(names[DEEPEST:], key=self._room.cost)[: HOLDERS - DEEPEST]
        return names, prompt - (self._members[names[0]].state.cached_tokens(arrival) if names else 0)

    def _next(self, count: int) -> list[str]:
        """Whose turn it is."""
        if self._turn >= len(self._round):
            self._turn = 0
        begin = self._turn
        self._turn += count
        return self._round[begin : self._turn]

    def _ask(
        self, names: Iterable[str], found: dict[str, One], arrival: Arrival, refusing: Set[str], now: float
    ) -> None:
        """Add those of `names` to `found` that may be sent `arrival`, until there are enough to choose from."""
        for name in names:
            member = self._members.get(name)
            if member is not None and name not in refusing and member.accepts(arrival, now):
                found[name] = member
                if len(found) >= _ENOUGH:
                    return

    def _ask_cheapest(
        self,
        order: CostOrder,
        left: int,
        found: dict[str, One],
        arrival: Arrival,
        refusing: Set[str],
        now: float,
    ) -> None:
        """Add the `left` cheapest that may be sent `arrival`."""
        refused: list[str] = []
        for asked, name in enumerate(order):
            if not left:
                break
            if name in refusing:
                continue
            member = self._members[name]
            if name in found or member.accepts(arrival, now):
                found[name] = member
                left -= 1
            else:
                refused.append(name)
            if asked >= ASKED and found:
                break
        for name in refused[:CHEAPEST]:
            self.touch(name, now)

    def check_integrity(self) -> None:
        """Raise AssertionError unless each replica is in one order, and the sums are those of what was seen."""
        self._room.check_integrity()
        self._long.check_integrity()
        self._full.check_integrity()
        both = [*self._room, *self._full]
        if sorted(both) != sorted(self._members) or sorted(self._round) != sorted(self._members):
            raise AssertionError("a replica is in no order, or in two")
        if (
            not sorted(self._streams) == sorted(self._room) == sorted(self._long)
            or abs(sum(self._streams.values()) - self._total) > 1e-6
            or abs(sum(self._foreign.values()) - self._others) > 1e-6
        ):
            raise AssertionError("the sequences of those with room are miscounted")


class _Vain:
    """That everybody was asked for room in vain: until then, only who has changed `since` is asked again."""

    def __init__(self, arrival: Arrival, now: float, refusing: Set[str]) -> None:
        self._weight, self._needs = arrival.weight, arrival.needs
        self._at = now
        self.since = dict.fromkeys(sorted(refusing))  # who was not asked, and who has changed and has room

    def covers(self, arrival: Arrival, now: float) -> bool:
        """Whether `arrival` needs as much room, and whatever else, as the one that found none."""
        weight, least = arrival.weight, self._weight
        return (
            now - self._at < ASK_AGAIN
            and self._needs <= arrival.needs
            and weight.prompt_tokens >= least.prompt_tokens
            and weight.max_tokens >= least.max_tokens
            and weight.choices >= least.choices
        )


def _differ(usual: Usual, known: Usual) -> bool:
    """Whether costs computed for one are of little use for the other."""
    streams = (usual.streams + 1.0) / (known.streams + 1.0)
    prompts = usual.prompt_tokens / known.prompt_tokens
    return not (1.0 / DRIFT < streams < DRIFT and 1.0 / DRIFT < prompts < DRIFT)
