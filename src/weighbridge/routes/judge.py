"""How far a local answer can be trusted: faults in its text, what was learned, the model's own doubt. Pure.

Three things give an answer away before anybody knows the right one. Its text: it refuses, goes round in circles, is
not the JSON that was asked for. Its tokens' log-probabilities. And further answers to the same question, drawn at a
temperature: they agree where the model knows and scatter where it guesses (self-consistency, Wang et al. 2022, arXiv
2203.11171).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

#: A log-probability below this says no more than "very unlikely"; OpenAI writes -9999 for impossible.
FLOOR = -20.0
#: F1 of the words from which two answers without numbers count as the same.
ALIKE = 0.6
#: An answer that says one thing this often in a row says nothing.
LOOPS = 4

_REFUSALS = re.compile(
    r"(?i)^\W{0,4}(?:i(?:'|’| a)?m (?:very |really )?(?:sorry|unable|afraid)"
    r"|i (?:can(?:no|')t|am not able to|do not|don't) (?:help|assist|provide|answer|fulfill|comply|know|understand)"
    r"|i (?:do not|don't) have (?:access|enough|the ability|any information)"
    r"|i apologi[sz]e|sorry,? (?:but )?i|as an ai\b)"
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How probable it is that the local answer is right, and what says so."""

    confidence: float
    reason: str


@dataclass(frozen=True, slots=True)
class Draft:
    """What there is of an answer when it is judged. `complete`: it has ended."""

    text: str
    complete: bool
    finish_reason: str | None
    meter: SignalMeter


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
    """Calibrated where a model was trained. A whole answer is read; of a stream's beginning only its signals are."""

    def __init__(self, model: AnswerModel | None = None) -> None:
        self._model = model

    def __call__(
        self, prompt: str, body: Mapping[str, Any], draft: Draft, samples: Sequence[str] = ()
    ) -> Judgement:
        """Judge a draft of an answer to `prompt`. `samples` are further answers to it, `body` is the request."""
        bad = fault(draft.text, body, draft.finish_reason, complete=draft.complete)
        if bad:
            return Judgement(0.0, bad)
        agreeing = share(draft.text, samples) if samples else None
        whole = draft.text if draft.complete else ""
        learned = self._learned(prompt, whole, draft.meter, agreeing)
        judged = learned or _untrained(draft.meter)
        if agreeing is None:
            return judged
        count = f"{round(agreeing * len(samples))} of {len(samples)} further samples agree"
        if learned is None and not draft.meter.logprobs:
            return Judgement(pooled(0.5, agreeing, len(samples)), count)
        certain = judged.confidence
        if learned is None or self._model is None or not self._model.judge_has_agreement:
            certain = pooled(certain, agreeing, len(samples))
        return Judgement(certain, f"{judged.reason}; {count}")

    def _learned(
        self, prompt: str, answer: str, meter: SignalMeter, agreeing: float | None
    ) -> Judgement | None:
        """None where the model was trained on more than is known of this answer."""
        model = self._model
        if model is None or not answer:
            return None
        signals = meter.read()
        if (model.judge_has_signals and signals is None) or (model.judge_has_agreement and agreeing is None):
            return None
        return Judgement(model.confidence(prompt, answer, signals, agreeing), "the trained judge")


def _untrained(meter: SignalMeter) -> Judgement:
    """The geometric mean of the tokens' probabilities."""
    tokens = len(meter.logprobs)
    if not tokens:
        return Judgement(1.0, "nothing to judge it by: the edge gives no log-probabilities")
    return Judgement(math.exp(_mean(meter.logprobs)), f"mean probability of {tokens} tokens")


# -- the text --------------------------------------------------------------------------------------------


def fault(text: str, body: Mapping[str, Any], finish_reason: str | None, *, complete: bool) -> str:
    """Return what makes an answer certainly not good; empty when nothing does. `complete`: it has ended."""
    if is_refusal(text):
        return "it refuses"
    if repeats(text):
        return "it repeats itself"
    if not complete:
        return ""
    wanted = body.get("response_format") or {}
    if finish_reason == "length" and not (body.get("max_tokens") or body.get("max_completion_tokens")):
        return "it was cut at the side's own limit"
    if finish_reason != "tool_calls" and not text.strip():
        return "it is empty"
    if wanted.get("type") in ("json_object", "json_schema") and not is_json(text):
        return "it is not the JSON that was asked for"
    return ""


def is_refusal(text: str) -> bool:
    return _REFUSALS.search(text[:200]) is not None


