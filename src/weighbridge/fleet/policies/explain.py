"""A choice in words: for `weighbridge route explain TICKET`."""

from __future__ import annotations

from weighbridge.fleet.api import Choice


def explain(choice: Choice, policy: str, limit: int = 16) -> list[str]:
    """Lines that say where a request went, why, and what stood against the others, best first."""
    lines = [f"{policy} chose {choice.replica}: {choice.reason}"]
    if choice.cached_tokens:
        lines.append(f"{choice.replica} holds {choice.cached_tokens} tokens of the prompt already")
    own = choice.scores.get(choice.replica)
    others = sorted((score, name) for name, score in choice.scores.items() if name != choice.replica)
    for score, name in others[:limit]:
        lines.append(f"{name}: {_compared(score, own, choice.unit)}")
    if len(others) > limit:
        lines.append(f"and {len(others) - limit} more, none of them better")
    return lines


def _compared(score: float, own: float | None, unit: str) -> str:
    amount = f"{_number(score)} {unit}".rstrip()
    if own is None:
        return amount
    if score == own:
        return f"{amount}, the same"
    more = f"{_number(abs(score - own))} {unit}".rstrip()
    return f"{amount}, {more} {'more' if score > own else 'less'}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
