"""The gate: is this bet worth placing? Pure: no clock, no randomness, no I/O; numbers in, a verdict out.

A bet starts work on a guess. Won, it takes `saved_seconds` off the flow; lost, part of its cost is gone. It
pays exactly when

    p · V · ΔL  >  (1 − p) · f · C  +  Q  +  R

p the chance that the guess is right; V what a second is worth to the flow, in dollars; ΔL the seconds that a
right guess takes off the critical path; C what the speculative work costs; f the share of C that is spent
before a wrong guess is cancelled; Q the harm done to others by queueing behind it; R the harm of disclosing
its arguments or taking it back. (The form of arXiv 2606.07846, definitions D2 to D5; terms ours.)

With Q = R = 0 the smallest p that pays is p* = fC / (fC + V·ΔL). Three habits follow without further rules.
Width: of k equally likely hypotheses each has p = 1/k, so they pay only while k < 1 + V·ΔL/(f·C). Depth: a
guess behind d − 1 others has p^d, so it pays while d <= ln p* / ln p. Price: on an idle machine of one's
own C and Q are nearly nothing and almost any bet pays; on a full one Q alone stops it.

Below the inequality stand its terms: Q from a server's load, p from outcomes (`Belief`), ΔL and C from the
graph of a run (`saving`). The closed forms behind these rules are in `benchmarks/evidence/speculation.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from weighbridge.cost.step import StepCost

# -- the inequality --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stakes:
    """What a bet stands to win and lose. Seconds and US dollars."""

    probability: float
    value_per_second: float  # V
    saved_seconds: float  # ΔL
    cost_usd: float  # C
    spent_share: float = 1.0  # f
    queue_usd: float = 0.0  # Q
    risk_usd: float = 0.0  # R

    @property
    def gain(self) -> float:
        """Expected gain in dollars: p·V·ΔL."""
        return self.probability * self.value_per_second * self.saved_seconds

    @property
    def loss(self) -> float:
        """Expected loss in dollars: (1−p)·f·C + Q + R."""
        wasted = (1.0 - self.probability) * self.spent_share * self.cost_usd
        return wasted + self.queue_usd + self.risk_usd

    @property
    def expected_value(self) -> float:
        return self.gain - self.loss


@dataclass(frozen=True, slots=True)
class BetVerdict:
    """Whether to launch, and the reason in words."""

    launch: bool
    reason: str
    stakes: Stakes

    def __str__(self) -> str:
        return ("launch: " if self.launch else "decline: ") + self.reason


def decide(stakes: Stakes) -> BetVerdict:
    """Launch if and only if the expected gain exceeds the expected loss."""
    if stakes.saved_seconds <= 0.0:
        return BetVerdict(False, "saves nothing: off the critical path, or almost there already", stakes)
    gain, loss = stakes.gain, stakes.loss
    sides = f"p·V·ΔL = {_usd(gain)} {'>' if gain > loss else '<='} (1−p)·f·C + Q + R = {_usd(loss)}"
    threshold = break_even(stakes)
    needed = f" (p {stakes.probability:.2f}, needs {threshold:.2f})" if threshold <= 1.0 else ""
    return BetVerdict(gain > loss, sides + needed, stakes)


def break_even(stakes: Stakes) -> float:
    """Return p*, the smallest probability at which the bet breaks even; more than 1 when none is enough."""
    at_risk = stakes.spent_share * stakes.cost_usd
    fixed = stakes.queue_usd + stakes.risk_usd
    whole = at_risk + stakes.value_per_second * stakes.saved_seconds
    return (at_risk + fixed) / whole if whole > 0.0 else math.inf


def _usd(amount: float) -> str:
    return f"${amount:.3g}"


# -- Q: what the bet's work costs those who wait at the same server --------------------------------------------

#: Tokens of a model call before any has been seen.
INPUT_TOKENS, OUTPUT_TOKENS = 100.0, 100.0


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server says at `/v1/load`: how many requests wait and run, and how long its iterations take."""

    waiting: int
    running: int
    step_cost: StepCost | None = None  # a gateway has none of its own


