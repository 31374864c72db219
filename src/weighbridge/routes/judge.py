"""How far a local answer can be trusted: faults in its text, then what was learned, then the model's own doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from weighbridge.routes import checks
from weighbridge.routes.agreement import pooled, share
from weighbridge.routes.attempt import Attempt
from weighbridge.routes.request import RoutedRequest
from weighbridge.routes.router import Judgement
from weighbridge.routes.signals import Signals, confidence


class AnswerModel(Protocol):
    """What `route train` learned from labels that hold the edge's answers."""

    @property
    def judge_has_signals(self) -> bool: ...
    @property
    def judge_has_agreement(self) -> bool: ...
    def confidence(
        self, prompt: str, answer: str, signals: Signals | None = None, agreement: float | None = None
    ) -> float: ...


class AnswerJudge:
    """Calibrated where a model was trained; a whole answer is read, of a stream's beginning only the signals."""

    def __init__(self, model: AnswerModel | None = None) -> None:
        self._model = model

    def __call__(self, request: RoutedRequest, attempt: Attempt, samples: Sequence[str] = ()) -> Judgement:
        text, signals = attempt.text, attempt.signals.read()
        fault = checks.fault(text, request.body, attempt.finish_reason, complete=attempt.complete)
        if fault:
            return Judgement(0.0, fault)
        agreeing = share(text, samples) if samples else None
        whole = text if attempt.complete else ""
        learned = self._learned(request.prompt, whole, signals, agreeing)
        judged = learned or _untrained(signals)
        if agreeing is None:
            return judged
        said = f"{round(agreeing * len(samples))} of {len(samples)} further samples agree"
        if learned is None and signals is None:
            return Judgement(pooled(0.5, agreeing, len(samples)), said)
        certain = judged.confidence
        if learned is None or self._model is None or not self._model.judge_has_agreement:
            certain = pooled(certain, agreeing, len(samples))
        return Judgement(certain, f"{judged.reason}; {said}")

    def _learned(
        self, prompt: str, answer: str, signals: Signals | None, agreeing: float | None
    ) -> Judgement | None:
        """None where the model was trained on more than is known of this answer."""
        model = self._model
        if model is None or not answer:
            return None
        if (model.judge_has_signals and signals is None) or (model.judge_has_agreement and agreeing is None):
            return None
        return Judgement(model.confidence(prompt, answer, signals, agreeing), "the trained judge")


def _untrained(signals: Signals | None) -> Judgement:
    if signals is None:
        return Judgement(1.0, "nothing to judge it by: the edge gives no log-probabilities")
    return Judgement(confidence(signals), f"mean probability of {signals.tokens} tokens")
