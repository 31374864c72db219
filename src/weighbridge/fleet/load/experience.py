"""What a replica is seen to do, request by request: made into observations, and held against what was predicted.

An observation of a first token is the time since the replica could begin with that prompt: since it was sent, since the
first token of the prompt in front of it, or, where the replica has fewer seats than there were requests, since one of
them ended. An observation of a stream is the time in which it brought a number of tokens, and what else was done then.
"""

from __future__ import annotations

import math
from collections import deque

from weighbridge.cost.mean import Mean
from weighbridge.cost.step import StepCost
from weighbridge.fleet.load.in_flight import InFlight
from weighbridge.fleet.load.speed import Observed, SpeedLearner

#: Tokens of a stream that make an observation, before its end.
TOKENS = 16
#: First tokens so close together, as a share of the time before, came out of one iteration.
TOGETHER = 0.05
#: A first token so many times later than the line explains was held up by something else: by want of a seat,
#: where it came after somebody's end.
LATE = 2.0
#: First tokens within which the most streams there were say how many seats there are.
LOOK_BACK = 32
#: Times that streams come to one number while others wait, until that counts as all the seats there are.
TOUCHES = 3
#: By what factor a step cost that is told or stated may be off until it is not believed, and until it is again.
DOUBTED, BELIEVED = 1.6, 1.3
#: Observations that a doubt takes, and by what factor it may be off when there are two.
DOUBTS, AT_ONCE = 6, 3.0
#: By what factor one observation counts as off at most: a stall is no speed.
MOST_OFF = 4.0
#: Observations in a row that are as told, until what is told is believed again.
BORNE_OUT = 2
#: Seconds that an answer may take on its way: they are no fault of a step cost.
ON_THE_WAY = 0.02
#: What a prediction may be off by before anything was predicted, as a logarithm: by a factor of two.
UNTRIED = math.log(2.0)


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
        off = math.exp(1.28 * math.sqrt(self.square.value))
        return seconds / off, seconds * off


class ServedAtOnce:
    """How many requests a replica serves at a time, where that is fewer than it is sent.

    It shows as a ceiling: the streams come to the same number again and again while others wait, and never to more.
    """

    __slots__ = ("_levels", "_touched", "count", "expected", "most")

    def __init__(self) -> None:
        self._levels: deque[int] = deque(maxlen=LOOK_BACK)  # streams at each first token, that one included
        self._touched = 0  # times that they came to the most of these while others waited
        self.most = 0  # streams at a time, of late
        self.count: int | None = None  # how many; None where nothing says that they are few
        self.expected = 1  # how many; where nothing says so, one more than were seen, to find out

    def first_token(self, streams: int, *, line: bool) -> None:
        if streams > self.most:
            self._touched = 0
        if streams >= self.most and line:
            self._touched += 1
        self._levels.append(streams)
        self.most = max(self._levels)
        self.count = self.most if self._touched >= TOUCHES else None
        self.expected = self.count or self.most + 1


