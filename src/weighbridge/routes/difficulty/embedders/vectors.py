"""Vectors of numbers about a prompt that come from elsewhere: a sentence embedding, the state of an engine.

The seam is `Embedder`. Training asks one for every label (`embed_all`), a route asks it for every prompt that is
scored; both times each vector says where it is from, so that a router never mixes two models.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from weighbridge.errors import BadInput

log = logging.getLogger("weighbridge.routes")


@dataclass(frozen=True, slots=True)
class Source:
    """`name`: of the kind of vector, as in `--features`; `model`: what computed it; `parts`: how many numbers each
    of its pieces has, where pieces that mean different things are weighed apart."""

    name: str
    model: str
    parts: tuple[int, ...]

    @property
    def width(self) -> int:
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class Vector:
    """`values`: (source.width,), float32, all finite."""

    source: Source
    values: np.ndarray


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to embed: `text` is what is asked, `body` the chat it is part of (OpenAI's, with `messages`), `size`
    its bytes. `tenant` and `priority`: whose time it takes where an engine computes it; `cache_salt`: who may
    reuse what it computed."""

    text: str
    body: Mapping[str, Any]
    size: int
    tenant: str = "default"
    priority: int = 0
    cache_salt: str = ""

    @staticmethod
    def alone(text: str) -> Question:
        """A prompt without history, such as that of a label."""
        body = {"messages": [{"role": "user", "content": text}]}
        return Question(text, body, len(text.encode("utf-8", "surrogatepass")))


def mismatch(trained: Source, found: Source) -> str:
    """Why a vector is of no use to a router, and what to change."""
    had, has = f"{trained.model} ({trained.width} numbers)", f"{found.model} ({found.width} numbers)"
    return (
        f"the router was trained with the {trained.name} vectors of {had}, these are of {has}; "
        "train it again with the model that is there now"
    )


class EmbeddingFailed(Exception):
    """No vector for this prompt; the message says why, for a ticket."""


class Embedder(Protocol):
    """Gives vectors of one source. `name` is the source's."""

    name: str

    async def embed(self, question: Question) -> Vector:
        """Raises EmbeddingFailed. May be cancelled at any time."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class VectorTable:
    """The vectors of many prompts: rows (n, source.width)."""

    source: Source
    rows: np.ndarray

    def take(self, picks: Sequence[int] | np.ndarray) -> VectorTable:
        return VectorTable(self.source, self.rows[picks])

    def vector(self, row: int) -> Vector:
        return Vector(self.source, self.rows[row])


def vectors_of(tables: Sequence[VectorTable], row: int) -> dict[str, Vector]:
    """What every table says of one prompt."""
    return {table.source.name: table.vector(row) for table in tables}


async def embed_all(embedder: Embedder, prompts: Sequence[str], *, at_once: int = 8) -> VectorTable:
    """Vectors of all prompts, `at_once` at a time, each different prompt once.

    Raises BadInput where one cannot be had, or where not all are of one source.
    """
    places = asyncio.Semaphore(at_once)

    async def one(text: str) -> Vector:
        async with places:
            return await embedder.embed(Question.alone(text))

    different = list(dict.fromkeys(prompts))
    tasks = [asyncio.ensure_future(one(text)) for text in different]
    try:
        found = dict(zip(different, await asyncio.gather(*tasks), strict=True))
    except EmbeddingFailed as error:
        raise BadInput(f"features {embedder.name}: {error}") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    sources = {vector.source for vector in found.values()}
    if len(sources) != 1:
        models = ", ".join(sorted({one.model for one in sources}))
        raise BadInput(f"features {embedder.name}: vectors of different kinds came back ({models})")
    return VectorTable(sources.pop(), np.array([found[text].values for text in prompts], np.float32))


# -- at run time: all sources are asked at once, for a bounded time, and may fail ------------------------

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

    async def read(self, question: Question, longest: float = float("inf")) -> Reading:
        """What comes within `wait` seconds, or within `longest` where that is less. Raises nothing of its own."""
        wait, now = min(self._wait, longest), self._clock()
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
