"""Vectors for a prompt at run time: all sources are asked at once, for a bounded time, and may fail."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weighbridge.routes.difficulty.vectors import (
    Embedder,
    EmbeddingFailed,
    Question,
    Source,
    Vector,
    mismatch,
)

log = logging.getLogger("weighbridge.routes")

#: Failures in a row after which a source is not asked for a while, so that no prompt waits for it in vain; seconds.
FAILURES, REST = 3, 10.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Vectors by the name of their source, and why the others are missing."""

    vectors: dict[str, Vector]
    missing: dict[str, str]

    def __str__(self) -> str:
        used = " and ".join(["text", *self.vectors])
        lacks = "".join(f"; without {name}: {why}" for name, why in self.missing.items())
        return f"scored by {used}{lacks}"


@dataclass(slots=True)
class _Source:
    embedder: Embedder
    expected: Source
    failures: int = 0
    rests_until: float = field(default=float("-inf"))


class Readers:
    """The sources that a trained router wants. `wait`: seconds that a prompt waits for them, at most."""

    def __init__(
        self,
        sources: Sequence[tuple[Embedder, Source]],
        wait: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = [_Source(embedder, expected) for embedder, expected in sources]
        self._wait = wait
        self._clock = clock

    async def read(self, question: Question, most: float = float("inf")) -> Reading:
        """What comes within `wait` seconds, or within `most` where that is less. Raises nothing of its own."""
        wait, now = min(self._wait, most), self._clock()
        missing = {
            s.expected.name: "it failed before, and rests" for s in self._sources if now < s.rests_until
        }
        asked = {
            asyncio.ensure_future(one.embedder.embed(question)): one
            for one in self._sources
            if one.expected.name not in missing
        }
        vectors: dict[str, Vector] = {}
        try:
            if asked:
                await asyncio.wait(asked, timeout=wait)
            for task, one in asked.items():
                found = self._outcome(task, one.expected, wait)
                self._count(one, failed=isinstance(found, str))
                if isinstance(found, str):
                    missing[one.expected.name] = found
                else:
                    vectors[one.expected.name] = found
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return Reading(vectors, missing)

    async def close(self) -> None:
        for one in self._sources:
            await one.embedder.close()

    @staticmethod
    def _outcome(task: asyncio.Future[Vector], expected: Source, wait: float) -> Vector | str:
        """The vector, or why there is none."""
        if not task.done():
            return f"nothing came within {wait:g} s"
        error = task.exception()
        if error is None:
            vector = task.result()
            return vector if vector.source == expected else mismatch(expected, vector.source)
        if not isinstance(error, EmbeddingFailed):
            log.error("the features %s failed", expected.name, exc_info=error)
        return str(error) or type(error).__name__

    def _count(self, one: _Source, *, failed: bool) -> None:
        one.failures = one.failures + 1 if failed else 0
        if one.failures >= FAILURES:
            one.failures, one.rests_until = 0, self._clock() + REST
