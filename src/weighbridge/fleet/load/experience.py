"""What a replica is seen to do, request by request: made into observations, and held against what was predicted.

An observation of a first token is the time since the replica could begin with that prompt: since it was sent, since the
first token of the prompt in front of it, or, where the replica has fewer seats than there were requests, since one of
them ended. An observation of a stream is the time in which it brought a number of tokens, and what else was done then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from weighbridge.cost.mean import Mean
from weighbridge.cost.step import StepCost
from weighbridge.fleet.load.in_flight import InFlight
from weighbridge.fleet.load.speed import Observed, SpeedLearner
from weighbridge.ticket.decisions import Words

#: Tokens of a stream that make an observation, before its end.
TOKENS = 16
#: First tokens so close together, as a share of the time before, came out of one iteration.
TOGETHER = 0.05
#: A first token so many times later than the line explains was held up by something else: by want of a seat,
#: where it came after somebody's end.
LATE = 2.0
#: A stream that takes so many times as long as it should, and as long for so many steps more, is looked at after as
#: many tokens: a replica that has become slower shows it before it has brought sixteen.
EARLY = 2
#: Seats of which one wait for one of them says that there are no more.
FEW = 8
#: Seats that a replica which tells its speed is taken to have before any are seen taken.
AT_FIRST = 4
#: First tokens within which it shows that there are fewer seats than there once were, and waits that it takes.
LOOK_BACK, FEWER = 32, 4
#: By what factor a step cost that is told or stated may be off until it is not believed, and until it is again.
DOUBTED, BELIEVED = 1.6, 1.3
#: Observations that a doubt takes, and by what factor it may be off when there are two.
DOUBTS, AT_ONCE = 6, 3.0
#: By what factor one observation counts as off at most: a stall is no speed.
MOST_OFF = 4.0
#: How many times sooner than told streams may be, and later all that is seen, lines and others' prompts in it; as how
#: many times later one of it counts at most; by what share the older counts less with each.
SOONER, LATER, LATEST, FADING = 2.0, 4.0, 8.0, 0.1
#: Observations in a row that are as told, until what is told is believed again.
BORNE_OUT = 2
#: Seconds that an answer may take on its way: they are no fault of a step cost.
ON_THE_WAY = 0.02
#: What a prediction may be off by before anything was predicted, as a logarithm: by a factor of two.
UNTRIED = math.log(2.0)

Line = Mapping[str, InFlight]


class Score:
    """How predictions of first tokens held up: the logarithm of what happened over what was predicted."""

    __slots__ = ("bias", "count", "square")

    def __init__(self) -> None:
        self.count = 0
        self.bias = Mean(0.1, 0.0)
        self.square = Mean(0.1, UNTRIED**2)

    def add(self, predicted: float, happened: float) -> None:
        if not 0.0 < predicted < math.inf or not 0.0 < happened < math.inf:
            return
        off = min(max(math.log(happened / predicted), -4.0), 4.0)
        self.count += 1
        self.bias.add(off)
        self.square.add(off * off)

    @property
    def error(self) -> float:
        """By what share above or below, lately: 0.25 is a quarter."""
        return math.exp(math.sqrt(self.square.value)) - 1.0

    def interval(self, seconds: float) -> tuple[float, float]:
        """Where four of five such predictions ended."""
        return interval(seconds, self.square.value)


def interval(seconds: float, square: float) -> tuple[float, float]:
    """Where four of five predictions of so many seconds end that are off by `square`, a mean squared logarithm."""
    off = math.exp(1.28 * math.sqrt(square))
    return seconds / off, seconds * off


class ServedAtOnce:
    """How many requests a replica serves at a time, where that is fewer than it is sent.

    The knee shows in first tokens: one that came late, and soon after another's end, had waited for that seat. As many
    as were served then are all there are, until more are seen at a time. Where many are, ends are so frequent that a
    first token comes soon after one anyway: the more there are, the more often it has to be so.
    """

    __slots__ = (
        "_firsts",
        "_lower",
        "_lower_waits",
        "_told",
        "_waits",
        "count",
        "expected",
        "granted",
        "most",
    )

    def __init__(self) -> None:
        self.count: int | None = None  # how many; None where nothing says that they are few
        self.expected = 1  # how many; where nothing says so, one more than were seen, to find out
        self.granted = (
            AT_FIRST  # the same of one that tells its speed: twice as many, so that no burst drowns it
        )
        self.most = 0  # streams at a time, as many as there ever were
        self._told: int | None = None  # how many, by its own account
        self._waits = 0  # first tokens that waited for a seat when there were as many
        self._lower = self._lower_waits = self._firsts = 0  # the same of the last first tokens

    def tell(self, seats: int | None) -> None:
        """Take over how many it says there are; None: it says nothing, and what first tokens show counts."""
        self._told = seats
        if seats is not None:
            self.count = self.expected = self.granted = seats

    def first_token(self, streams: int, *, waited: bool) -> None:
        """Learn from a first token that made it so many streams; `waited`: it was begun only at another's end."""
        if streams > self.most:
            self.most, self._waits = streams, 0
        if streams == self.most:
            self._waits += waited
            self._lower = self._lower_waits = self._firsts = 0
        else:
            self._below(streams, waited)
        learned = self.most if _enough(self._waits, self.most) else None
        self.count = learned if self._told is None else self._told
        self.expected = self.count or self.most + 1
        self.granted = self.count or max(2 * self.most, AT_FIRST)

    def _below(self, streams: int, waited: bool) -> None:
        self._firsts += 1
        if streams > self._lower:
            self._lower, self._lower_waits = streams, 0
        if streams == self._lower:
            self._lower_waits += waited
        if self._firsts >= LOOK_BACK:
            if self._lower_waits >= FEWER and _enough(self._lower_waits, self._lower):
                self.most, self._waits = self._lower, self._lower_waits
            self._lower = self._lower_waits = self._firsts = 0


