"""`/v1/embeddings`: prompts that are computed for their last hidden state, and nothing said."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.engine.api import Delta, Generation, Usage
from weighbridge.engine.request import SamplingParams
from weighbridge.errors import NeverFits
from weighbridge.server.answer import Answer, Running
from weighbridge.server.auth import tenant_of_key
from weighbridge.server.engine.api import Api, Caller, caller_of, prompts_of
from weighbridge.server.engine.formats import Format, Gathered
from weighbridge.server.protocol import EmbeddingRequest
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError

#: Inputs that are queued without a turn for others.
BURST = 8

#: An embedding is a prompt with no output: nothing is drawn.
_NOTHING = SamplingParams(max_tokens=0, temperature=0.0)


_encode = msgspec.json.Encoder().encode


class EmbeddingFormat(Format):
    """OpenAI's list of embeddings; each also tells how sure the model is of what comes next."""

    def __init__(self, model: str, encoding: Literal["float", "base64"]) -> None:
        super().__init__(model, str, False)
        self._encoding = encoding

    def chunk(self, delta: Delta) -> bytes:
        """Embeddings are never streamed."""
        return b""

    def whole(self, choices: Sequence[Gathered], usage: Usage) -> bytes:
        answer = {
            "object": "list",
            "model": self.model,
            # One by one, so that other threads get a turn between the numbers of two thousand.
            "data": [msgspec.Raw(_encode(self._choice(index, one))) for index, one in enumerate(choices)],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.prompt_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        }
        return _encode(answer)

    def _choice(self, index: int, gathered: Gathered) -> dict[str, Any]:
        embedding = gathered.embedding
        assert embedding is not None
        vector = embedding.vector.astype("<f4")
        written = b64encode(vector.tobytes()).decode() if self._encoding == "base64" else vector.tolist()
        return {
            "object": "embedding",
            "index": index,
            "embedding": written,
            "next_token": msgspec.to_builtins(embedding.next_token),
        }


class EmbeddingRoutes:
    """The endpoint over one engine."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(self, request: Request) -> Response:
        api = self._api
        tenant = tenant_of_key(request, api.settings)
        body = decode(await read_body(request, api.settings.max_body), EmbeddingRequest)
        api.check_model(body.model)
        self._check_width(body.dimensions)
        caller = caller_of(request, body.weighbridge, body.user, tenant)
        prompts = await self._prompts(body)
        generations = [Generation(prompt, _NOTHING, embeds=True) for prompt in prompts]
        form = EmbeddingFormat(api.engine.model_name, body.encoding_format)
        try:
            running = await self._submit(generations, caller, form)
        except NeverFits as error:  # the context is longer than the KV pool
            field = "input" if body.messages is None else "messages"
            raise ApiError(400, f"{field}: {error}", code=error.code, param=field) from error
        return Answer(running, streaming=False, include_usage=False)

    async def _submit(self, generations: list[Generation], caller: Caller, form: Format) -> list[Running]:
        """As `Api.submit`, but others get a turn on the event loop in between: two thousand inputs take a second."""
        running: list[Running] = []
        try:
            for start in range(0, len(generations), BURST):
                burst = generations[start : start + BURST]
                running += self._api.submit(burst, caller, [form] * len(burst))
                await asyncio.sleep(0)
        except BaseException:
            for one in running:
                one.stream.close()
            raise
        return running

    def _check_width(self, dimensions: int | None) -> None:
        width = self._api.engine.hidden_size
        if width is None:
            message = "model: this one is simulated and has no hidden states to embed"
            raise ApiError(400, message, param="model")
        if dimensions is not None and dimensions != width:
            message = (
                f"dimensions: this model's embeddings have {width} and cannot be shortened; leave it out"
            )
            raise ApiError(400, message, param="dimensions")

    async def _prompts(self, body: EmbeddingRequest) -> list[list[int]]:
        """Token ids of all inputs, or of the one chat. Raises ApiError naming what is wrong, and where."""
        chat = body.chat()
        if (chat is None) == (body.input is None):
            raise ApiError(400, "give either `input` or `messages`", param="input")
        if chat is not None:
            return [self._fitting(await self._api.chat_prompt(chat), "messages", "messages")]
        inputs = prompts_of(body.input, self._api.limits, "input")
        most = self._api.settings.max_inputs
        if len(inputs) > most:
            message = f"input: has {len(inputs)} texts, but one request takes at most {most}; send several"
            raise ApiError(400, message, param="input")
        prompts = await self._api.tokenised(inputs)
        places = ["input"] if len(prompts) == 1 else [f"input[{index}]" for index in range(len(prompts))]
        return [self._fitting(prompt, place, "input") for prompt, place in zip(prompts, places, strict=True)]

    def _fitting(self, prompt: list[int], place: str, field: str) -> list[int]:
        longest = self._api.engine.max_model_len
        if not prompt:
            raise ApiError(400, f"{place}: has no tokens", param=field)
        if len(prompt) > longest:
            message = f"{place}: has {len(prompt)} tokens, but this model's context is {longest}; shorten it"
            raise ApiError(400, message, code=NeverFits.code, param=field)
        return prompt
