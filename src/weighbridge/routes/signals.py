"""What an answer's token log-probabilities say about it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

#: A log-probability below this says no more than "very unlikely"; OpenAI writes -9999 for impossible.
FLOOR = -20.0


@dataclass(frozen=True, slots=True)
class Signals:
    """Of the tokens so far. Log-probabilities in nats; margin: best minus second best; entropy of the
    alternatives reported, with the rest of the mass as one more. `first_entropy` is that of the first token:
    what the prefill left open."""

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
    margins: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)

    def add(self, content: Iterable[Mapping[str, Any]]) -> None:
        """`content`: OpenAI's `choices[].logprobs.content`."""
        for token in content:
            self.logprobs.append(max(float(token["logprob"]), FLOOR))
            top = [max(float(one["logprob"]), FLOOR) for one in token.get("top_logprobs") or ()]
            if len(top) >= 2:
                top.sort(reverse=True)
                self.margins.append(top[0] - top[1])
                self.entropies.append(_entropy(top))

    def read(self) -> Signals | None:
        """None while nothing has been collected."""
        if not self.logprobs:
            return None
        ordered = sorted(self.logprobs)
        return Signals(
            tokens=len(ordered),
            mean=sum(ordered) / len(ordered),
            least=ordered[0],
            lowest_tenth=ordered[len(ordered) // 10],
            first=self.logprobs[0],
            margin=_mean(self.margins),
            entropy=_mean(self.entropies),
            first_entropy=self.entropies[0] if self.entropies else 0.0,
        )


def confidence(signals: Signals) -> float:
    """A probability before anything was learned: the geometric mean of the tokens' probabilities."""
    return math.exp(signals.mean)


def _entropy(logprobs: Sequence[float]) -> float:
    masses = [math.exp(one) for one in logprobs]
    rest = 1.0 - sum(masses)
    if rest > 1e-9:
        masses.append(rest)
    return -sum(mass * math.log(mass) for mass in masses if mass > 0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