class Experience:
    """Follows one replica. Told of everything by `OwnLoad`, in order of time."""

    def __init__(self, now: float) -> None:
        self.speed = SpeedLearner()
        self.seats = ServedAtOnce()
        self.score = Score()
        self.doubted = False  # what it tells of its speed, or what is stated
        self.heard = now  # when something last came from it
        self._told = Mean(0.1)  # logarithm of observed over what its told cost says
        self._compared_at = -math.inf  # when that was last observed
        self._borne_out = 0  # observations in a row that are as it says
        self._at = now
        self._area = 0.0  # streams, summed over seconds
        self._prompts = 0.0  # prompt tokens computed
        self._last_first = -math.inf
        self._last_end = -math.inf
        self._before_end = 0  # sequences there before the last end
        self._pending: tuple[float, Observed] | None = None  # a first token that others may join

    # -- what happens ----------------------------------------------------------------------------------

    def elapse(self, streams: int, now: float) -> None:
        """Take note that there were `streams` until now; before their number changes."""
        if now > self._at:
            self._area += streams * (now - self._at)
            self._at = now

    def first_token(
        self, request: InFlight, streams: int, line: bool, told: StepCost | None, now: float
    ) -> None:
        """Learn from a first token of a streamed request, beside `streams` others; `line`: others wait for theirs."""
        self.elapse(streams, now)
        self.heard = now
        waited, since_end = now - request.sent, now - self._last_end
        forecast, late = request.forecast, False
        if forecast is not None:
            self.score.add(forecast.first, waited)
            ended = self._last_end > request.sent and since_end < 0.5 * waited
            late = ended and waited > LATE * forecast.clear
        begun = max(request.sent, self._last_first)
        held_up = self._last_end > begun and self._short_of_seats(request, late)
        if held_up:
            begun = self._last_end
        fresh = request.fresh
        self._first(Observed(now - begun, 1.0, fresh, 1.0, streams), now)
        if told is not None and not request.level:
            self._compare(waited, told.prefill_seconds(fresh, request.cached_tokens), now)
        self._prompts += fresh
        self._last_first = now
        choices = request.arrival.weight.choices
        self.seats.first_token(streams + choices, line=line)
        request.mark(now, choices, self._prompts, self._area, line)

    def tokens(self, request: InFlight, streams: int, line: bool, told: StepCost | None, now: float) -> None:
        """Learn from a stream that goes on."""
        self.heard = request.token_at = now
        if request.produced - request.marked_tokens >= TOKENS * request.arrival.weight.choices:
            self._stream(request, streams, line, told, now)

    def end(
        self,
        request: InFlight,
        streams: int,
        sequences: int,
        told: StepCost | None,
        now: float,
        produced: int,
    ) -> None:
        """Learn from a request that is over, of `sequences` that were there."""
        self.heard, line = now, sequences > streams
        if request.streamed and request.started:
            if request.produced - request.marked_tokens >= 2:
                self._stream(request, streams, line, told, now)
        elif not request.streamed and produced > 0:
            self._whole(request, streams, now, produced)
        self.elapse(streams, now)
        self._last_end, self._before_end = now, sequences

    # -- inside ----------------------------------------------------------------------------------------

    def _short_of_seats(self, request: InFlight, late: bool) -> bool:
        """Whether the last end is what let this request begin."""
        if self.seats.count is not None:
            return self._before_end > self.seats.count
        return late or request.forecast is None

    def _first(self, seen: Observed, now: float) -> None:
        if self._pending is not None:
            at, before = self._pending
            if now - at <= TOGETHER * before.seconds:
                together = before.prompt_tokens + seen.prompt_tokens
                seconds = before.seconds + now - at
                self._pending = at, Observed(seconds, 1.0, together, 1.0, before.beside)
                return
            self._flush(now)
        self._pending = now, seen

    def _flush(self, now: float) -> None:
        """Learn from a first token that no other has joined in time."""
        if self._pending is not None and now - self._pending[0] > TOGETHER * self._pending[1].seconds:
            seen, self._pending = self._pending[1], None
            self.speed.observe(seen)

    def _stream(self, request: InFlight, streams: int, line: bool, told: StepCost | None, now: float) -> None:
        self._flush(now)
        self.elapse(streams, now)
        seconds, passed = request.token_at - request.marked_at, now - request.marked_at
        if seconds <= 0.0 or not request.watched:
            return
        choices = request.arrival.weight.choices
        steps = (request.produced - request.marked_tokens) / choices
        beside = (self._area - request.marked_area) / passed
        prompts = self._prompts - request.marked_prompts
        self.speed.observe(Observed(seconds, 0.0, prompts, steps, steps * beside))
        seats = self.seats.count
        if (
            told is not None
            and not prompts
            and (not (line or request.marked_line) or (seats is not None and streams >= seats))
        ):
            context = beside * (request.arrival.weight.prompt_tokens + request.produced)
            self._compare(seconds, steps * told.decode_seconds(beside, context), now)
        request.mark(now, request.produced, self._prompts, self._area, line)

    def _whole(self, request: InFlight, streams: int, now: float, produced: int) -> None:
        """Learn from an answer in one piece: its first token and all others in one observation."""
        begun = max(request.sent, self._last_end if self._held_by_whole(request) else -math.inf)
        steps = produced / request.arrival.weight.choices
        beside = max(request.level, streams) * steps
        self.speed.observe(Observed(now - begun, 1.0, request.fresh, steps, beside))
        self._prompts += request.fresh

    def _held_by_whole(self, request: InFlight) -> bool:
        """Whether it could begin only at the last end: longer on its way than it should have been, if that is known."""
        taken = self._last_end - request.sent
        return taken > 0.0 and request.forecast is not None and taken > LATE * request.forecast.clear

    def _compare(self, seconds: float, predicted: float, now: float) -> None:
        """Hold what is told against what is seen: a cost that is far off is not believed any more.

        Of what was seen at the same time one counts: a replica that stood still was late with all it had.
        """
        if now - seconds < self._compared_at - 1e-6:  # what clocks round off
            return
        self._compared_at = now
        near = abs(seconds - predicted) < ON_THE_WAY
        ratio = 0.0 if near else math.log(max(seconds, 1e-9) / max(predicted, 1e-9))
        limit = math.log(MOST_OFF)
        self._told.add(min(max(ratio, -limit), limit))
        self._borne_out = self._borne_out + 1 if abs(ratio) < math.log(BELIEVED) else 0
        off = abs(self._told.value)
        if self._borne_out >= BORNE_OUT:
            self.doubted = False
            self._told = Mean(0.1)
        elif off > math.log(DOUBTED if self._told.count >= DOUBTS else AT_ONCE) and self._told.count > 1:
            self.doubted = True

    # -- in words --------------------------------------------------------------------------------------

    def in_words(self, *, told: bool) -> str:
        """What was learned of the replica's speed, and from how much; `told`: though it tells one."""
        speed, cost = self.speed, self.speed.cost()
        doubt = "what it tells of its speed is not what is seen; " if told else ""
        if cost is None:
            return f"{doubt}its speed is not learned yet, from {_from(speed)}"
        seats = self.seats.count
        few = f", {seats} at a time" if seats is not None else ""
        return (
            f"{doubt}learned from {_from(speed)}: {cost.per_token * 1e3:.3g} ms a prompt token and "
            f"{cost.overhead * 1e3:.3g} ms a step{few}"
        )


def _from(speed: SpeedLearner) -> str:
    return f"{speed.firsts} first tokens and {speed.steps} stretches of streams"
