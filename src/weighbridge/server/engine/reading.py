"""What a request asks of the engine, worked out in one piece: a long one is read on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from weighbridge.engine.api import Engine, Generation
from weighbridge.engine.request import Guide, SamplingParams
from weighbridge.server.endpoint import ChatTokenizer
from weighbridge.server.engine.embeddings import embedding_generations
from weighbridge.server.engine.formats import ChatFormat, Format, TextFormat
from weighbridge.server.engine.prompts import PromptReader
from weighbridge.server.engine.sampling import Limits, guide_of, sampling_params
from weighbridge.server.engine.tool_calls import forced_call_guide, tool_names
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols import chat, completions, embeddings
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.completions import CompletionRequest
from weighbridge.wire.protocols.openai import Common


@dataclass(frozen=True, slots=True)
class EngineWork:
    """The generations of a request, a format for the answer of each, and the name of its prompt in tickets."""

    generations: Sequence[Generation]
    forms: Sequence[Format]
    prompt_hash: str

    @property
    def guide(self) -> Guide | None:
        """The constraint that all of them keep."""
        return self.generations[0].params.guide


class RequestReader:
    """Reads requests for one engine, on any thread. Raises ApiError, BadInput or Refused naming what is wrong."""

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer, limits: Limits) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._limits = limits
        self._prompts = PromptReader(tokenizer, limits, engine.max_model_len)

    def read(self, ask: Ask) -> EngineWork:
        generations, forms = self._readers[ask.path](self, ask)
        return EngineWork(generations, forms, ask.prompt_hash)

    def _chat(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        body = decode(ask.as_body(), ChatRequest)
        forced = forced_call_guide(body)
        guide = forced or guide_of(body)
        prompt = self._prompts.chat(body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        wanted = body.max_completion_tokens or body.max_tokens
        params = self._params(body, wanted, logprobs, guide, len(prompt))
        model, with_logprobs = self._engine.model_name, logprobs is not None
        text, called = self._tokenizer.token_text, tool_names(body)
        form = ChatFormat(model, text, with_logprobs, called, forced is not None)
        return [Generation(prompt, params, choices=body.n or 1)], [form]

    def _complete(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        body = decode(ask.as_body(), CompletionRequest)
        if body.suffix:
            message = "suffix: inserting between prompt and suffix is not supported"
            raise ApiError(400, message, param="suffix")
        choices = body.n or 1
        if body.best_of is not None and body.best_of != choices:
            message = "best_of: must equal n; sampling more than is returned is not supported"
            raise ApiError(400, message, param="best_of")
        prompts = self._prompts.texts(body.prompt, "prompt")
        longest = max(map(len, prompts))
        params = self._params(body, body.max_tokens or 16, body.logprobs, guide_of(body), longest)
        text, model, with_logprobs = self._tokenizer, self._engine.model_name, body.logprobs is not None
        echoes = [text.decode(prompt) if body.echo else "" for prompt in prompts]
        forms: list[Format] = [
            TextFormat(model, text.token_text, with_logprobs, echo, index * choices)
            for index, echo in enumerate(echoes)
        ]
        return [Generation(prompt, params, choices=choices) for prompt in prompts], forms

    def _embed(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        generations, form = embedding_generations(self._engine, self._prompts, ask)
        return generations, [form] * len(generations)

    def _params(
        self, body: Common, max_tokens: int | None, logprobs: int | None, guide: Guide | None, length: int
    ) -> SamplingParams:
        room = max(self._engine.max_model_len - length, 1)
        usual = self._limits.settings.default_max_tokens
        wanted = max_tokens if max_tokens is not None else min(room, usual)
        return sampling_params(body, wanted, logprobs, guide, self._limits)

    _readers: ClassVar[dict[str, Callable[[RequestReader, Ask], tuple[list[Generation], list[Format]]]]] = {
        chat.PATH: _chat,
        completions.PATH: _complete,
        embeddings.PATH: _embed,
    }