def _enough(waits: int, streams: int) -> bool:
    """Whether so many waits for a seat say that there are no more than these."""
    return waits * FEW >= streams > 0


class ToldSpeed:
    """Whether a step cost that is told or stated is gone by: it is held against what is seen.

    Clean observations say by how much it is off: a stream with no prompt beside, a prompt sent to an idle replica.
    Lines and others' prompts make the rest longer, by how much nobody tells, but not many times; and nothing makes a
    stream quicker than it is.
    """

    __slots__ = (
        "_at",
        "_borne_out",
        "_count",
        "_off",
        "_predicted",
        "_seconds",
        "_sooner",
        "doubted",
    )

    def __init__(self) -> None:
        self.doubted = False
        self._off = Mean(0.1)  # logarithm of observed over told, of clean ones
        self._at = -math.inf  # when the last of them was
        self._borne_out = 0  # of them in a row that were as told
        self._seconds = self._predicted = 0.0  # of all observations, the last counting most
        self._count = 0
        self._sooner = 0  # streams in a row that were much quicker than told

    def doubt(self) -> None:
        """Stop going by it: the replica has become slower or quicker."""
        self.doubted, self._borne_out = True, 0

    def hold(self, seen: Observed, told: StepCost) -> None:
        """Hold what is told against any observation."""
        steps = max(seen.steps, 1.0)
        decode = steps * told.decode_seconds(max(seen.beside / steps, 1.0), 0)
        predicted = told.per_token * seen.prompt_tokens + told.per_prompt_pair * seen.pairs + decode
        near = abs(seen.seconds - predicted) < ON_THE_WAY
        seconds = predicted if near else min(seen.seconds, LATEST * predicted)
        self._seconds += seconds - FADING * self._seconds
        self._predicted += predicted - FADING * self._predicted
        self._count += 1
        if not seen.prompt_tokens:
            self._sooner = self._sooner + 1 if SOONER * seconds < predicted else 0
        late = self._count >= DOUBTS and self._seconds > LATER * self._predicted
        self.doubted = self.doubted or late or self._sooner > 1

    def hold_clean(self, seconds: float, predicted: float, now: float) -> None:
        """Hold what is told against a clean observation, which may also bear it out.

        Of what was seen at the same time one counts: a replica that stood still was late with all it had.
        """
        if now - seconds < self._at - 1e-6:  # what clocks round off
            return
        self._at = now
        near = abs(seconds - predicted) < ON_THE_WAY
        ratio = 0.0 if near else math.log(max(seconds, 1e-9) / max(predicted, 1e-9))
        limit = math.log(MOST_OFF)
        self._off.add(min(max(ratio, -limit), limit))
        self._borne_out = self._borne_out + 1 if abs(ratio) < math.log(BELIEVED) else 0
        off = abs(self._off.value)
        if self._borne_out >= BORNE_OUT:
            self.doubted = False
            self._off = Mean(0.1)
            self._seconds = self._predicted = 0.0
            self._count = self._sooner = 0
        elif off > math.log(DOUBTED if self._off.count >= DOUBTS else AT_ONCE) and self._off.count > 1:
            self.doubted = True