def seat_seconds(load: ServerLoad, input_tokens: float, output_tokens: float, took: float) -> float:
    """Return the seconds by which another request delays each request that waits.

    Its prompt is computed in their stead, token by token; then it has one of `running` seats for as many
    iterations as it has output tokens, and a seat held for t seconds lets each of those in the queue in
    t / running later. Without a step cost t is `took`, what such a request took lately from its first token.
    """
    seats = max(load.running, 1)
    if load.step_cost is None:
        return took / seats
    iteration = load.step_cost.seconds(seats, seats, 0)
    return input_tokens * load.step_cost.per_token + output_tokens * iteration / seats


def queue_usd(value_per_second: float, seconds: float) -> float:
    """Return Q when the others wait `seconds` longer in total; a second is worth as much to them as to the flow."""
    return value_per_second * seconds


# -- p: how sure may we be? ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Belief:
    """The Beta posterior of a success rate. `forgetting` γ discounts the past: a window of about 1/(1−γ)."""

    prior_won: float = 2.0
    prior_lost: float = 2.0
    forgetting: float = 1.0
    won: float = 0.0
    lost: float = 0.0
    _lower: tuple[float, float] | None = field(default=None, repr=False)  # quantile and value, until a change

    def observe(self, success: bool) -> None:
        self._lower = None
        self.won *= self.forgetting
        self.lost *= self.forgetting
        if success:
            self.won += 1.0
        else:
            self.lost += 1.0

    @property
    def count(self) -> float:
        """Outcomes remembered, discounted."""
        return self.won + self.lost

    @property
    def mean(self) -> float:
        a, b = self.prior_won + self.won, self.prior_lost + self.lost
        return a / (a + b)

    def lower(self, quantile: float = 0.05) -> float:
        """Return the value that the rate exceeds with probability 1 − `quantile`."""
        if self._lower is None or self._lower[0] != quantile:
            value = beta_quantile(quantile, self.prior_won + self.won, self.prior_lost + self.lost)
            self._lower = (quantile, value)
        return self._lower[1]


def beta_quantile(q: float, a: float, b: float) -> float:
    """Return x with I_x(a, b) = q: the inverse of the regularised incomplete beta function, by bisection to 1e-9."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if beta_cdf(middle, a, b) < q:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return I_x(a, b), by Lentz's continued fraction (Numerical Recipes, 6.4)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front)
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(x, a, b) / a
    return 1.0 - front * _fraction(1.0 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    result = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 / (1.0 + numerator * d or tiny)
            c = 1.0 + numerator / c or tiny
            result *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return result


# -- ΔL and C: what a guess takes off the critical path --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """One call: how long it ran, and the positions of the nodes it waited for (all before it)."""

    seconds: float
    after: tuple[int, ...] = ()
    writes: bool = False
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Saving:
    """What a bet on one node's result would bring, and what it would start."""

    seconds: float  # drop of the longest path
    usd: float  # price of what would start before the result is known


def finish_times(nodes: Sequence[Node]) -> list[float]:
    """Return when each node ends if all of them start as soon as they can."""
    ends: list[float] = []
    for node in nodes:
        ends.append(max((ends[i] for i in node.after), default=0.0) + node.seconds)
    return ends


def critical_path(nodes: Sequence[Node]) -> list[int]:
    """Return the positions of the nodes on the longest path, first to last."""
    if not nodes:
        return []
    ends = finish_times(nodes)
    position = max(range(len(nodes)), key=lambda i: ends[i])
    path = [position]
    while nodes[position].after:
        position = max(nodes[position].after, key=lambda i: ends[i])
        path.append(position)
    return path[::-1]


def saving(nodes: Sequence[Node], guessed: int) -> Saving:
    """Return ΔL and C of a right guess of node `guessed`, placed when that node starts.

    What depends on it starts then instead of when it ends, except writes, which wait for it as before,
    and with them what depends on them.
    """
    ends = finish_times(nodes)
    known = ends[guessed]
    placed = known - nodes[guessed].seconds
    early: list[float] = []  # when a node ends with the guess; `behind`: it depends on the guess
    behind = [False] * len(nodes)
    usd = 0.0
    for position, node in enumerate(nodes):
        starts = 0.0
        for dep in node.after:
            starts = max(starts, placed if dep == guessed else early[dep])
            behind[position] = behind[position] or dep == guessed or behind[dep]
        if behind[position] and node.writes:
            starts = max(starts, known)
        elif behind[position] and starts < known:
            usd += node.usd
        early.append(starts + node.seconds)
    total = max(max(early, default=0.0), known)
    return Saving(max(max(ends, default=0.0) - total, 0.0), usd)
