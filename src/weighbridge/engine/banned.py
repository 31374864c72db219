"""What may not come next, whatever the model thinks: all but some tokens, and the ends of unwanted words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weighbridge.engine.request import SamplingParams


@dataclass(frozen=True, slots=True)
class BannedTokens:
    """`never`: tokens that may come nowhere; `words`: tokens that may not follow each other, `longest` at the most."""

    never: npt.NDArray[np.int64]
    words: Sequence[tuple[int, ...]]
    longest: int

    @classmethod
    def of(cls, params: SamplingParams, vocab_size: int) -> BannedTokens | None:
        """Return what `params` forbid of a vocabulary; None where that is nothing."""
        if params.allowed_tokens is None and not params.bad_words:
            return None
        never = np.zeros(vocab_size, np.bool_)
        if params.allowed_tokens is not None:
            never[:] = True
            never[list(params.allowed_tokens)] = False
        never[[word[0] for word in params.bad_words if len(word) == 1]] = True
        words = [word for word in params.bad_words if len(word) > 1]
        return cls(np.flatnonzero(never), words, max(map(len, words), default=0))

    def apply(self, scores: npt.NDArray[np.float32], output: Sequence[int]) -> None:
        """Forbid in `scores` what may not follow `output`, of which the last `longest` tokens are enough."""
        scores[self.never] = -np.inf
        for word in self.words:
            begun = len(word) - 1
            if tuple(output[-begun:]) == word[:-1]:
                scores[word[-1]] = -np.inf
