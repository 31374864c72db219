"""A runner that computes nothing: each iteration takes the time the step cost predicts, on the real clock."""

from __future__ import annotations

import random
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weighbridge.cost import StepCost
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.request import Request, TokenLogprob
from weighbridge.workload.lengths import Lengths


@dataclass(frozen=True, slots=True)
class _Answer:
    length: int | None  # tokens with the end of text; None: `max_tokens` ends it
    key: int  # where its words begin


class SimulatedRunner:
    """A `BatchRunner` for `LocalEngine`. The words of an answer follow from its prompt and `seed`: they repeat.

    An answer ends after a length drawn from `lengths` (None: when `max_tokens` ends it). `freeze` stops the
    machine for a while, as a driver reset or a page storm would.
    """

    experts = None  # a simulated model is dense, and has no hidden states
    hidden_size = None

    def __init__(
        self,
        cost: StepCost,
        lengths: Lengths | None = None,
        *,
        words: Sequence[int],
        end_of_text: int,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cost = cost
        self._lengths = lengths
        self._words = words
        self._end_of_text = end_of_text
        self._seed = seed
        self._clock = clock
        self._frozen_until = 0.0
        self._thawed = threading.Event()

    def freeze(self, seconds: float) -> None:
        """Let no iteration end before `seconds` from now have passed; 0 ends a freeze at once."""
        self._frozen_until = self._clock() + seconds
        if not seconds:
            self._thawed.set()

    def execute(self, batch: Batch) -> Sampled:
        began = self._clock()
        ends = began + self._cost.seconds(*batch.work)
        tokens = [[self._next(piece)] if _draws(piece) else [] for piece in batch.slices]
        logprobs = [_logprobs(piece, ids) for piece, ids in zip(batch.slices, tokens, strict=True)]
        scores = {index: _scores(piece) for index, piece in enumerate(batch.slices) if piece.scored}
        self._wait_until(ends)
        return Sampled(tokens, logprobs, scores=scores, model_seconds=self._clock() - began)

    def _wait_until(self, ends: float) -> None:
        remaining = ends - self._clock()
        if remaining > 0.0:
            time.sleep(remaining)
        while (frozen := self._frozen_until - self._clock()) > 0.0:
            self._thawed.clear()
            self._thawed.wait(min(frozen, 1.0))

    def _next(self, piece: Slice) -> int:
        request = piece.request
        answer = request.sampler_state
        if not isinstance(answer, _Answer):
            answer = request.sampler_state = self._answer(request)
        produced = request.num_output_tokens
        if answer.length is not None and produced + 1 >= answer.length:
            return self._end_of_text
        return self._words[(answer.key + produced * 0x9E3779B1 >> 7) % len(self._words)]

    def _answer(self, request: Request) -> _Answer:
        """Return how long the answer is and where its words begin: the same for the same prompt and seed."""
        given = request.params.seed or 0
        key = zlib.crc32(array("q", [self._seed, given, *request.prompt]).tobytes())
        if self._lengths is None or request.params.ignore_eos:
            return _Answer(None, key)
        length = self._lengths.draw(random.Random(key))
        return _Answer(max(length, request.params.min_tokens + 1), key)


def _draws(piece: Slice) -> bool:
    return piece.samples and not piece.request.ends_with_prompt


def _scores(piece: Slice) -> list[TokenLogprob]:
    """A simulated model is sure of everything."""
    start = piece.start + 1
    return [_certain(token) for token in piece.request.prompt[start : start + piece.scored]]


def _certain(token: int) -> TokenLogprob:
    return TokenLogprob(token, 0.0, ((token, 0.0),), 1)


def _logprobs(piece: Slice, ids: list[int]) -> list[TokenLogprob] | None:
    if piece.request.params.logprobs is None or not ids:
        return None
    return [_certain(token) for token in ids]
