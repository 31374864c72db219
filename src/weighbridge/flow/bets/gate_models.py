"""Closed forms of what speculation can bring at most, to compare measurements with. Pure."""

from __future__ import annotations


def tool_speculation_seconds(steps: int, model: float, tool: float, guess: float, hits: float) -> float:
    """Time of an agent of `steps` rounds whose tool calls are guessed: αN·max(G, g+T) + (1−α)N(G+T).

    G seconds of model, T of tool, g to guess, α the share of right guesses (arXiv 2512.15834). With α = 0 it
    is the sequential time.
    """
    hit = hits * steps * max(model, guess + tool)
    return hit + (1.0 - hits) * steps * (model + tool)


def action_speculation_reduction(hits: float, guess_rate: float, actor_rate: float) -> float:
    """Share of time saved by guessing the next action: p/(1+p) · a/(a+b).

    a and b are the rates of the guesser and of the actor (arXiv 2510.04371). Holds for fixed call times; iid
    exponential ones bring half of it (tests/flow/test_gate.py simulates both).
    """
    return hits / (1.0 + hits) * guess_rate / (guess_rate + actor_rate)


def best_of(success: float, tries: int) -> tuple[float, float]:
    """Chance that one of `tries` succeeds, and expected draws when they are made one after the other."""
    chance = 1.0 - (1.0 - success) ** tries
    return chance, chance / success if success > 0.0 else float(tries)
