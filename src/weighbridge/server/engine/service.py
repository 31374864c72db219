"""One engine as a service: from an `Ask` to generations, and what else can be asked of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Any, ClassVar

from weighbridge.engine.api import Engine, Generation, Turn
from weighbridge.engine.request import Guide, SamplingParams
from weighbridge.errors import NeverFits, UnknownModel
from weighbridge.server.endpoint import Endpoint, TextTokenizer
from weighbridge.server.engine.embeddings import embedding_generations
from weighbridge.server.engine.experts import ExpertEndpoints
from weighbridge.server.engine.formats import ChatFormat, Format, TextFormat
from weighbridge.server.engine.journey import EngineJourney, Running
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.engine.prompts import ChatTokenizer, PromptReader
from weighbridge.server.engine.sampling import Limits, guide_of, sampling_params
from weighbridge.server.engine.tool_calls import forced_call_guide, tool_names
from weighbridge.server.settings import ServerSettings
from weighbridge.ticket import prompt_hash
from weighbridge.wire.ask import Ask, Placement
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError
from weighbridge.wire.identity.callers import Callers
from weighbridge.wire.keys import Keys
from weighbridge.wire.protocols import chat, completions, embeddings
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.completions import CompletionRequest
from weighbridge.wire.protocols.openai import Common

#: Inputs of an embeddings request that are queued without a turn for others.
BURST = 8


class EngineService:
    """An engine with its tokenizer, as the door sees it. `on_start` runs when the event loop does.

    `compile_guide` promises that a constraint is ready to be used; the promise is broken with BadInput where it cannot.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        settings: ServerSettings,
        metrics: EngineMetrics,
        compile_guide: Callable[[Guide], Future[Any]],
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.tickets = metrics.tickets
        self.callers = Callers(Keys(settings.api_keys), settings)
        self.access = settings
        self.max_body = settings.max_body
        self.page = (files("weighbridge.server.engine") / "console.html").read_text(encoding="utf-8")
        self._prompts = PromptReader(tokenizer, Limits(settings, tokenizer.vocab_size))
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._compile_guide = compile_guide
        self._on_start = on_start
        self._created = int(time.time())

    # -- what the door asks beside requests ------------------------------------------------------------

    async def start(self) -> None:
        self._on_start()

    async def stop(self) -> None:
        """Write the last tickets down. The engine outlives its door: whoever made it stops it."""
        await asyncio.to_thread(self.tickets.close)

    def models(self) -> list[dict[str, Any]]:
        return [self.model("")]

    def model(self, name: str) -> dict[str, Any]:
        self.check_model(name)
        return {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "weighbridge",
            "max_model_len": self.engine.max_model_len,
        }

    def health(self) -> tuple[int, dict[str, Any]]:
        draining = self.engine.load().draining
        return (503, {"status": "draining"}) if draining else (200, {"status": "ok"})

    def load(self) -> dict[str, Any]:
        return asdict(self.engine.load())

    def exposition(self) -> bytes:
        return self._metrics.exposition()

    def tokenizer(self, model: str) -> tuple[TextTokenizer, int | None]:
        self.check_model(model)
        return self._tokenizer, self.engine.max_model_len

    def answered(self, path: str, status: int) -> None:
        self._metrics.http_requests.labels(path, str(status)).inc()

    def stalled(self, thread: str, seconds: float) -> None:
        self._metrics.stalls.labels(thread).observe(seconds)

    def watched(self) -> dict[str, Callable[[], Turn | None]]:
        return {"engine": self.engine.turn}

    def endpoints(self) -> list[Endpoint]:
        experts = ExpertEndpoints(self.engine)
        return [
            Endpoint("GET", "/v1/experts", experts.report),
            Endpoint("POST", "/v1/experts/reset", experts.reset),
        ]

    # -- requests --------------------------------------------------------------------------------------

    async def admit(self, ask: Ask) -> EngineJourney:
        """Queue a request. Raises ApiError, BadInput or Refused."""
        self.check_model(ask.model)
        if ask.placement is Placement.ONLY_CLOUD:
            message = "placement: this server has no cloud; use only_edge or prefer_edge"
            raise ApiError(400, message, param="weighbridge")
        return await self._queue[ask.path](self, ask)

    async def _chat(self, ask: Ask) -> EngineJourney:
        body = decode(ask.as_body(), ChatRequest)
        guide = forced_call_guide(body) or guide_of(body)
        prompt = await self._prompts.chat(body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        params = await self._params(
            body, body.max_completion_tokens or body.max_tokens, logprobs, guide, prompt
        )
        form = ChatFormat(self._model, self._tokenizer.token_text, logprobs is not None, tool_names(body))
        return self._journey(ask, body, [prompt], params, [form])

    async def _complete(self, ask: Ask) -> EngineJourney:
        body = decode(ask.as_body(), CompletionRequest)
        if body.suffix:
            raise ApiError(
                400, "suffix: inserting between prompt and suffix is not supported", param="suffix"
            )
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise ApiError(
                400, "best_of: must equal n; sampling more than is returned is not supported", param="best_of"
            )
        prompts = await self._prompts.texts(body.prompt, "prompt")
        params = await self._params(
            body, body.max_tokens or 16, body.logprobs, guide_of(body), max(prompts, key=len)
        )
        forms: list[Format] = [
            TextFormat(
                self._model,
                self._tokenizer.token_text,
                body.logprobs is not None,
                self._tokenizer.decode(prompt) if body.echo else "",
                index * (body.n or 1),
            )
            for index, prompt in enumerate(prompts)
        ]
        return self._journey(ask, body, prompts, params, forms)

    async def _embed(self, ask: Ask) -> EngineJourney:
        generations, form = await embedding_generations(self.engine, self._prompts, ask)
        running: list[Running] = []
        try:
            for start in range(0, len(generations), BURST):  # two thousand inputs take a second
                burst = generations[start : start + BURST]
                running += self.submit(burst, ask, [form] * len(burst), first=not running)
                await asyncio.sleep(0)
        except NeverFits as error:  # the context is longer than the KV pool
            _close(running)
            field = "messages" if "messages" in ask.fields else "input"
            raise ApiError(400, f"{field}: {error}", code=error.code, param=field) from error
        except BaseException:
            _close(running)
            raise
        return EngineJourney(ask.path, running, streaming=False, include_usage=False)

    _queue: ClassVar = {chat.PATH: _chat, completions.PATH: _complete, embeddings.PATH: _embed}

    @property
    def _model(self) -> str:
        return self.engine.model_name

    def check_model(self, name: str) -> None:
        """Raises UnknownModel for another model's name; an empty one will do."""
        if name and name != self._model:
            message = f"the model {name!r} does not exist here; this server has {self._model!r}"
            raise UnknownModel(message, param="model")

    async def _params(
        self,
        body: Common,
        max_tokens: int | None,
        logprobs: int | None,
        guide: Guide | None,
        prompt: list[int],
    ) -> SamplingParams:
        if guide is not None:
            # Others may wait for the same one: whoever goes away must not cancel it.
            await asyncio.shield(asyncio.wrap_future(self._compile_guide(guide)))
        room = max(self.engine.max_model_len - len(prompt), 1)
        wanted = max_tokens if max_tokens is not None else min(room, self.settings.default_max_tokens)
        return sampling_params(body, wanted, logprobs, guide, self._prompts.limits)

    def _journey(
        self,
        ask: Ask,
        body: Common,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        forms: Sequence[Format],
    ) -> EngineJourney:
        generations = [Generation(prompt, params, choices=body.n or 1) for prompt in prompts]
        running = self.submit(generations, ask, forms)
        return EngineJourney(ask.path, running, ask.stream, ask.wants_usage)

    def submit(
        self, generations: Sequence[Generation], ask: Ask, forms: Sequence[Format], first: bool = True
    ) -> list[Running]:
        """Queue every generation on behalf of `ask`, or none when one is refused. Raises what `submit` does.

        `first`: these are the request's first ones; they carry its ticket's id.
        """
        running: list[Running] = []
        ticket_id = ask.id if first and self.tickets.get(ask.id) is None else None
        named = prompt_hash(bytes(ask.prompt or b""), ask.cache_salt)
        try:
            for generation, form in zip(generations, forms, strict=True):
                stream = self.engine.submit(
                    replace(
                        generation,
                        tenant=ask.tenant,
                        priority=ask.priority,
                        deadline_ms=ask.deadline_ms,
                        speculative=ask.speculative,
                        ticket_id=ticket_id if not running else None,
                        prompt_hash=named,
                        cache_salt=ask.cache_salt,
                    )
                )
                self.tickets.add(stream.ticket)
                running.append(Running(stream, form, generation.choices))
        except Exception:
            _close(running)
            raise
        return running


def _close(running: Sequence[Running]) -> None:
    for one in running:
        one.stream.close()