def repeats(text: str) -> bool:
    """Whether the end of the text goes round in circles: one unit of up to 80 characters, over and over."""
    tail = text.rstrip()[-400:]
    for size in range(1, min(80, len(tail) // LOOPS) + 1):
        unit = tail[-size:]
        times = max(LOOPS, -(-24 // size))
        if len(tail) >= size * times and tail.endswith(unit * times) and not unit.isspace():
            return True
    return False


def is_json(text: str) -> bool:
    """Whether the text is one JSON value, code fences aside."""
    inside = text.strip()
    if inside.startswith("```"):
        inside = inside.removeprefix("```").removeprefix("json")
    try:
        json.loads(inside.removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True


# -- the log-probabilities -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signals:
    """What the log-probabilities of an answer's tokens say about it, in nats.

    `margin` is the best minus the second best; `entropy` is that of the alternatives reported, with the rest of the
    mass as one more; `first_entropy` is that of the first token: what the prefill left open.
    """

    tokens: int
    mean: float
    least: float
    lowest_tenth: float
    first: float
    margin: float
    entropy: float
    first_entropy: float

    def as_list(self) -> list[float]:
        return [float(value) for value in astuple(self)]


@dataclass(slots=True)
class SignalMeter:
    """Collects the log-probabilities of a stream's chunks."""

    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Sequence[float]] = field(default_factory=list)  # of tokens that have more than one

    def add(self, content: Iterable[Mapping[str, Any]]) -> None:
        """Take in OpenAI's `choices[].logprobs.content`."""
        for token in content:
            top = [float(other["logprob"]) for other in token.get("top_logprobs") or ()]
            self.token(float(token["logprob"]), top)

    def token(self, logprob: float, alternatives: Sequence[float]) -> None:
        """Take in one token and the log-probabilities of the most probable ones in its place."""
        self.logprobs.append(max(logprob, FLOOR))
        if len(alternatives) >= 2:
            self.alternatives.append(alternatives)

    def read(self) -> Signals | None:
        """None while nothing has been collected."""
        if not self.logprobs:
            return None
        ordered = sorted(self.logprobs)
        tops = [sorted([max(other, FLOOR) for other in top], reverse=True) for top in self.alternatives]
        entropies = [_entropy(top) for top in tops]
        return Signals(
            tokens=len(ordered),
            mean=sum(ordered) / len(ordered),
            least=ordered[0],
            lowest_tenth=ordered[len(ordered) // 10],
            first=self.logprobs[0],
            margin=_mean([top[0] - top[1] for top in tops]),
            entropy=_mean(entropies),
            first_entropy=entropies[0] if entropies else 0.0,
        )


def confidence(signals: Signals) -> float:
    """A probability before anything was learned: the geometric mean of the tokens' probabilities."""
    return math.exp(signals.mean)


def _entropy(logprobs: Sequence[float]) -> float:
    masses = [math.exp(logprob) for logprob in logprobs]
    rest = 1.0 - sum(masses)
    if rest > 1e-9:
        masses.append(rest)
    return -sum(mass * math.log(mass) for mass in masses if mass > 0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# -- several answers -------------------------------------------------------------------------------------


def agreement(one: str, other: str) -> float:
    """1 where the last numbers agree, 0 where they do not; where there are none, F1 of the words."""
    numbers = [re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", "")) for text in (one, other)]
    if numbers[0] and numbers[1]:
        return float(float(numbers[0][-1]) == float(numbers[1][-1]))
    ours, theirs = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def share(answer: str, samples: Sequence[str]) -> float:
    """Of `samples`, the share that says the same as `answer`, in [0, 1]. Raises ValueError without samples."""
    if not samples:
        raise ValueError("agreement needs at least one sample")
    return sum(agreement(answer, sample) >= ALIKE for sample in samples) / len(samples)


def pooled(confidence: float, agreeing: float, samples: int) -> float:
    """A confidence and an agreement as one: the mean of their log-odds.

    The agreement counts as a rate that was seen in `samples` trials, under a uniform prior: four of four are
    5/6, never certainty.
    """
    rate = (agreeing * samples + 1.0) / (samples + 2.0)
    clipped = min(max(confidence, 1e-3), 1.0 - 1e-3)
    mean = 0.5 * (math.log(clipped / (1.0 - clipped)) + math.log(rate / (1.0 - rate)))
    return 1.0 / (1.0 + math.exp(-mean))
