"""Texts beside each other, and their labels: what an encoder or a classifier makes of them, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from weighbridge.cost.usage import Usage
from weighbridge.engine.api import Engine, Generation
from weighbridge.engine.request import SamplingParams
from weighbridge.errors import BadInput, NeverFits
from weighbridge.models.readers.form import Form, LabelForm, Link, VectorForm
from weighbridge.server.endpoint import ChatTokenizer
from weighbridge.server.engine.formats import Gathered, WholeFormat
from weighbridge.server.settings import ServerSettings
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols import embeddings, scores
from weighbridge.wire.protocols.scores import ClassifyRequest, RerankRequest, Scored, ScoreRequest

_NOTHING = SamplingParams(max_tokens=0, temperature=0.0)
_encode = msgspec.json.Encoder().encode

Floats = npt.NDArray[Any]


def check_path(engine: Engine, path: str) -> None:
    """Raise ApiError for what a model of this kind is not asked, saying where it is."""
    reads, name = engine.reads, engine.model_name
    if reads is None:
        if path in scores.PATHS:
            message = f"model: {name!r} writes; scores and labels take a model that embeds, ranks or classifies texts"
            raise ApiError(400, message, param="model")
        return
    takes, does = _uses(reads)
    if path not in takes:
        raise ApiError(400, f"model: {name!r} {does}; ask it at {' or '.join(takes)}", param="model")


def _uses(reads: Form) -> tuple[tuple[str, ...], str]:
    """Where a model that writes nothing is asked, and what it does."""
    if isinstance(reads, VectorForm):
        return (embeddings.PATH, scores.SCORE, scores.RERANK), "turns texts into vectors and writes none"
    if len(reads.labels) == 1:
        return (scores.SCORE, scores.RERANK, scores.CLASSIFY), "scores texts and writes none"
    return (scores.CLASSIFY,), f"gives texts one of {len(reads.labels)} labels and writes none"


@dataclass(frozen=True, slots=True)
class TextIds:
    """Reads the texts of one request for one model. Raises ApiError naming the field."""

    tokenizer: ChatTokenizer
    longest: int
    cut: int | None  # tokens to which a text is cut
    field: str

    def __call__(self, index: int, first: str, second: str | None = None) -> list[int]:
        place = f"{self.field}[{index}]"
        if not first or second == "":
            raise ApiError(400, f"{place}: a text must not be empty", param=self.field)
        pairs = self.tokenizer.pairs
        assert pairs is not None  # there is a model that reads
        try:
            ids = pairs.encode(first, second, self.cut)
        except BadInput as error:
            raise ApiError(400, f"{place}: {error}", param=self.field) from error
        if len(ids) > self.longest:
            message = (
                f"{place}: has {len(ids)} tokens, but this model takes {self.longest}; shorten it, or have it cut with "
                "`truncate_prompt_tokens: -1`"
            )
            raise ApiError(400, message, code=NeverFits.code, param=self.field)
        return ids


class Numbers(WholeFormat):
    """The answer of one request, put together when the numbers of all its texts are there.

    `write`: from [texts, width] to the fields that the endpoint has.
    """

    prefix = "score"

    def __init__(self, model: str, write: Callable[[Floats], dict[str, Any]]) -> None:
        super().__init__(model)
        self._write = write

    def whole(self, choices: Sequence[Any], usage: Usage) -> bytes:
        told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
        head = {"id": self.id, "created": self.created, "model": self.model}
        return _encode({**head, **self._write(np.array(choices)), "usage": told})

    def _choice(self, index: int, gathered: Gathered) -> Any:
        assert gathered.embedding is not None
        return gathered.embedding.vector


def scored_generations(
    engine: Engine, tokenizer: ChatTokenizer, limits: ServerSettings, ask: Ask
) -> tuple[list[Generation], Numbers]:
    """A generation for each text, or pair of texts, and the format of the answer. Raises ApiError naming the field."""
    reads, longest = engine.reads, engine.max_model_len
    assert reads is not None  # `check_path` was asked before
    if ask.path == scores.CLASSIFY:
        assert isinstance(reads, LabelForm)
        asked = decode(ask.as_body(), ClassifyRequest)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        _check_count(len(texts), limits, "input")
        read = TextIds(tokenizer, longest, _cut(asked, longest), "input")
        return _prompts([read(*one) for one in enumerate(texts)]), Numbers(
            engine.model_name, partial(_labels, reads)
        )
    pairs, cut, write = _pairs(ask, longest)
    _check_count(len(pairs), limits, "documents")
    read = TextIds(tokenizer, longest, cut, "documents")
    if isinstance(reads, LabelForm):
        prompts = [read(index, *pair) for index, pair in enumerate(pairs)]
        return _prompts(prompts), Numbers(
            engine.model_name, lambda found: write(linked(found, reads.link)[:, 0])
        )
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))  # each is read once
    place = {text: index for index, text in enumerate(texts)}
    beside = [(place[first], place[second]) for first, second in pairs]
    prompts = [read(*one) for one in enumerate(texts)]
    return _prompts(prompts), Numbers(engine.model_name, lambda found: write(cosines(found, beside)))


def _pairs(
    ask: Ask, longest: int
) -> tuple[list[tuple[str, str]], int | None, Callable[[Floats], dict[str, Any]]]:
    """The texts that stand beside each other, to how many tokens they are cut, and what writes their scores."""
    if ask.path == scores.SCORE:
        wanted = decode(ask.as_body(), ScoreRequest)
        return wanted.pairs(), _cut(wanted, longest), _scores
    asked = decode(ask.as_body(), RerankRequest)
    cut, texts = _cut(asked, longest), asked.texts()
    if asked.max_tokens_per_doc is not None:
        cut = min(asked.max_tokens_per_doc, cut or longest)
    return [(asked.query, text) for text in texts], cut, partial(_ranking, asked, texts)


def _cut(asked: Scored, longest: int) -> int | None:
    wanted = asked.truncate_prompt_tokens
    if wanted is None:
        return None
    if not wanted or wanted > longest:
        message = f"truncate_prompt_tokens: give 1 to {longest}, or -1 for all that this model takes"
        raise ApiError(400, message, param="truncate_prompt_tokens")
    return longest if wanted < 0 else wanted


def _check_count(count: int, limits: ServerSettings, field: str) -> None:
    if count > limits.max_inputs:
        message = (
            f"{field}: has {count} texts, but one request takes at most {limits.max_inputs}; send several"
        )
        raise ApiError(400, message, param=field)


def _prompts(prompts: list[list[int]]) -> list[Generation]:
    return [Generation(prompt, _NOTHING, embeds=True) for prompt in prompts]


def cosines(vectors: Floats, pairs: Sequence[tuple[int, int]]) -> Floats:
    """The cosine of the angle between the vectors of each pair of rows; 0 beside a vector of length 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1.0)
    return np.array([float(unit[first] @ unit[second]) for first, second in pairs])


