"""How fast a replica is, learned from what is seen of it: a small fit with a prior, and how well it predicts.

    seconds = answer x first tokens + token x prompt tokens computed + pair x what these attend to
            + step x steps + beside x streams in these steps

Nothing is believed about how fast machines are: the prior is of proportions alone (what a prompt token costs in steps),
so that whatever all observed times are multiplied by, every prediction is too. What observations do not tell apart
keeps its proportion. First tokens and steps fade each at their own pace, so that many of one kind do not wash out
what the other told; and where several in a row are off by one factor, what was known is scaled by it at once.
Pure: no clock; whoever observes hands in how long it took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat
from operator import add, mul

from weighbridge.cost.mean import Mean
from weighbridge.cost.non_negative import ALL, AT, PAIRS, SUMS, WIDTH, Five, Free, solve
from weighbridge.cost.step import StepCost

#: Observations of a kind after which an older one counts less by a factor e.
MEMORY = 40.0
FADE = 1.0 - 1.0 / MEMORY
#: What sums may have grown to until they are made smaller.
MOST_GROWN = 1e12
#: What a usual observation is off by, as a share: a proportion of the prior weighs as much as one observation that
#: is off by all of it.
NOISE = 0.2
#: The prior: of each quantity in steps of one stream, what it is likely to be, and by how much it may be off.
LIKELY = {"answer": (0.0, 0.5), "token": (0.01, 0.03), "beside": (0.02, 0.06), "pair": (0.0, 1e-5)}
#: Observations of a kind before which a change is not looked for, and by how much all must be off to be one.
SETTLED, OFF = 5, 1.5
#: A change is looked for by cumulative sums (Page 1954) of what observations are off by, in units of what they usually
#: are off by (at least `NOISE`): what each may be off by, and the sum that says that it is one.
ALLOWED, ALARM = 0.5, 5.0
#: What one observation adds to such a sum at most: one alone is a stall.
ONE = 3.0
#: What is known is worked out anew when observations have grown by one in so many.
SOLVED = 10
#: What such a scaling leaves of the weight of all that was known.
LEFT = 0.3
#: An observation so many times as long as predicted counts as that long: a stall is no speed.
LONGEST = 4.0
#: What a step takes at least, in prompt tokens.
LEAST_STEP = 0.01
#: Observations, one of them a first token, after which a speed counts as known.
ENOUGH = 3

_ANSWER, _TOKEN, _STEP, _BESIDE, _PAIR = range(WIDTH)
#: Of each quantity with a prior: its place, what it is likely to be and by how much off, and where in the sums its own
#: product stands and that with a step.
_PRIOR = tuple(
    (place, *LIKELY[name], AT[place][place], AT[place][_STEP])
    for name, place in (("answer", _ANSWER), ("token", _TOKEN), ("beside", _BESIDE), ("pair", _PAIR))
)
_STEPS = AT[_STEP][_STEP]
_ALONE = (LIKELY["answer"][0], LIKELY["token"][0], 1.0, LIKELY["beside"][0], LIKELY["pair"][0])
_OFF = math.log(OFF)
Row = Five
#: What a speed that somebody else learned is taken for: two first tokens and two streams, each off by so many times
#: what that one was off by.
WIDER = 2.0
_TAUGHT: tuple[Row, ...] = (
    (1.0, 128.0, 1.0, 1.0, 128.0**2 / 2.0),
    (1.0, 1024.0, 1.0, 1.0, 1024.0**2 / 2.0),
    (0.0, 0.0, 16.0, 16.0, 0.0),
    (0.0, 0.0, 16.0, 128.0, 0.0),
)
#: Where the sums stand that a stream without a prompt beside adds to: steps, what was beside them, and the seconds.
_OF_STREAM = (
    AT[_STEP][_STEP],
    AT[_STEP][_BESIDE],
    AT[_BESIDE][_BESIDE],
    len(PAIRS) + _STEP,
    len(PAIRS) + _BESIDE,
)


@dataclass(slots=True)
class Observed:
    """Seconds that went by at a replica, and what it did in them.

    `firsts`: 1 where they end with a first token, else 0. `steps`: tokens that each stream was given; `beside`: these
    times the streams there were. `pairs`: what the prompt tokens attended to, of each other and of what was cached.
    """

    seconds: float
    firsts: float
    prompt_tokens: float
    steps: float
    beside: float
    pairs: float = 0.0

    @property
    def row(self) -> Row:
        return self.firsts, self.prompt_tokens, self.steps, self.beside, self.pairs


@dataclass(slots=True)
class _Kind:
    """Sums over the observations of one kind: the products of a row's parts, then those with its seconds.

    The older ones fade: each new one weighs `1 / FADE` times as much as the one before, and all of them `grown` times
    what they should.
    """

    sums: list[float]
    count: int = 0
    grown: float = 1.0

    def add(self, row: Row, seconds: float, expected: float) -> None:
        self.count += 1
        self.grown = grown = self.grown / FADE
        weight = grown / (expected * NOISE) ** 2
        a, t, s, b, p = row
        ws, wb = weight * s, weight * b
        sums = self.sums
        if not (a or t or p):
            of_ss, of_sb, of_bb, of_rs, of_rb = _OF_STREAM
            sums[of_ss] += ws * s
            sums[of_sb] += ws * b
            sums[of_bb] += wb * b
            sums[of_rs] += ws * seconds
            sums[of_rb] += wb * seconds
        else:
            wa, wt, wp = weight * a, weight * t, weight * p
            aa, at, as_, ab, ap, tt, ts, tb, tp, ss, sb, sp, bb, bp, pp, ra, rt, rs, rb, rp = sums
            of_one = [aa + wa * a, at + wa * t, as_ + wa * s, ab + wa * b, ap + wa * p]
            of_token = [tt + wt * t, ts + wt * s, tb + wt * b, tp + wt * p]
            of_rest = [ss + ws * s, sb + ws * b, sp + ws * p, bb + wb * b, bp + wb * p, pp + wp * p]
            of_time = [
                ra + wa * seconds,
                rt + wt * seconds,
                rs + ws * seconds,
                rb + wb * seconds,
                rp + wp * seconds,
            ]
            self.sums = of_one + of_token + of_rest + of_time
        if grown > MOST_GROWN:
            self.sums = [value / grown for value in self.sums]
            self.grown = 1.0

    def scale(self, factor: float) -> None:
        """Have all of it been `factor` times slower, and less certain."""
        products = LEFT / factor**2
        self.sums = [value * products for value in self.sums]
        self.sums[len(PAIRS) :] = [value * factor for value in self.sums[len(PAIRS) :]]


class SpeedChange:
    """Whether all has become slower or quicker: a cumulative sum of what observations are off by, for either."""

    __slots__ = ("_quicker", "_slower")

    def __init__(self) -> None:
        self._slower = self._quicker = (
            0.0,
            0.0,
            0,
        )  # the sum, of the logarithms it rests on, and how many these are

    def see(self, off: float, usual: float) -> float:
        """Take in the logarithm of observed over predicted; `usual`: what such are off by where nothing has changed.

        Return the logarithm by which all is off now; 0.0 while nothing says that it is.
        """
        self._slower = self._added(self._slower, off, off / usual)
        self._quicker = self._added(self._quicker, off, -off / usual)
        for total, offs, count in (self._slower, self._quicker):
            if total > ALARM and abs(offs) > _OFF * count:
                self._slower = self._quicker = (0.0, 0.0, 0)
                return offs / count
        return 0.0

    @staticmethod
    def _added(before: tuple[float, float, int], off: float, units: float) -> tuple[float, float, int]:
        total, offs, count = before
        total += min(units, ONE) - ALLOWED
        return (total, offs + off, count + 1) if total > 0.0 else (0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class LearnedSpeed:
    """What a learner knows, in few numbers: seconds of each quantity, from how many first tokens and streams, and what
    observations are off by (a root mean squared logarithm)."""

    times: Five
    firsts: int
    steps: int
    off: float

    @property
    def is_plausible(self) -> bool:
        """Whether a replica may be so; what comes from elsewhere is looked at first."""
        if not all(0.0 <= one <= 3600.0 for one in self.times) or not 0.0 <= self.off <= 10.0:
            return False
        return self.times[_STEP] > 0.0 and self.firsts > 0 and self.steps >= 0


class SpeedLearner:
    """What one replica was seen to take. Memory and time of an observation do not grow with their number."""

    __slots__ = (
        "_change",
        "_cost",
        "_free",
        "_kinds",
        "_times",
        "_unsolved",
        "is_taught",
        "scaled",
        "spread",
    )

    def __init__(self) -> None:
        self._kinds = (_Kind([0.0] * SUMS), _Kind([0.0] * SUMS))  # steps, first tokens
        self._change = SpeedChange()
        self._times: Five | None = None
        self._cost: StepCost | None = None  # the same
        self._free: Free = ALL  # what was not 0 in the last solution
        self._unsolved = 0  # observations since then
        self.spread = Mean(0.05)  # of the squared logarithm of observed over predicted
        self.scaled = 0  # times that all was found to have become slower or quicker
        self.is_taught = False  # it began with what somebody else had learned

    def summary(self) -> LearnedSpeed | None:
        """What is known, to be told to others; None where nothing was learned here."""
        if not self.known or self._times is None:
            return None
        return LearnedSpeed(self._times, self.firsts, self.steps, math.sqrt(self.spread.value))

    def begin_with(self, known: LearnedSpeed) -> bool:
        """Begin with what somebody else has learned of the same replica, as less certain than it was there.

        False where something was observed here before, or that cannot be.
        """
        if self._times is not None or not known.is_plausible:
            return False
        self._times, self.is_taught = known.times, True
        off = WIDER * max(known.off, NOISE)
        for row in _TAUGHT:
            seconds = self._seconds(row)
            self._kinds[row[0] > 0.0].add(row, seconds, seconds * off / NOISE)
        self.spread = Mean(0.05, off * off)
        return True

    @property
    def steps(self) -> int:
        """Observations of streams."""
        return self._kinds[0].count

    @property
    def firsts(self) -> int:
        """Observations of first tokens."""
        return self._kinds[1].count

    @property
    def known(self) -> bool:
        steps, firsts = self._kinds
        return firsts.count > 0 and firsts.count + steps.count >= ENOUGH

    def observe(self, seen: Observed, *, alone: bool = True) -> None:
        """Take in one observation; one without a time or without work says nothing.

        `alone`: nothing of its kind was seen at the same time; else it says no more of a change than that did.
        """
        row, seconds, kinds = seen.row, seen.seconds, self._kinds
        work = row[0] + row[2]
        if not (0.0 < seconds < math.inf and 0.0 < work < math.inf and row[1] < math.inf):
            return
        if self._times is None:
            self._times = self._alone(row, seconds)
        kind = kinds[row[0] > 0.0]
        expected = self._seconds(row)
        off = math.log(seconds / expected)
        self.spread.add(off * off if off * off < 4.0 else 4.0)
        if kind.count < 2 * SETTLED:  # what is expected so far is mostly the prior's
            expected = seconds
        kind.add(row, seconds if seconds < LONGEST * expected else LONGEST * expected, expected)
        self._unsolved = unsolved = self._unsolved + 1
        due = unsolved * SOLVED
        if (
            (alone and kind.count > SETTLED and self._heed_change(off))
            or due >= MEMORY
            or due >= kinds[0].count + kinds[1].count
        ):
            self._solve()

    def bounded(self, least: Observed, most: Observed) -> None:
        """Take in what was at least so much work and at most so much: it shows a change where neither explains the
        time, and says nothing else."""
        if not self.known:
            return
        shortest, longest, seconds = self._seconds(least.row), self._seconds(most.row), least.seconds
        if seconds > longest:
            changed = self._heed_change(math.log(seconds / longest))
        elif 0.0 < seconds < shortest:
            changed = self._heed_change(math.log(seconds / shortest))
        else:
            return
        if changed:
            self._solve()

    def seconds(self, seen: Row) -> float | None:
        """Predicted seconds of such work; None while the speed is not known."""
        return self._seconds(seen) if self.known else None

    @property
    def answer(self) -> float:
        """Seconds before every first token, however short the prompt."""
        return self._times[_ANSWER] if self._times is not None else 0.0

    def cost(self) -> StepCost | None:
        """What was learned as a step cost; None while the speed is not known.

        What streams attend to and weights cannot be told from the rest by who sees tokens alone: they are in it.
        """
        if not self.known or self._times is None:
            return None
        if self._cost is None:
            _, token, step, beside, pair = self._times
            self._cost = StepCost(
                overhead=step,
                memory=0.0,
                per_token=token,
                per_context_token=0.0,
                per_sequence=max(beside - token, 0.0),
                per_prompt_pair=pair,
            )
        return self._cost

    def error(self) -> float:
        """By what factor above 1 observations are usually off."""
        return math.exp(math.sqrt(self.spread.value))

    # -- inside ----------------------------------------------------------------------------------------

    def _seconds(self, row: Row) -> float:
        assert self._times is not None
        a, t, s, b, p = self._times
        seconds = a * row[0] + t * row[1] + s * row[2] + b * row[3] + p * row[4]
        return seconds if seconds > 1e-9 else 1e-9

    def _alone(self, row: Row, seconds: float) -> Five:
        """What one observation says with the prior's proportions."""
        unit = seconds / max(sum(map(mul, row, _ALONE)), 1e-9)
        answer, token, step, beside, pair = _ALONE
        return unit * answer, unit * token, unit * step, unit * beside, unit * pair

    def _heed_change(self, off: float) -> bool:
        """Whether what was seen lately says that all has become slower or quicker; then it is taken to have."""
        change = self._change.see(off, max(math.sqrt(self.spread.value), NOISE))
        if not change:
            return False
        factor = math.exp(change)
        for kind in self._kinds:
            kind.scale(factor)
        assert self._times is not None
        answer, token, step, beside, pair = self._times
        self._times = factor * answer, factor * token, factor * step, factor * beside, factor * pair
        self.scaled += 1
        return True

    def _solve(self) -> None:
        """Work out anew what is known; where there is no solution, it stays as it was.

        A step takes its share of a prompt token at least: first tokens alone could make it next to nothing, and its
        proportions would hold all the rest there.
        """
        assert self._times is not None
        times, unit = self._times, max(self._times[_STEP], 1e-9)
        streams, firsts = self._kinds
        of_both = (
            map(mul, repeat(1.0 / streams.grown), streams.sums),
            map(mul, repeat(1.0 / firsts.grown), firsts.sums),
        )
        sums: list[float] = list(map(add, *of_both))
        for place, share, off, own, with_step in _PRIOR:
            least, known = off * unit, times[place]
            weight = (
                1.0 / (least if least > known else known) ** 2
            )  # where it is much more, that is no surprise
            sums[own] += weight
            if share:
                sums[with_step] -= weight * share
                sums[_STEPS] += weight * share * share
        self._unsolved, self._cost = 0, None
        found = solve(sums, self._free)
        if found is None:
            self._free = ALL
            return
        (answer, token, step, beside, pair), self._free = found
        step = max(step, LEAST_STEP * token, 1e-3 * times[_STEP])
        self._times = answer, token, step, beside, pair