class Experience:
    """Follows one replica. Told of everything by `OwnLoad`, in order of time."""

    __slots__ = (
        "_area",
        "_at",
        "_before_end",
        "_last_end",
        "_pairs",
        "_pending",
        "_prompts",
        "_seen_until",
        "_streams",
        "_usual_prompt",
        "heard",
        "last_first",
        "score",
        "seats",
        "speed",
        "trust",
    )

    def __init__(self, now: float) -> None:
        self.speed = SpeedLearner()
        self.seats = ServedAtOnce()
        self.score = Score()
        self.trust = ToldSpeed()  # in what it tells of its speed, or what is stated
        self.heard = now  # when something last came from it
        self._at = now
        self._streams = 0  # of late
        self._area = 0.0  # streams, summed over seconds
        self._prompts = self._pairs = 0.0  # prompt tokens computed, and what these attended to
        self._usual_prompt = Mean(0.05)
        self.last_first = -math.inf  # when the last first token came
        self._last_end = -math.inf
        self._before_end = 0  # sequences there before the last end
        self._seen_until = [-math.inf, -math.inf]  # of streams and first tokens: what is learned of changes
        self._pending: tuple[float, Observed] | None = None  # a first token that others may join

    # -- what happens ----------------------------------------------------------------------------------

    def elapse(self, streams: int, now: float) -> None:
        """Take note that there were `streams` until now; before their number changes."""
        self._streams = streams
        if now > self._at:
            self._area += streams * (now - self._at)
            self._at = now

    def first_token(
        self, request: InFlight, streams: int, line: bool, told: StepCost | None, now: float
    ) -> bool:
        """Learn from a first token of a streamed request, beside `streams` others; `line`: others wait for theirs.

        Return whether it had waited for a seat.
        """
        self.elapse(streams, now)
        self.heard = now
        waited, fresh = now - request.sent, request.fresh
        if request.forecast is not None:
            self.score.add(request.forecast.first, waited)
        no_seat = self._waited_for_seat(request, streams, told, now)
        begun = max(request.sent, self.last_first)
        if self._last_end > begun and self._short_of_seats(request, no_seat):
            begun = self._last_end
        self._first(Observed(now - begun, 1.0, fresh, 1.0, streams, request.pairs), told, now)
        if told is not None and not request.level:
            self.trust.hold_clean(waited, told.prefill_seconds(fresh, request.cached_tokens), now)
        self._computed(request)
        self.last_first = now
        choices = request.arrival.weight.choices
        self.seats.first_token(streams + choices, waited=no_seat)
        self._mark(request, now, choices, line)
        return no_seat

    def tokens(self, request: InFlight, streams: int, line: Line, told: StepCost | None, now: float) -> bool:
        """Learn from a stream that goes on; `line`: who waits for a first token there.

        Return whether the replica has become slower or quicker.
        """
        self.heard = request.token_at = now
        tokens, choices = request.produced - request.marked_tokens, request.arrival.weight.choices
        late = now - request.marked_at > request.late * (tokens + EARLY * choices)
        if tokens < TOKENS * choices and not (late and tokens >= EARLY * choices):
            return False
        changes = self.speed.scaled
        self._stream(request, streams, line, told, now)
        return self.speed.scaled > changes

    def end(
        self,
        request: InFlight,
        streams: int,
        sequences: int,
        line: Line,
        told: StepCost | None,
        now: float,
        produced: int,
    ) -> None:
        """Learn from a request that is over, of `sequences` that were there; `line`: who waits for a first token."""
        self.heard = now
        if request.streamed and request.started:
            if request.produced - request.marked_tokens >= 2:
                self._stream(request, streams, line, told, now)
        elif not request.streamed and produced > 0:
            self._whole(request, streams, now, produced)
        self.elapse(streams, now)
        self._last_end, self._before_end = now, sequences

    @property
    def line_moved(self) -> float:
        """When the first in line could begin: at the last first token, or at the end that gave it a seat."""
        seats = self.seats.count
        if seats is None or self._before_end <= seats or self._last_end < self.last_first:
            return self.last_first
        return self._last_end

    @property
    def usual_prompt(self) -> float:
        """Prompt tokens that it computed for a usual request of late; 0 before the first."""
        return self._usual_prompt.value

    # -- inside ----------------------------------------------------------------------------------------

    def _computed(self, request: InFlight) -> None:
        self._prompts += request.fresh
        self._pairs += request.pairs
        self._usual_prompt.add(request.fresh)

    def _mark(self, request: InFlight, now: float, tokens: int, line: bool) -> None:
        """Watch a stream from now on; `line`: prompts are computed beside it."""
        request.mark(now, tokens, (self._prompts, self._pairs), self._area, line)
        step = self.speed.seconds((0.0, 0.0, 1.0, self._streams, 0.0))
        request.late = math.inf if step is None else LATE * step / request.arrival.weight.choices

    def _waited_for_seat(self, request: InFlight, streams: int, told: StepCost | None, now: float) -> bool:
        """Whether a first token came late, and as long after the last end as its prompt takes by itself."""
        if request.forecast is None or now - request.sent <= LATE * request.forecast.clear:
            return False
        alone = self.speed.seconds((1.0, request.fresh, 1.0, streams, request.pairs))
        if alone is None and told is not None:
            alone = told.prefill_seconds(request.fresh, request.cached_tokens)
        since = now - self._last_end
        return alone is not None and alone < LATE * since and since < LATE * alone

    def _short_of_seats(self, request: InFlight, no_seat: bool) -> bool:
        """Whether the last end is what let this request begin."""
        if self.seats.count is not None:
            return self._before_end > self.seats.count
        return no_seat or request.forecast is None

    def _learn(self, seen: Observed, told: StepCost | None, now: float) -> None:
        before = self.speed.scaled
        self.speed.observe(seen, alone=self._alone(seen, now))
        if told is not None:
            self.trust.hold(seen, told)
            if self.speed.scaled > before:
                self.trust.doubt()

    def _learn_bounds(
        self, seen: Observed, begun: bool, line: Line, told: StepCost | None, now: float
    ) -> None:
        """Learn from a stretch of a stream beside prompts of which nobody knows how much was computed in it.

        `begun`: some of what is counted was computed before. Of those in line all may have been.
        """
        if not self._alone(seen, now):
            return
        tokens, pairs = seen.prompt_tokens, seen.pairs
        for waiting in line.values():
            tokens, pairs = tokens + waiting.fresh, pairs + waiting.pairs
        least = replace(seen, prompt_tokens=0.0, pairs=0.0) if begun else seen
        before = self.speed.scaled
        self.speed.bounded(least, replace(seen, prompt_tokens=tokens, pairs=pairs))
        if told is not None and self.speed.scaled > before:
            self.trust.doubt()

    def _alone(self, seen: Observed, now: float) -> bool:
        """Whether nothing of its kind was seen at the same time: all that stood still at once is one stall."""
        kind = seen.firsts > 0.0
        if now - seen.seconds < self._seen_until[kind] - 1e-6:  # what clocks round off
            return False
        self._seen_until[kind] = now
        return True

    def _first(self, seen: Observed, told: StepCost | None, now: float) -> None:
        if self._pending is not None:
            at, before = self._pending
            if now - at <= TOGETHER * before.seconds:
                together = before.prompt_tokens + seen.prompt_tokens
                seconds, pairs = before.seconds + now - at, before.pairs + seen.pairs
                self._pending = at, Observed(seconds, 1.0, together, 1.0, before.beside, pairs)
                return
            self._flush(told, now)
        self._pending = now, seen

    def _flush(self, told: StepCost | None, now: float) -> None:
        """Learn from a first token that no other has joined in time."""
        if self._pending is not None and now - self._pending[0] > TOGETHER * self._pending[1].seconds:
            (at, seen), self._pending = self._pending, None
            self._learn(seen, told, at)

    def _stream(self, request: InFlight, streams: int, line: Line, told: StepCost | None, now: float) -> None:
        self._flush(told, now)
        self.elapse(streams, now)
        seconds, passed = request.token_at - request.marked_at, now - request.marked_at
        if seconds <= 0.0 or not request.watched:
            return
        steps = (request.produced - request.marked_tokens) / request.arrival.weight.choices
        beside = (self._area - request.marked_area) / passed
        prompts, pairs = self._prompts - request.marked_prompts, self._pairs - request.marked_pairs
        seats = self.seats.count
        # Of a prompt that is in line at its beginning or end, nobody knows how much was computed meanwhile.
        clean = not (line or request.marked_line) or (seats is not None and streams >= seats)
        seen = Observed(seconds, 0.0, prompts, steps, steps * beside, pairs)
        if clean or not self.speed.known:
            self._learn(seen, told, now)
        else:
            self._learn_bounds(seen, request.marked_line, line, told, now)
        if told is not None and clean and not prompts:
            context = beside * (request.arrival.weight.prompt_tokens + request.produced)
            self.trust.hold_clean(seconds, steps * told.decode_seconds(beside, context), now)
        self._mark(request, now, request.produced, bool(line))

    def _whole(self, request: InFlight, streams: int, now: float, produced: int) -> None:
        """Learn from an answer in one piece: its first token and all others in one observation."""
        begun = max(request.sent, self._last_end if self._held_by_whole(request) else -math.inf)
        steps = produced / request.arrival.weight.choices
        beside = max(request.level, streams) * steps
        self.speed.observe(Observed(now - begun, 1.0, request.fresh, steps, beside, request.pairs))
        self._computed(request)

    def _held_by_whole(self, request: InFlight) -> bool:
        """Whether it could begin only at the last end: longer on its way than it should have been, if that is known."""
        taken = self._last_end - request.sent
        return taken > 0.0 and request.forecast is not None and taken > LATE * request.forecast.clear

    # -- in words --------------------------------------------------------------------------------------

    def in_words(self, *, told: bool) -> str:
        """What was learned of the replica's speed, and from how much; `told`: though it tells one."""
        return self.words(told=told)()

    def words(self, *, told: bool) -> Words:
        """The same, to be said later."""
        speed = self.speed
        seen = speed.firsts, speed.steps
        usual = self.usual_prompt
        return partial(_learned, told, seen, speed.cost(), self.seats.count, usual, speed.is_taught)


def _learned(
    told: bool, seen: tuple[int, int], cost: StepCost | None, seats: int | None, usual: float, taught: bool
) -> str:
    doubt = "what it tells of its speed is not what is seen; " if told else ""
    source = f"{seen[0]} first tokens and {seen[1]} stretches of streams"
    source += ", the first of them as another gateway had learned" if taught else ""
    if cost is None:
        return f"{doubt}its speed is not learned yet, from {source}"
    few = f", {seats} at a time" if seats is not None else ""
    prompt = max(usual, 1.0)
    return (
        f"{doubt}learned from {source}: {cost.prefill_work(prompt) / prompt * 1e3:.3g} ms a prompt token of "
        f"{prompt:.0f} and {cost.overhead * 1e3:.3g} ms a step{few}"
    )
