"""The gate: is this bet worth placing? Pure: no clock, no randomness, no I/O; numbers in, a verdict out.

A bet starts work on a guess. Won, it takes `saved_seconds` off the flow; lost, part of its cost is gone. It
pays exactly when

    p · V · ΔL  >  (1 − p) · f · C  +  Q  +  R

p the chance that the guess is right; V what a second is worth to the flow, in dollars; ΔL the seconds that a
right guess takes off the critical path; C what the speculative work costs; f the share of C that is spent
before a wrong guess is cancelled; Q the harm done to others by queueing behind it; R the harm of disclosing
its arguments or taking it back. (The form of arXiv 2606.07846, definitions D2 to D5; terms ours.)

With Q = R = 0 the least p that pays is p* = fC / (fC + V·ΔL). Three habits follow without further rules.
Width: of k equally likely hypotheses each has p = 1/k, so they pay only while k < 1 + V·ΔL/(f·C). Depth: a
guess behind d − 1 others has p^d, so it pays while d <= ln p* / ln p. Price: on an idle machine of one's
own C and Q are nearly nothing and almost any bet pays; on a full one Q alone stops it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


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
class Verdict:
    """Whether to launch, and the reason in words."""

    launch: bool
    reason: str
    stakes: Stakes

    def __str__(self) -> str:
        return ("launch: " if self.launch else "decline: ") + self.reason


def decide(stakes: Stakes) -> Verdict:
    """Launch iff the expected gain exceeds the expected loss."""
    if stakes.saved_seconds <= 0.0:
        return Verdict(False, "saves nothing: off the critical path, or almost there already", stakes)
    gain, loss = stakes.gain, stakes.loss
    sides = f"p·V·ΔL = {_usd(gain)} {'>' if gain > loss else '<='} (1−p)·f·C + Q + R = {_usd(loss)}"
    threshold = break_even(stakes)
    needed = f" (p {stakes.probability:.2f}, needs {threshold:.2f})" if threshold <= 1.0 else ""
    return Verdict(gain > loss, sides + needed, stakes)


def break_even(stakes: Stakes) -> float:
    """The least probability at which the bet breaks even, p*; more than 1 when no probability is enough."""
    at_risk = stakes.spent_share * stakes.cost_usd
    fixed = stakes.queue_usd + stakes.risk_usd
    whole = at_risk + stakes.value_per_second * stakes.saved_seconds
    return (at_risk + fixed) / whole if whole > 0.0 else math.inf


def widest(stakes: Stakes) -> int:
    """Most equally likely hypotheses that each pay: the largest k with k < 1 + V·ΔL/(f·C).

    Q and R are per branch. 0 when not even a certain one pays; with free branches there is no bound, and
    the largest int that callers can count to, 2**31 − 1, says so.
    """
    unbounded = 2**31 - 1
    at_risk = stakes.spent_share * stakes.cost_usd
    fixed = stakes.queue_usd + stakes.risk_usd
    value = stakes.value_per_second * stakes.saved_seconds
    if at_risk + fixed <= 0.0:
        return unbounded if value > 0.0 else 0
    # (1/k)·value > (1 − 1/k)·at_risk + fixed  <=>  k·(at_risk + fixed) < value + at_risk
    bound = (value + at_risk) / (at_risk + fixed)
    return max(math.ceil(bound) - 1, 0)


def deepest(probability: float, threshold: float) -> int:
    """Most guesses behind each other that still pay: the largest d with p^d >= p*. 2**31 − 1: no bound."""
    if threshold <= 0.0 or probability >= 1.0:
        return 2**31 - 1
    if threshold > 1.0 or probability <= 0.0:
        return 0
    return math.floor(math.log(threshold) / math.log(probability) + 1e-12)


def expected_steps(probability: float, depth: int) -> float:
    """Steps advanced per round of `depth` chained guesses, the certain one included: (1−p^{D+1})/(1−p)."""
    if probability >= 1.0:
        return depth + 1.0
    return (1.0 - probability ** (depth + 1)) / (1.0 - probability)


def tokens_usd(
    input_tokens: int, output_tokens: int, input_per_million: float, output_per_million: float
) -> float:
    """C of one model call: the price of its tokens, in dollars."""
    return (input_tokens * input_per_million + output_tokens * output_per_million) / 1e6


def spent_share(input_usd: float, output_usd: float, output_done: float) -> float:
    """f of a model call cancelled after a share of its output: the prompt is paid whole."""
    total = input_usd + output_usd
    return (input_usd + output_done * output_usd) / total if total > 0.0 else 1.0


def _usd(amount: float) -> str:
    return f"${amount:.3g}"
