"""Constraints are compiled once where that may fail: in a process that can be ended.

Some schemas, patterns and grammars of a kilobyte compile for hours or take all memory (an intersection of forty
patterns, four hundred `patternProperties`), and nothing interrupts a compiler inside our own process. So each is tried
in a fork of a process that holds the vocabulary, bounded in CPU seconds and bytes. What comes through costs the server
itself no more than it did there.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from llguidance import LLMatcher, LLTokenizer

from weighbridge.engine.guidance.grammar import LIMITS, grammar_of, unusable
from weighbridge.engine.guidance.vocabulary import Vocabulary
from weighbridge.engine.request import Guide
from weighbridge.errors import BadInput, Inside, Refused
from weighbridge.forks import Answer, ForkingProcess, OutOfMemory, OutOfTime, data_bytes, serve

#: CPU seconds that one constraint may take to compile.
CPU_SECONDS = 2.0
#: Bytes that a compiler may allocate beyond the vocabulary.
MAX_BYTES = 512 << 20


class Tried(msgspec.Struct, frozen=True):
    """What a trial told: an error, or the bytes that the constraint takes once it is compiled."""

    error: str = ""
    size: int = 0


class Trial:
    """The parent's end. `run` tries one constraint at a time; the process starts with the first one."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], *, cpu_seconds: float = CPU_SECONDS) -> None:
        self.forks = ForkingProcess(__name__, lambda: msgspec.json.encode(vocabulary()))
        self._cpu_seconds = cpu_seconds

    def run(self, guide: Guide) -> Tried:
        """Return what compiling `guide` takes. Raises BadInput for what cannot be used or takes too much."""
        asked = msgspec.json.encode((guide.kind, guide.source))
        try:
            told = self.forks.ask(asked, cpu_seconds=self._cpu_seconds, max_bytes=MAX_BYTES)
            tried = msgspec.json.decode(told, type=Tried)
        except OutOfTime:
            tried = Tried(f"compiling it takes more than {self._cpu_seconds:g} s; make it smaller or simpler")
        except OutOfMemory:
            tried = Tried(f"compiling it takes more than {MAX_BYTES >> 20} MiB; make it smaller or simpler")
        except (OSError, EOFError, TimeoutError) as error:
            plainly = "constraints cannot be tried at the moment; try again"
            raise Refused(Inside(f"{plainly} ({error})", plainly), retry_after=1.0) from error
        if tried.error:
            raise unusable(guide, tried.error)
        return tried

    def close(self) -> None:
        """End the process."""
        self.forks.close()


# -- the process itself -------------------------------------------------------------------------------------


def prepared(vocabulary: bytes) -> Answer:
    """What tries constraints for a vocabulary, in a fork."""
    tokenizer = msgspec.json.decode(vocabulary, type=Vocabulary).load()

    def tried(asked: bytes) -> bytes:
        kind, source = msgspec.json.decode(asked, type=tuple[str, str])
        return msgspec.json.encode(_attempt(tokenizer, Guide(kind, source)))

    return tried


def _attempt(tokenizer: LLTokenizer, guide: Guide) -> Tried:
    before = data_bytes()
    try:
        matcher = LLMatcher(tokenizer, grammar_of(guide), log_level=0, limits=LIMITS)
    except BadInput as error:
        return Tried(str(error))
    if not matcher.is_error():
        _step(matcher)
    if matcher.is_error():
        return Tried(str(matcher.get_error())[:500] or "it allows nothing")
    return Tried(size=max(data_bytes() - before, 0))


def _step(matcher: LLMatcher) -> None:
    """Find what may come first, and go over the first such token: some grammars compile and fail then."""
    allowed = int.from_bytes(matcher.compute_bitmask(), "little")
    if allowed and not matcher.is_stopped():
        matcher.consume_token((allowed & -allowed).bit_length() - 1)


if __name__ == "__main__":
    serve(prepared)