def linked(numbers: Floats, link: Link) -> Floats:
    """A classifier's numbers [texts, labels] as scores."""
    if link is Link.NONE:
        return numbers
    if link is Link.SIGMOID:
        return 0.5 * (1.0 + np.tanh(0.5 * numbers))  # of any size, without an overflow
    weights = np.exp(numbers - numbers.max(axis=1, keepdims=True))
    chances: Floats = weights / weights.sum(axis=1, keepdims=True)
    return chances


def _scores(found: Floats) -> dict[str, Any]:
    rows = [{"index": index, "object": "score", "score": float(one)} for index, one in enumerate(found)]
    return {"object": "list", "data": rows}


def _ranking(asked: RerankRequest, texts: Sequence[str], found: Floats) -> dict[str, Any]:
    """The best first; among equals the one that came first."""
    order = sorted(range(len(texts)), key=lambda index: -found[index])[: asked.top_n]
    rows: list[dict[str, Any]] = [{"index": index, "relevance_score": float(found[index])} for index in order]
    if asked.return_documents is not False:
        rows = [{**row, "document": {"text": texts[row["index"]]}} for row in rows]
    return {"object": "list", "results": rows}


def _labels(reads: LabelForm, found: Floats) -> dict[str, Any]:
    chances = linked(found, reads.link)
    rows = [
        {
            "index": index,
            "label": reads.labels[int(row.argmax())],
            "probs": row.tolist(),
            "num_classes": len(row),
        }
        for index, row in enumerate(chances)
    ]
    return {"object": "list", "data": rows}
