"""Compiled constraints of one vocabulary: tried and compiled once, whoever asks, and kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from weighbridge.engine.guidance.grammar import LIMITS, grammar_of
from weighbridge.engine.guidance.matcher import Compiled, MaskPools, Matcher, mask_of
from weighbridge.engine.guidance.trial import CPU_SECONDS, Trial
from weighbridge.engine.guidance.vocabulary import Vocabulary, shared
from weighbridge.engine.request import Guide
from weighbridge.errors import BadInput, QueueFull, said

#: Bytes of compiled constraints, and of their sources, that are kept for the next request with the same one.
CACHED_BYTES = 128 << 20
#: Constraints that may wait to be compiled; each takes `CPU_SECONDS` at the worst, twice.
MAX_WAITING = 16
#: What a compiled constraint takes at the least.
_SMALLEST = 64 << 10


class GuideFactory:
    """Compiles constraints for one vocabulary. `prepare` first, where nobody waits; then call from any thread."""

    def __init__(
        self,
        backend: Tokenizer,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        cpu_seconds: float = CPU_SECONDS,
    ) -> None:
        self._backend = backend
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._cpu_seconds = cpu_seconds
        self._prepared: tuple[LLTokenizer, Trial] | None = None
        self._preparing = threading.Lock()
        self._lock = threading.RLock()  # guards what follows
        self._kept: OrderedDict[Guide, Compiled] = OrderedDict()
        self._kept_bytes = 0
        self._waiting: dict[Guide, Future[Compiled]] = {}
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self._pools = MaskPools()

    def prepare(self) -> tuple[LLTokenizer, Trial]:
        """Prepare the vocabulary: 10 us a token, in which no other thread of the interpreter runs. Raises BadInput."""
        with self._preparing:
            if self._prepared is None:
                try:
                    tokenizer = shared(self._backend, self._vocab_size, self._eos_token_ids)
                    tokenizer = tokenizer or self._vocabulary().load()
                except ValueError as error:
                    message = f"outputs of this model cannot be constrained: {said(error)}"
                    raise BadInput(message, param="response_format") from error
                self._prepared = tokenizer, Trial(self._vocabulary, cpu_seconds=self._cpu_seconds)
            return self._prepared

    def matcher(self, guide: Guide) -> Matcher:
        """Return a fresh matcher at the start of the output; what is wrong with `guide` shows when a mask is asked."""
        return Matcher(self.compiled(guide), self._pools, self._vocab_size)

    def compiled(self, guide: Guide) -> Future[Compiled]:
        """Return the compiled constraint, or the promise of it, which others may share: it must not be cancelled.

        Raises QueueFull; the promise is broken with BadInput for what cannot be used or takes too much.
        """
        with self._lock:
            kept = self._kept.get(guide)
            if kept is not None:
                self._kept.move_to_end(guide)
                done: Future[Compiled] = Future()
                done.set_result(kept)
                return done
            waiting = self._waiting.get(guide)
            if waiting is None:
                if len(self._waiting) >= MAX_WAITING:
                    message = f"{MAX_WAITING} schemas and grammars wait to be compiled; try again in a moment"
                    raise QueueFull(message, retry_after=self._cpu_seconds)
                waiting = self._waiting[guide] = self._compiler.submit(self._compile, guide)
                waiting.add_done_callback(partial(self._ended, guide))
            return waiting

    def close(self) -> None:
        """End the process that tries constraints."""
        if self._prepared is not None:
            self._prepared[1].close()

    def _vocabulary(self) -> Vocabulary:
        """Written anew whenever it is read: as a text it would take 9 to 48 MB for as long as the server lives."""
        return Vocabulary(self._backend.to_str(), self._vocab_size, self._eos_token_ids)

    def _compile(self, guide: Guide) -> Compiled:
        tokenizer, trial = self.prepare()
        needed = trial.run(guide).size if guide.kind != "json_object" else 0  # which clients cannot write
        size = max(needed, _SMALLEST) + 2 * len(guide.source)
        start = LLMatcher(tokenizer, grammar_of(guide), log_level=0, limits=LIMITS)
        try:
            return Compiled(start, mask_of(start, self._vocab_size), size)
        except ValueError as error:
            raise BadInput(str(error), param="response_format") from error

    def _ended(self, guide: Guide, compiled: Future[Compiled]) -> None:
        with self._lock:
            self._waiting.pop(guide, None)
            if compiled.cancelled() or compiled.exception() is not None:
                return
            self._kept[guide] = compiled.result()
            self._kept_bytes += compiled.result().size
            while self._kept_bytes > CACHED_BYTES and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= oldest.size
