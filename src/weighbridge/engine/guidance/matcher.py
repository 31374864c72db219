"""One constrained output: its masks are computed on other threads, while the model computes the next logits."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher

from weighbridge.engine.batch import NothingLeft

#: CPU seconds from which a mask is a long one.
LONG_MASK = 0.005
#: Seconds after which an output whose mask does not come is given up.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Mask:
    """What may not come next: bool [vocab], and the CPU seconds that finding it out took."""

    forbidden: torch.Tensor
    seconds: float


@dataclass(frozen=True, slots=True)
class Compiled:
    """A constraint at the start of an output. `start` is only ever copied; `size` is its bytes."""

    start: LLMatcher
    first: Mask
    size: int


class MaskPools:
    """Threads that compute masks. Outputs with long ones have threads of their own, so that they delay no others."""

    def __init__(self) -> None:
        self.short = ThreadPoolExecutor(2, thread_name_prefix="masks")
        self.long = ThreadPoolExecutor(2, thread_name_prefix="long-masks")


class Matcher:
    """The state of one constrained output.

    `forbidden` gives the next mask, and `accept` moves on and has the one behind it computed. Called on the engine's
    thread only; neither waits.
    """

    def __init__(self, compiled: Future[Compiled], pools: MaskPools, vocab_size: int) -> None:
        self._compiled = compiled
        self._pools = pools
        self._vocab_size = vocab_size
        self._inner: LLMatcher | None = None
        self._next: Future[Mask] | None = None  # None: nothing was accepted yet
        self._since = time.monotonic()

    @property
    def pending(self) -> Future[Compiled] | Future[Mask]:
        """What has to be done before `forbidden` knows."""
        return self._compiled if self._next is None else self._next

    def forbidden(self) -> torch.Tensor | None:
        """Bool [vocab]: tokens that may not come next; None while that is being found out.

        Only end-of-sequence is left once the output is complete. Raises ValueError when the constraint has failed.
        """
        if not self.pending.done():
            if time.monotonic() > self._since + PATIENCE:
                raise ValueError(f"the constraint's next mask took more than {PATIENCE:g} s; make it simpler")
            return None
        return self._mask().forbidden

    def accept(self, token: int) -> None:
        """Move on over `token`, which is not forbidden now."""
        long = self._mask().seconds > LONG_MASK
        pool = self._pools.long if long else self._pools.short
        self._since = time.monotonic()
        self._next = pool.submit(self._advance, token)

    def _mask(self) -> Mask:
        return self._compiled.result().first if self._next is None else self._next.result()

    def _advance(self, token: int) -> Mask:
        if self._inner is None:
            self._inner = self._compiled.result().start.deep_copy()
        if not self._inner.is_stopped() and not self._inner.consume_token(token):
            raise ValueError(f"token {token} breaks the constraint: {self._inner.get_error()}")
        return mask_of(self._inner, self._vocab_size)


def mask_of(matcher: LLMatcher, vocab_size: int) -> Mask:
    """Return what may not follow. Raises ValueError when the grammar has failed, and NothingLeft at its dead ends."""
    began = time.thread_time()
    bits = np.zeros(-(-vocab_size // 32), np.int32)
    matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    if matcher.is_error():
        raise ValueError(f"the constraint failed: {matcher.get_error()}")
    forbidden: npt.NDArray[np.uint8] = np.unpackbits(~bits.view(np.uint8), bitorder="little")[:vocab_size]
    if forbidden.all():
        raise NothingLeft("the constraint allows no further token")
    return Mask(torch.from_numpy(forbidden.view(np.bool_)), time.thread_time() - began)
