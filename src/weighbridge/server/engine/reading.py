"""What a request asks of the engine, worked out in one piece: a long one is read on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from weighbridge.engine.api import Engine, Generation
from weighbridge.engine.request import Guide, SamplingParams
from weighbridge.server.endpoint import ChatTokenizer
from weighbridge.server.engine.embeddings import embedding_generations
from weighbridge.server.engine.formats import ChatFormat, Format, TextFormat
from weighbridge.server.engine.prompts import PromptReader
from weighbridge.server.engine.sampling import Limits, guide_of, sampling_params
from weighbridge.server.engine.tool_calls import forced_call_guide, offered_tools
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import styles_for
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols import chat, completions, embeddings
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.completions import CompletionRequest
from weighbridge.wire.protocols.openai import Common

#: Tokens at the end of a prompt that may be the mark before a thought, and line breaks.
_PROMPT_END = 16


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
        settings = limits.settings
        self._styles = styles_for(tokenizer.template_text, settings.tool_style, settings.reasoning_style)
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
        thinking = guide is None and self._ends_in_thought(prompt)
        reading = AnswerReading(self._styles, offered_tools(body), forced is not None, thinking)
        form = ChatFormat(model, self._tokenizer.token_text, with_logprobs, reading)
        params = replace(params, shown_tokens=self._tokenizer.specials_named(reading.marks))
        return [Generation(prompt, params, choices=body.n or 1)], [form]

    def _ends_in_thought(self, prompt: Sequence[int]) -> bool:
        """Whether the template has begun a thought for the model, and left it open."""
        style = self._styles.reasoning
        if style is None:
            return False
        end = self._tokenizer.decode(prompt[-_PROMPT_END:], skip_special_tokens=False)
        return end.rstrip().endswith(style.begin)

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
