"""Thompson sampling over thresholds (Thompson 1933), off by default. Pure: randomness is passed in.

An arm is a threshold. Its reward per request is quality times its worth, minus what was paid, scaled into [0, 1].
It only ever chooses a threshold: policy, caps and budgets are asked afterwards, and hold whatever it picks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class ThresholdBandit:
    """`beta`: draws from Beta(a, b). Counts fade by `memory`, so that drift is followed."""

    arms: Sequence[float]
    usd_per_quality: float
    beta: Callable[[float, float], float]
    memory: float = 0.999
    wins: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wins = self.wins or [1.0] * len(self.arms)
        self.losses = self.losses or [1.0] * len(self.arms)

    def choose(self) -> float:
        """The threshold for the next request."""
        draws = [self.beta(a, b) for a, b in zip(self.wins, self.losses, strict=True)]
        return self.arms[draws.index(max(draws))]

    def learn(self, threshold: float, quality: float, usd: float) -> None:
        """Credit the arm nearest to the threshold that was used."""
        arm = min(range(len(self.arms)), key=lambda i: abs(self.arms[i] - threshold))
        reward = min(max((quality * self.usd_per_quality - usd) / self.usd_per_quality, 0.0), 1.0)
        for counts in (self.wins, self.losses):
            counts[:] = [1.0 + (one - 1.0) * self.memory for one in counts]
        self.wins[arm] += reward
        self.losses[arm] += 1.0 - reward
