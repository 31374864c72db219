"""What the gateway sent to one replica and how far that has come, in tokens and seconds.

Load is credited before dispatch and drawn down as the answer streams, so that two decisions in the same
millisecond see each other (counting only after the response has begun sends a burst to one replica):

    credit -> first_token -> tokens ... -> release, each undone by the one exit

Between these events, prefill goes on as fast as the step cost says that a replica computes, and as experience with
it says (`pace.py`); but no prompt counts as computed before its first token proves it.
"""

from __future__ import annotations

import math
from itertools import islice

from weighbridge.cost.mean import Mean
from weighbridge.cost.step import StepCost
from weighbridge.engine.request import SPARE_CLASS
from weighbridge.fleet.api import Arrival, Capacity, ExpectedFirst
from weighbridge.fleet.kv.following import Following
from weighbridge.fleet.load.experience import LATE, Experience
from weighbridge.fleet.load.in_flight import InFlight, sums
from weighbridge.fleet.load.pace import PrefillPace
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.speed import LearnedSpeed

#: Tokens of an iteration at most, where prompts take next to nothing by themselves.
MOST_ROOM = float(1 << 30)


class OwnLoad:
    """Our own load of one replica. Every aggregate is O(1) to read and to keep.

    Attributes (read only for others): `sequences` in flight (choices counted), `decoding` of them past their
    first token, `context_tokens` of those; `uncomputed_tokens` of prompts and the `prefill_seconds` they take;
    `remaining_output` expected; `kv_tokens` held now or promised to prompts in flight.
    """

    __slots__ = (
        "_advanced_at",
        "_in_flight",
        "_line_begun",
        "_line_due",
        "_line_stands",
        "_line_width",
        "_prefilling",
        "_silent",
        "_told",
        "_typical_prompt",
        "capacity",
        "context_tokens",
        "decoding",
        "experience",
        "index",
        "kv",
        "kv_tokens",
        "line_work",
        "name",
        "pace",
        "prefill_seconds",
        "remaining_output",
        "sequences",
        "step_cost",
        "stretch",
        "uncomputed_tokens",
    )

    def __init__(self, name: str, capacity: Capacity, index: PrefixIndex | None, now: float) -> None:
        self.name = name
        self.index = index
        self.sequences = 0
        self.decoding = 0
        self.context_tokens = 0
        self.uncomputed_tokens = 0.0
        self.prefill_seconds = 0.0
        self.line_work = 0.0  # the same of all that was in line when it was sent
        self.remaining_output = 0.0
        self.kv_tokens = 0
        self._typical_prompt = Mean(0.05)  # prompt tokens to compute of a usual request, of ours
        self._silent: dict[str, InFlight] = {}  # not streamed and past their prefill: nothing tells how far
        self._in_flight: dict[str, InFlight] = {}
        self._prefilling: dict[str, InFlight] = {}  # in the order they were sent
        self._line_begun = now  # when the first in line could begin
        self._line_stands: tuple[int | None, int, StepCost] | None = (
            None  # for what nothing more of it can be done
        )
        self._line_width = 0  # tokens of its iterations then
        self._line_due = math.inf  # when the first in line has waited for longer than explains itself
        self._advanced_at = now
        self.pace = PrefillPace()
        self.experience = Experience(now)
        self.kv: Following | None = None  # what it says of its cache, where it does
        self.step_cost: StepCost | None = None  # told, stated or learned; None: its speed is not known
        self.stretch = 1.0  # seconds that one predicted second of prefill takes
        self.update_capacity(capacity)

    def update_capacity(self, capacity: Capacity) -> None:
        """Take over another step cost or cache size. What is in flight stays."""
        self.capacity = capacity
        told = capacity.step_cost
        self._told = told if told is not None and is_plausible(told) else None
        self._take_speed()
        if self.index is not None:
            tokens = capacity.kv_tokens
            self.index.add_replica(self.name, None if tokens is None else tokens // capacity.block_size)

    def begin_with(self, known: LearnedSpeed) -> bool:
        """Begin with the speed that another gateway has learned; False where something is known here."""
        if not self.experience.speed.begin_with(known):
            return False
        self._take_speed()
        return True

    def cached_tokens(self, arrival: Arrival) -> int:
        """Prompt tokens the replica is believed to hold; at least one token is left to compute."""
        if self.index is None or not arrival.chain:
            return 0
        known = self.known_tokens(arrival)
        if known is not None:
            return known
        blocks = self.index.matched(arrival.chain, (self.name,)).get(self.name, 0)
        return min(blocks * self.capacity.block_size, arrival.weight.prompt_tokens - 1)

    def known_tokens(self, arrival: Arrival) -> int | None:
        """The same, where it tells of its blocks and the prompt's are known; None: guess."""
        if self.kv is None or not arrival.weight.exact:
            return None
        return self.kv.cached_tokens(arrival.chain, arrival.weight.prompt_tokens, self._advanced_at)

    @property
    def tells(self) -> bool:
        """Whether a step cost is told or stated that may be one."""
        return self._told is not None

    @property
    def believed(self) -> bool:
        """Whether what is told of its speed is gone by; else that is learned."""
        return self._told is not None and not self.experience.trust.doubted

    @property
    def heard_at(self) -> float:
        """When something last came from it, or was sent to it when it was idle."""
        return self.experience.heard

    @property
    def requests(self) -> int:
        """Requests of this gateway in flight."""
        return len(self._in_flight)

    @property
    def spare_requests(self) -> int:
        """Those of them that get only what nobody else needs."""
        return sum([one.arrival.priority >= SPARE_CLASS for one in self._in_flight.values()])

    @property
    def outstanding_tokens(self) -> float:
        """Tokens of work in flight: prompts not computed, output not produced."""
        return self.uncomputed_tokens + self.remaining_output

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._in_flight

    # -- the life of a request --------------------------------------------------------------------------

    def credit(
        self,
        arrival: Arrival,
        cached_tokens: int,
        now: float,
        *,
        streamed: bool = True,
        forecast: ExpectedFirst | None = None,
    ) -> None:
        """Count `arrival` as sent, BEFORE it is. Raises ValueError when it is in flight here already.

        With `streamed` False no token will tell how far it has come: that is estimated until `release`. `forecast`:
        what was predicted for it, to be held against what happens.
        """
        if arrival.id in self._in_flight:
            raise ValueError(f"request {arrival.id!r} is in flight on {self.name!r} already")
        self.advance(now)
        weight = arrival.weight
        fresh = weight.prompt_tokens - cached_tokens
        cost = self.step_cost
        work = 0.0 if cost is None else cost.prefill_work(fresh, cached_tokens)
        request = InFlight(
            arrival=arrival,
            sent=now,
            streamed=streamed,
            cached_tokens=cached_tokens,
            uncomputed=float(fresh),
            work=work,
            remaining=weight.choices * weight.output.mean,
            forecast=forecast,
            level=self.sequences,
            watched=arrival.priority < SPARE_CLASS,  # whoever lets others pass says nothing of speed
        )
        if not self._in_flight:
            self.experience.heard = now
        first = not self._prefilling
        self._line_stands = None
        self._in_flight[arrival.id] = self._prefilling[arrival.id] = request
        if first:
            self.pace.begin()
            self._watch_line()
        self.sequences += weight.choices
        self.uncomputed_tokens += request.uncomputed
        self.prefill_seconds += request.work
        self.line_work += request.whole_work
        self.remaining_output += request.remaining
        self.kv_tokens += weight.prompt_tokens
        self._typical_prompt.add(fresh)
        if self.index is not None and arrival.chain:
            self.index.enter(self.name, arrival.chain)
            if self.kv is not None:
                self.kv.sent(arrival.chain)

    def first_token(self, request_id: str, now: float) -> None:
        """Take note of a first token: its prompt is computed, and the request decodes from now on."""
        request = self._in_flight.get(request_id)
        if request is not None and not request.started:
            self.advance(now)
            held = False
            if request.streamed and request.watched:
                line = len(self._prefilling) > 1
                held = self.experience.first_token(request, self.decoding, line, self._told, now)
            if held:
                self.pace.disturb()
            elif self.step_cost is not None:
                full = self.step_cost.per_token * self.capacity.max_batch_tokens
                self.pace.first_token(request.whole_work, full)
            if self.kv is not None and request.arrival.weight.exact:
                self.kv.computed(request.fresh, now)
            self._begin(request)
            self._take_speed()

    def _begin(self, request: InFlight) -> None:
        if request.started:
            return  # not streamed, and taken to have begun already
        self._prefilled(request)
        request.started = True
        choices = request.arrival.weight.choices
        self.decoding += choices
        self.context_tokens += choices * request.arrival.weight.prompt_tokens

    def tokens(self, request_id: str, n: int, now: float) -> None:
        """Take note of `n` more output tokens, of all choices together."""
        request = self._in_flight.get(request_id)
        if request is None or n <= 0:
            return
        if not request.started:
            self.first_token(request_id, now)
        request.produced += n
        self.context_tokens += n
        self.kv_tokens += n
        self.experience.elapse(self.decoding, now)
        if request.streamed:
            line = self._prefilling
            if self.experience.tokens(request, self.decoding, line, self._told, now):
                self._take_speed()
        left = max(request.remaining - n, 0.0)
        if request.produced >= request.revise_at:
            left = self._expected_rest(request)
        self.remaining_output += left - request.remaining
        request.remaining = left

    def look_away(self, request_id: str) -> None:
        """Learn nothing of the replica's speed from this one any more: its client sets the pace, or it was refused."""
        request = self._in_flight.get(request_id)
        if request is not None:
            request.watched = False

    def release(self, request_id: str, now: float, produced: int = 0) -> bool:
        """Forget a request, however it ended; False when it was not in flight here (any more).

        `produced`: output tokens of one that was not streamed, as its end told.
        """
        request = self._in_flight.pop(request_id, None)
        if request is None:
            return False
        self.advance(now)
        line = self._prefilling
        self.experience.end(request, self.decoding, self.sequences, line, self._told, now, produced)
        if not request.started:
            self.pace.disturb()
        self._prefilled(request)
        self._silent.pop(request_id, None)
        weight = request.arrival.weight
        self.sequences -= weight.choices
        self.remaining_output -= request.remaining
        self.kv_tokens -= weight.prompt_tokens + request.produced
        if request.started:
            self.decoding -= weight.choices
            self.context_tokens -= weight.choices * weight.prompt_tokens + request.produced
        self._settle()
        self._take_speed()
        if line:  # the seat is for the first in it
            self._watch_line()
        if self.index is not None and request.arrival.chain:
            self._leave_in_cache(request)
            if self.kv is not None:
                self.kv.ended(request.arrival.chain)
        return True

    # -- what is computed meanwhile ---------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let prefill go on since the last call, in the order sent; never past what a first token would prove."""
        elapsed = now - self._advanced_at
        if elapsed <= 0.0:
            return
        self._advanced_at = now
        if self._silent:
            self._assume_tokens(elapsed)
        if self.prefill_seconds:  # else there is no line, or nothing says how far it may have come
            self._assume_prefill(elapsed)

    def _assume_prefill(self, elapsed: float) -> None:
        """Give prompts the part of each full iteration that is not streams', the earliest first; none to who has no
        seat."""
        cost, width = self.step_cost, self.capacity.max_batch_tokens
        assert cost is not None
        seats = self.experience.seats.count
        if seats is not None and seats <= self.decoding:
            return
        now_so = seats, self.decoding, cost
        if self._line_stands == now_so:  # all that may be believed to be computed already is
            if self.pace.measuring:
                width = self._line_width
                self.pace.passed(elapsed * cost.prompt_share(self.decoding, self.context_tokens, width))
            return
        if cost.per_prompt_pair and cost is not self._told:
            width = self._room(self.prefill_seconds, self.uncomputed_tokens)
        left = elapsed * cost.prompt_share(self.decoding, self.context_tokens, width)
        self.pace.passed(left)
        left /= self.stretch
        begun: list[InFlight] = []
        self._line_stands, self._line_width = now_so, width
        line, ahead = self._prefilling.values(), cost.per_token * width
        for request in line if seats is None else islice(line, seats - self.decoding):
            if ahead < 0.0:
                break  # prompts are computed in order: behind an iteration full of others, these have not begun
            ahead -= request.whole_work
            work = request.work - request.unproven
            if work > 0.0:  # those without are computed as far as one can tell
                done = left if left < work else work
                tokens = request.uncomputed * (done / request.work)
                request.work -= done
                request.uncomputed -= tokens
                self.prefill_seconds -= done
                self.uncomputed_tokens -= tokens
                left -= done
                self._line_stands = None  # what it is computed beside may have changed with it
                if done < work:
                    break
            if not request.streamed:
                begun.append(request)
        for request in begun:
            self.pace.disturb()
            self._begin(request)
            self._silent[request.arrival.id] = request

    def _assume_tokens(self, elapsed: float) -> None:
        """Let streams that nobody sees advance by a token an iteration, as long as more are expected."""
        cost = self.step_cost
        if cost is None:
            return
        steps = elapsed / cost.decode_seconds(self.decoding, self.context_tokens)
        for request in self._silent.values():
            done = min(steps * request.arrival.weight.choices, max(request.remaining - 1.0, 0.0))
            request.remaining -= done
            self.remaining_output -= done

    # -- inside -----------------------------------------------------------------------------------------

    def _room(self, work: float, tokens: float) -> int:
        """Tokens of an iteration, of such as attend to nothing: as many as take the time of those that fill it.

        A speed that was learned may have next to all of a prompt in what its tokens attend to.
        """
        cost, width = self.step_cost, self.capacity.max_batch_tokens
        if cost is None or work <= 0.0 or tokens <= 0.0:
            return width
        least = tokens * cost.per_token
        room = width * work / (least if least > 1e-12 else 1e-12)
        return int(room if room < MOST_ROOM else MOST_ROOM)

    def _take_speed(self) -> None:
        """Go by what is told while experience bears it out, else by what was learned.

        What was learned is of the prompts as they come, so that nothing stretches it.
        """
        before = self.step_cost
        if self.believed:
            self.step_cost, self.stretch = self._told, self.pace.stretch
        else:
            self.step_cost, self.stretch = self.experience.speed.cost(), 1.0
        if before is not self.step_cost and _differ(before, self.step_cost):
            self._price_prompts()

    def _price_prompts(self) -> None:
        """Price the prompts in flight, now that the speed has become known."""
        cost = self.step_cost
        for request in self._prefilling.values():
            tokens, cached = request.uncomputed, request.cached_tokens
            request.price(0.0 if cost is None else cost.prefill_work(tokens, cached))
        self.prefill_seconds = sum(request.work for request in self._prefilling.values())
        self.line_work = self.prefill_seconds
        self._line_stands = None
        self.pace.disturb()

    def _prefilled(self, request: InFlight) -> None:
        if self._prefilling.pop(request.arrival.id, None) is None:
            return
        self._line_stands = None
        self.uncomputed_tokens -= request.uncomputed
        self.prefill_seconds -= request.work
        self.line_work -= request.whole_work
        request.uncomputed = request.work = 0.0
        self._settle()
        self._watch_line()

    def _watch_line(self) -> None:
        """Work out when the first in line will be overdue: at twice what was predicted, or what its prompt and the
        iteration that ends with it take since it could begin. Then no seat is free, or the replica is slower."""
        first = next(iter(self._prefilling.values()), None)
        if first is None or not first.streamed or first.forecast is None:
            self._line_due = math.inf
            return
        begun = self._line_begun = max(first.sent, self.experience.line_moved)
        predicted = first.sent + LATE * first.forecast.clear
        alone = first.whole_work * self.stretch
        if self.step_cost is not None:
            alone += self.step_cost.decode_seconds(self.decoding + 1, self.context_tokens)
        self._line_due = max(predicted, begun + LATE * alone)

    def _expected_rest(self, request: InFlight) -> float:
        """What is expected still, given what is out; asked again when an eighth more is."""
        weight = request.arrival.weight
        each = request.produced // weight.choices
        request.revise_at = request.produced + max(request.produced // 8, weight.choices)
        return weight.choices * weight.output.remaining(each, weight.max_tokens)

    def _leave_in_cache(self, request: InFlight) -> None:
        assert self.index is not None
        size, weight, chain = self.capacity.block_size, request.arrival.weight, request.arrival.chain
        if not request.started:  # it may never have been computed
            self.index.forget(self.name, chain, request.cached_tokens // size)
        elif weight.choices > 1 or not request.produced:
            self.index.occupy(self.name, request.produced // size)
        else:  # the keys of the last token were not needed any more
            ends = weight.prompt_tokens + request.produced - 1
            self.index.occupy(self.name, ends // size - weight.prompt_tokens // size, chain[-1])

    def _settle(self) -> None:
        """Set the sums to exactly 0 whenever nothing is left to sum."""
        if not self._prefilling:
            self.uncomputed_tokens = self.prefill_seconds = self.line_work = 0.0
        if not self._in_flight:
            self.remaining_output = 0.0

    def check_integrity(self) -> None:
        """Raise AssertionError unless every aggregate is the sum over what is in flight; zero for nothing."""
        exact, close = sums(list(self._in_flight.values()))
        wrong = [name for name, value in exact.items() if getattr(self, name) != value]
        wrong += [n for n, value in close.items() if abs(getattr(self, n) - value) > 1e-6 * max(value, 1.0)]
        if wrong:
            raise AssertionError(f"{self.name}: {', '.join(wrong)} do not match what is in flight")


def is_plausible(cost: StepCost) -> bool:
    """Whether a step cost may be one: prompt tokens take time. A fit of too few kinds of steps comes out otherwise."""
    return cost.per_token > 0.0


def _differ(before: StepCost | None, after: StepCost | None) -> bool:
    """Whether prompts in flight have to be priced anew."""
    if before is None or after is None:
        return before is not after
    return not 0.8 * before.per_token <= after.per_token <= 1.25 * before.per_token
