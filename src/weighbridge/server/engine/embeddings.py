"""Embeddings: prompts that are computed for their last hidden state, and nothing said."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.engine.api import Engine, Generation
from weighbridge.engine.request import SamplingParams
from weighbridge.errors import NeverFits
from weighbridge.server.engine.formats import Gathered, WholeFormat
from weighbridge.server.engine.prompts import PromptReader
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.embeddings import EmbeddingRequest

#: An embedding is a prompt with no output: nothing is drawn.
_NOTHING = SamplingParams(max_tokens=0, temperature=0.0)


_encode = msgspec.json.Encoder().encode


class EmbeddingFormat(WholeFormat):
    """OpenAI's list of embeddings; each also tells how sure the model is of what comes next."""

    def __init__(self, model: str, encoding: Literal["float", "base64"]) -> None:
        super().__init__(model)
        self._encoding = encoding
        self._written = 0

    def whole(self, choices: Sequence[Any], usage: Usage) -> bytes:
        answer = {
            "object": "list",
            "model": self.model,
            "data": choices,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.prompt_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        }
        return _encode(answer)

    def choices_of(self, gathered: Sequence[Gathered]) -> list[Any]:
        # Encoded one by one, so that other threads get a turn between the numbers of two thousand.
        self._written += len(gathered)
        first = self._written - len(gathered)
        return [msgspec.Raw(_encode(self._choice(first + place, one))) for place, one in enumerate(gathered)]

    def _choice(self, index: int, gathered: Gathered) -> dict[str, Any]:
        embedding = gathered.embedding
        assert embedding is not None
        vector = embedding.vector.astype("<f4")
        written = b64encode(vector.tobytes()).decode() if self._encoding == "base64" else vector.tolist()
        choice = {"object": "embedding", "index": index, "embedding": written}
        if embedding.next_token is not None:
            choice["next_token"] = msgspec.to_builtins(embedding.next_token)
        return choice


def embedding_generations(
    engine: Engine, reader: PromptReader, ask: Ask
) -> tuple[list[Generation], EmbeddingFormat]:
    """One generation an input, and the format of the answer. Raises ApiError naming what is wrong, and where."""
    body = decode(ask.as_body(), EmbeddingRequest)
    _check_width(body.dimensions, engine.hidden_size)
    prompts = _prompts(body, reader, engine.max_model_len)
    generations = [Generation(prompt, _NOTHING, embeds=True) for prompt in prompts]
    return generations, EmbeddingFormat(ask.model or engine.model_name, body.encoding_format or "float")


def _check_width(dimensions: int | None, width: int | None) -> None:
    if width is None:
        message = "model: this one is simulated and has no hidden states to embed"
        raise ApiError(400, message, param="model")
    if dimensions is not None and dimensions != width:
        message = f"dimensions: this model's embeddings have {width} and cannot be shortened; leave it out"
        raise ApiError(400, message, param="dimensions")


def _prompts(body: EmbeddingRequest, reader: PromptReader, longest: int) -> list[list[int]]:
    """Token ids of all inputs, or of the one chat."""
    chat = body.chat()
    if (chat is None) == (body.input is None):
        raise ApiError(400, "give either `input` or `messages`", param="input")
    if chat is not None:
        return [_fitting(reader.chat(chat), longest, "messages", "messages")]
    prompts = reader.texts(body.input, "input", reader.limits.settings.max_inputs)
    places = ["input"] if len(prompts) == 1 else [f"input[{index}]" for index in range(len(prompts))]
    return [_fitting(prompt, longest, place, "input") for prompt, place in zip(prompts, places, strict=True)]


def _fitting(prompt: list[int], longest: int, place: str, field: str) -> list[int]:
    if not prompt:
        raise ApiError(400, f"{place}: has no tokens", param=field)
    if len(prompt) > longest:
        message = f"{place}: has {len(prompt)} tokens, but this model's context is {longest}; shorten it"
        raise ApiError(400, message, code=NeverFits.code, param=field)
    return prompt
