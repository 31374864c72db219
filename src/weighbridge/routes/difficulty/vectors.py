"""Vectors of numbers about a prompt that come from elsewhere: a sentence embedding, the state of an engine.

The seam is `Embedder`. Training asks one for every label (`embed_all`), a route asks it for every prompt that is
scored; both times each vector says where it is from, so that a router never mixes two models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from weighbridge.errors import BadInput


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
    its bytes. `tenant` and `priority`: whose time it takes where an engine computes it."""

    text: str
    body: Mapping[str, Any]
    size: int
    tenant: str = "default"
    priority: int = 0

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
