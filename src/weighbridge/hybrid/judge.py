"""How far a local answer can be trusted: faults in its text, then what was learned, then the model's own doubt."""

from __future__ import annotations

from typing import Protocol

from weighbridge.hybrid import checks
from weighbridge.hybrid.attempt import Attempt
from weighbridge.hybrid.request import RoutedRequest
from weighbridge.hybrid.router import Judgement
from weighbridge.hybrid.signals import Signals, confidence


class AnswerModel(Protocol):
    """What `route train` learned from labels that hold the edge's answers."""

    def confidence(self, prompt: str, answer: str, signals: Signals | None) -> float: ...


class AnswerJudge:
    """Calibrated where a model was trained; a whole answer is read, of a stream's beginning only the signals."""

    def __init__(self, model: AnswerModel | None = None) -> None:
        self._model = model

    def __call__(self, request: RoutedRequest, attempt: Attempt) -> Judgement:
        text, signals = attempt.text, attempt.signals.read()
        fault = checks.fault(text, request.body, attempt.finish_reason, complete=attempt.complete)
        if fault:
            return Judgement(0.0, fault)
        if self._model is not None and attempt.complete and text:
            return Judgement(self._model.confidence(request.prompt, text, signals), "the trained judge")
        if signals is not None:
            return Judgement(confidence(signals), f"mean probability of {signals.tokens} tokens")
        return Judgement(1.0, "nothing to judge it by: the edge gives no log-probabilities")
