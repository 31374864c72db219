"""What a request asks of the engine, worked out in one piece: a long one is read on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from weighbridge.engine.api import Engine, Generation
from weighbridge.engine.request import Guide, SamplingParams
from weighbridge.server.endpoint import ChatTokenizer
from weighbridge.server.engine.constraints.guides import guide_of
from weighbridge.server.engine.decisions import ModelWords, decision_generations
from weighbridge.server.engine.embeddings import embedding_generations
from weighbridge.server.engine.formats import ChatFormat, ChoiceRange, Format, Telling, TextFormat
from weighbridge.server.engine.prompts import PromptReader
from weighbridge.server.engine.sampling import Limits, sampling_params
from weighbridge.server.engine.scores import check_path, scored_generations
from weighbridge.server.engine.tool_calls import call_or_text_guide, forced_call_guide, offered_tools
from weighbridge.server.styles.answer import AnswerReading
from weighbridge.server.styles.choice import Styles, styles_for
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols import chat, completions, decisions, embeddings, scores
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.completions import CompletionRequest
from weighbridge.wire.protocols.constraints import refuse_unkept
from weighbridge.wire.protocols.decisions import DecisionRequest
from weighbridge.wire.protocols.openai import Common

#: Words that may be kept out of an answer.
MAX_BAD_WORDS = 256
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

    @property
    def reads_tools(self) -> bool:
        """Whether tools can be shown to the model, and its calls be read."""
        shown = self._tokenizer.supports_tools or (
            self._styles.tools is not None and self._tokenizer.shows_tools
        )
        return shown

    def read(self, ask: Ask) -> EngineWork:
        check_path(self._engine, ask.path)
        if ask.path not in scores.PATHS:  # whose documents are what is read
            refuse_unkept(ask.fields)
        generations, forms = self._readers[ask.path](self, ask)
        return EngineWork(generations, forms, ask.prompt_hash)

    def _chat(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        body = decode(ask.as_body(), ChatRequest)
        forced = forced_call_guide(body)
        guide = forced or guide_of(body)
        if body.wants_tools and forced is None and not self.reads_tools:
            raise ApiError(400, "tools: this model's chat template has no place for tools", param="tools")
        if guide is None and body.wants_tools and not self._tokenizer.supports_tools:
            guide = call_or_text_guide(body)
        prompt = self._prompts.chat(body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        wanted = body.max_completion_tokens or body.max_tokens
        params = self._params(body, wanted, logprobs, guide, len(prompt))
        model, with_logprobs = self._named(ask), logprobs is not None
        thinking = guide is None and (
            ends_in_thought(self._tokenizer, self._styles, prompt) or self._goes_on_thinking(body)
        )
        single = body.parallel_tool_calls is False
        reading = AnswerReading(self._styles, offered_tools(body), forced is not None, thinking, single)
        form = ChatFormat(model, reading, self._telling(body, prompt, with_logprobs))
        params = replace(params, shown_tokens=self._tokenizer.specials_named(reading.marks))
        return [Generation(prompt, params, choices=body.n or 1, continues=body.begun is not None)], [form]

    def _named(self, ask: Ask) -> str:
        """The model that the answer names: the one that was asked for, which may be an adapter."""
        return ask.model or self._engine.model_name

    def _goes_on_thinking(self, body: ChatRequest) -> bool:
        """Whether the answer that has begun ends within a thought."""
        style, said = self._styles.reasoning, body.begun
        return style is not None and said is not None and said.rfind(style.begin) > said.rfind(style.end)

    def _complete(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        body = decode(ask.as_body(), CompletionRequest)
        if body.suffix:
            message = "suffix: inserting between prompt and suffix is not supported"
            raise ApiError(400, message, param="suffix")
        choices = body.n or 1
        wants_logprobs = body.logprobs is not None
        if body.best_of is not None and body.best_of != choices:
            message = "best_of: must equal n; sampling more than is returned is not supported"
            raise ApiError(400, message, param="best_of")
        prompts = self._prompts.texts(body.prompt, "prompt")
        longest = max(map(len, prompts))
        wanted = 16 if body.max_tokens is None else body.max_tokens
        params = self._params(body, wanted, body.logprobs, guide_of(body), longest)
        if body.echo and wants_logprobs and params.prompt_logprobs is None:
            params = replace(params, prompt_logprobs=body.logprobs)
        forms: list[Format] = [
            TextFormat(
                self._named(ask),
                ChoiceRange(choices, index * choices),
                self._echo(body, index, prompt),
                self._telling(body, prompt, wants_logprobs),
            )
            for index, prompt in enumerate(prompts)
        ]
        return [Generation(prompt, params, choices=choices, continues=True) for prompt in prompts], forms

    def _echo(self, body: CompletionRequest, index: int, prompt: Sequence[int]) -> str | None:
        """The text of a prompt where it is to be told again: as it was written, or what its tokens say."""
        if not body.echo:
            return None
        written = body.prompt if isinstance(body.prompt, str) else body.prompt[index]
        return written if isinstance(written, str) else self._tokenizer.decode(prompt)

    def _telling(self, body: Common, prompt: Sequence[int], output: bool) -> Telling | None:
        if not output and body.prompt_logprobs is None:
            return None
        return Telling(self._tokenizer, prompt, output, body.prompt_logprobs is not None)

    def _embed(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        generations, form = embedding_generations(self._engine, self._prompts, ask)
        return generations, [form] * len(generations)

    def _score(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        generations, form = scored_generations(self._engine, self._tokenizer, self._limits.settings, ask)
        return generations, [form] * len(generations)

    def _decide(self, ask: Ask) -> tuple[list[Generation], list[Format]]:
        if self._engine.hidden_size is None:
            message = "model: this one is simulated and has no probabilities of its own"
            raise ApiError(400, message, param="model")
        words = ModelWords(
            self._named(ask),
            self._engine.max_model_len,
            self._prompts.chat,
            self._tokenizer.encode,
            lambda prompt: ends_in_thought(self._tokenizer, self._styles, prompt),
        )
        generations, form = decision_generations(decode(ask.as_body(), DecisionRequest), words)
        return generations, [form] * len(generations)

    def _params(
        self, body: Common, max_tokens: int | None, logprobs: int | None, guide: Guide | None, length: int
    ) -> SamplingParams:
        room = max(self._engine.max_model_len - length, 1)
        usual = self._limits.defaults.max_tokens or self._limits.settings.default_max_tokens
        wanted = max_tokens if max_tokens is not None else min(room, usual)
        params = sampling_params(body, wanted, logprobs, guide, self._limits)
        return replace(params, bad_words=self._bad_words(body)) if body.bad_words else params

    def _bad_words(self, body: Common) -> tuple[tuple[int, ...], ...]:
        """The tokens of words that may not come: as they begin a text, and behind a space, as vLLM takes them."""
        words = body.bad_words or []
        if len(words) > MAX_BAD_WORDS or any(not word.strip() for word in words):
            message = f"bad_words: give at most {MAX_BAD_WORDS}, none of them empty"
            raise ApiError(400, message, param="bad_words")
        found = {tuple(self._tokenizer.encode(text, False)) for word in words for text in _spellings(word)}
        return tuple(sorted(found - {()}))

    _readers: ClassVar[dict[str, Callable[[RequestReader, Ask], tuple[list[Generation], list[Format]]]]] = {
        chat.PATH: _chat,
        completions.PATH: _complete,
        embeddings.PATH: _embed,
        **dict.fromkeys(scores.PATHS, _score),
        decisions.PATH: _decide,
    }


def ends_in_thought(tokenizer: ChatTokenizer, styles: Styles, prompt: Sequence[int]) -> bool:
    """Whether the template has begun a thought for the model, and left it open."""
    if styles.reasoning is None:
        return False
    end = tokenizer.decode(prompt[-_PROMPT_END:], skip_special_tokens=False)
    return end.rstrip().endswith(styles.reasoning.begin)


def _spellings(word: str) -> tuple[str, str]:
    return word.lstrip(), f" {word.lstrip()}"
