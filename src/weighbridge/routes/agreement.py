"""Whether answers say the same. Pure.

Several answers to one question, drawn at a temperature, agree where the model knows and scatter where it guesses
(self-consistency, Wang et al. 2022, arXiv 2203.11171).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

#: F1 of the words from which two answers without numbers count as the same.
ALIKE = 0.6


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
    return sum(agreement(answer, one) >= ALIKE for one in samples) / len(samples)


def pooled(confidence: float, agreeing: float, samples: int) -> float:
    """A confidence and an agreement as one: the mean of their log-odds.

    The agreement counts as a rate that was seen in `samples` trials, under a uniform prior: four of four are
    5/6, never certainty.
    """
    rate = (agreeing * samples + 1.0) / (samples + 2.0)
    clipped = min(max(confidence, 1e-3), 1.0 - 1e-3)
    mean = 0.5 * (math.log(clipped / (1.0 - clipped)) + math.log(rate / (1.0 - rate)))
    return 1.0 / (1.0 + math.exp(-mean))
