"""Closed forms of what bets can bring and cost, behind `weighbridge.flow.bets.gate`. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weighbridge.flow.bets.gate import Node, Stakes, finish_times

#: Stands for "no bound" where a count is returned.
UNBOUNDED = 2**31 - 1


def widest(stakes: Stakes) -> int:
    """Return how many equally likely hypotheses pay at most: the largest k with k < 1 + V·ΔL/(f·C).

    Q and R are per branch. 0 when not even a certain one pays; `UNBOUNDED` where branches are free.
    """
    at_risk = stakes.spent_share * stakes.cost_usd
    fixed = stakes.queue_usd + stakes.risk_usd
    value = stakes.value_per_second * stakes.saved_seconds
    if at_risk + fixed <= 0.0:
        return UNBOUNDED if value > 0.0 else 0
    # (1/k)·value > (1 − 1/k)·at_risk + fixed  <=>  k·(at_risk + fixed) < value + at_risk
    bound = (value + at_risk) / (at_risk + fixed)
    return max(math.ceil(bound) - 1, 0)


def deepest(probability: float, threshold: float) -> int:
    """Return how many guesses behind each other still pay: the largest d with p^d >= p*."""
    if threshold <= 0.0 or probability >= 1.0:
        return UNBOUNDED
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


def tool_speculation_seconds(steps: int, model: float, tool: float, guess: float, hits: float) -> float:
    """Time of an agent of `steps` rounds whose tool calls are guessed: αN·max(G, g+T) + (1−α)N(G+T).

    G seconds of model, T of tool, g to guess, α the share of right guesses (arXiv 2512.15834). With α = 0 it
    is the sequential time.
    """
    hit = hits * steps * max(model, guess + tool)
    return hit + (1.0 - hits) * steps * (model + tool)


def action_speculation_reduction(hits: float, guess_rate: float, actor_rate: float) -> float:
    """Share of time saved by guessing the next action: p/(1+p) · a/(a+b).

    a and b are the rates of the guesser and of the actor (arXiv 2510.04371). It holds for fixed call times;
    independent exponential ones bring half of it (tests/flow/bets/test_evidence.py simulates both).
    """
    return hits / (1.0 + hits) * guess_rate / (guess_rate + actor_rate)


def best_of(success: float, tries: int) -> tuple[float, float]:
    """Chance that one of `tries` succeeds, and expected draws when they are made one after the other."""
    chance = 1.0 - (1.0 - success) ** tries
    return chance, chance / success if success > 0.0 else float(tries)


def makespan(nodes: Sequence[Node]) -> float:
    """The longest path, in seconds."""
    return max(finish_times(nodes), default=0.0)


def graham_bound(work: float, longest_path: float, machines: int) -> float:
    """Any list schedule ends by W/m + (1 − 1/m)·L (Graham 1969)."""
    return work / machines + (1.0 - 1.0 / machines) * longest_path
