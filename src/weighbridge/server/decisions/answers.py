"""Decisions as OpenAI writes them, with the label mass beside each. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weighbridge.server.decisions.calibration import Calibration
from weighbridge.server.decisions.labels import LabelShares
from weighbridge.wire.protocols.decisions import ChoiceQuestion, Predicate, Question


def answer_to(question: Question, found: LabelShares) -> dict[str, Any]:
    """One answer. `label_mass`, which OpenAI has not: how much of all that could have been said the labels are."""
    head: dict[str, Any] = {"name": question.name, "label_mass": found.mass}
    if isinstance(question, Predicate):
        return {"type": "predicate", **head, "probability": found.shares[0]}
    confidence = found.shares[found.best]
    if isinstance(question, ChoiceQuestion):
        values = [one.value for one in question.choices]
        shares = [{"value": one, "probability": p} for one, p in zip(values, found.shares, strict=True)]
        best = values[found.best]
        return {"type": "choice", **head, "choice": best, "confidence": confidence, "probabilities": shares}
    levels = [
        {"label": one.label, "value": place, "probability": found.shares[place]}
        for place, one in enumerate(question.levels)
    ]
    return {
        "type": "score",
        **head,
        "score": found.expected,
        "confidence": confidence,
        "probabilities": levels,
    }


def distinct_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens of prompts in which a beginning that one shares with the one before it counts once."""
    total, before = 0, prompts[0][:0]
    for prompt in prompts:
        shared = 0
        for one, other in zip(before, prompt, strict=False):
            if one != other:
                break
            shared += 1
        total, before = total + len(prompt) - shared, prompt
    return total


def recalibrated(
    question: Question, answer: dict[str, Any], calibration: Calibration | None
) -> dict[str, Any]:
    """An answer as its calibration has it, with what that is worth; without one, and a refusal, as it is."""
    if calibration is None or answer.get("type") == "refusal":
        return answer
    lone = isinstance(question, Predicate)
    if lone:
        shares = (answer["probability"], 1.0 - answer["probability"])
    else:
        shares = tuple(one["probability"] for one in answer["probabilities"])
    found = calibration.applied(LabelShares(shares, answer.get("label_mass", 1.0)), lone)
    told = {"calibration": calibration.as_dict(), "uncalibrated": list(shares[:1] if lone else shares)}
    return {**answer, **answer_to(question, found), **told}
