"""One engine as a service: from an `Ask` to generations, and what else can be asked of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

from weighbridge.cost.step import StepCost
from weighbridge.engine.api import Engine, Turn
from weighbridge.engine.request import Adapter, Guide, Places
from weighbridge.errors import NeverFits, Refused, UnknownModel, words_of
from weighbridge.fleet.limits.spare import SpareRoom
from weighbridge.models.readers.form import LabelForm, VectorForm
from weighbridge.routes.budget import Ledger
from weighbridge.routes.build import build_guard
from weighbridge.routes.ledger.keeper import UsageKeeper
from weighbridge.routes.settings import PrivacySettings
from weighbridge.server.elsewhere.store import StreamStore
from weighbridge.server.endpoint import Audience, ChatTokenizer, Endpoint, NoTokenizer
from weighbridge.server.engine.adapters.endpoints import AdapterEndpoints
from weighbridge.server.engine.experts import ExpertEndpoints
from weighbridge.server.engine.journey import EngineJourney, Running, close_all
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.engine.predecessors import Predecessors
from weighbridge.server.engine.reading import EngineWork, RequestReader
from weighbridge.server.engine.sampling import Limits
from weighbridge.server.settings import ServerSettings
from weighbridge.server.tracing.tracer import Tracer
from weighbridge.server.watching.engine_view import EngineView
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask, Placement, new_id
from weighbridge.wire.body import LONG_BODY, apart
from weighbridge.wire.errors import ApiError
from weighbridge.wire.identity.callers import Callers
from weighbridge.wire.journey import HeaderList
from weighbridge.wire.keys import Keys
from weighbridge.wire.prompts.care import PromptCare
from weighbridge.wire.protocols import SILENT


def predecessors_of(tokenizer: ChatTokenizer) -> Predecessors:
    """What compares prompts; the patterns of privacy rules say what is not shown of them."""
    guard = build_guard(PrivacySettings())

    def hide(text: str) -> list[tuple[int, int, str]]:
        return [(hit.start, hit.end, hit.type) for hit in guard.scan(text)]

    return Predecessors(lambda ids: tokenizer.decode(ids, False), hide)


#: Prompts of one request that are queued without a turn for others.
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
        keys = Keys(settings.api_keys, settings.admin_key)
        self.callers = Callers(keys, settings, dict(settings.tenant_priorities))
        self.prompts = PromptCare(settings.prompt_rules)
        self.access = self.keeping = settings
        self.max_body = settings.max_body
        self.tracer: Tracer | None = None
        self.stream_store: StreamStore | None = None
        self.usage = UsageKeeper(Ledger(None))
        metrics.heard.append(self.usage.finished)
        self.seen = EngineView(engine)
        metrics.heard.append(self.seen.history.finished)
        metrics.stepped.append(self.seen.stepped)
        limits = Limits(settings, tokenizer.vocab_size, engine.sampling_defaults)
        self._reader = RequestReader(engine, tokenizer, limits)
        self._tokenizer = tokenizer
        self._predecessors = predecessors_of(tokenizer) if settings.prefix_care else None
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
        await asyncio.to_thread(self.usage.close)

    def models(self) -> list[dict[str, Any]]:
        return [self.model(name) for name in (self._model, *self._adapters())]

    def model(self, name: str) -> dict[str, Any]:
        self.check_model(name)
        adapters = self._adapters()
        told = {
            "id": name or self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "weighbridge",
            "max_model_len": self.engine.max_model_len,
            "sampling_defaults": self.engine.sampling_defaults.as_dict(),
        }
        if adapters:
            adapter = adapters.get(name)
            told["root"] = self._model if adapter is None else adapter.root
            told["parent"] = None if adapter is None else self._model
        return told

    def _adapters(self) -> dict[str, Adapter]:
        return {adapter.name: adapter for adapter in self.engine.adapters()}

    def health(self) -> tuple[int, dict[str, Any]]:
        draining = self.engine.load().draining
        return (503, {"status": "draining"}) if draining else (200, {"status": "ok"})

    def load(self, in_full: bool) -> dict[str, Any]:
        reads = self.engine.reads
        writes = reads is None
        can = {
            "tools": writes and self._reader.reads_tools,
            "forced_tools": writes,
            "vision": False,
            "audio": False,
        }
        labels = reads.labels if isinstance(reads, LabelForm) else ()
        can |= {"scores": isinstance(reads, VectorForm) or len(labels) == 1, "labels": bool(labels)}
        if not writes:
            can |= {"chat": False, "completions": False, "embeddings": isinstance(reads, VectorForm)}
        can["decisions"] = writes and self.engine.hidden_size is not None
        return {**asdict(self.engine.load()), "abilities": can}

    async def exposition(self) -> bytes:
        return self._metrics.exposition()

    def tokenizer(self, model: str) -> tuple[ChatTokenizer, int | None]:
        self.check_model(model)
        return self._tokenizer, self.engine.max_model_len

    async def asked_behind(self, path: str, model: str, fields: Mapping[str, Any]) -> bytes:
        raise NoTokenizer("there is no other server behind this one")

    @property
    def draining(self) -> bool:
        return self.engine.load().draining

    def spare_room(self, model: str) -> SpareRoom:
        self.check_model(model)
        lines = self.keeping.batch_lines  # the engine lets everybody else pass by itself
        return SpareRoom(lines, lines)

    async def touch(self, model: str, keep_alive: float | None) -> None:
        """Do nothing: its model stays loaded."""

    def keeps_streams(self, model: str) -> bool:
        return self.settings.keep_streams

    def may_write(self, model: str, restricted: bool) -> bool:
        return True

    def answered(self, path: str, status: int) -> None:
        self._metrics.http_requests.labels(path, str(status)).inc()
        self.seen.answered(path, status)

    def stalled(self, thread: str, seconds: float) -> None:
        self._metrics.stalls.labels(thread).observe(seconds)

    def watched(self) -> dict[str, Callable[[], Turn | None]]:
        return {"engine": self.engine.turn}

    def endpoints(self) -> list[Endpoint]:
        experts, adapters = ExpertEndpoints(self.engine), AdapterEndpoints(self.engine, self.max_body)
        return [
            Endpoint("GET", "/v1/experts", experts.report, Audience.WATCHERS),
            Endpoint("POST", "/v1/experts/reset", experts.reset, Audience.OPERATOR),
            *adapters.endpoints(),
        ]

    # -- requests --------------------------------------------------------------------------------------

    def limit_headers(self, tenant: str) -> HeaderList:
        return []  # tenants share an engine, and have no limits of their own by the minute

    async def admit(self, ask: Ask) -> EngineJourney:
        """Queue a request. Raises ApiError, BadInput or Refused."""
        self.check_model(ask.model)
        ask.model = ask.model or self._model
        if ask.placement is Placement.ONLY_CLOUD:
            message = "placement: this server has no cloud; use only_edge or prefer_edge"
            raise ApiError(400, message, param="weighbridge")
        least = LONG_BODY if self._tokenizer.encodes_apart else 0
        work = await apart(max(ask.size, least), self._reader.read, ask)
        if work.guide is not None:
            # Others may wait for the same one: whoever goes away must not cancel it.
            await asyncio.shield(asyncio.wrap_future(self._compile_guide(work.guide)))
        journey = await self._queue(ask, work)
        if self._predecessors is not None and ask.path not in SILENT:
            await self._look_back(self._predecessors, ask, work, journey)
        return journey

    async def _look_back(
        self, predecessors: Predecessors, ask: Ask, work: EngineWork, journey: EngineJourney
    ) -> None:
        """Note on the ticket where the prompt left the one before it, while the engine is at work on it."""
        whose, prompt = f"{ask.tenant}\0{ask.cache_salt}\0{self._adapter_of(ask)}", work.generations[0].prompt
        cost = StepCost(**self.engine.load().step_cost)
        try:
            journey.ticket.prefix = await asyncio.to_thread(predecessors.follow, whose, prompt, cost)
        except BaseException:
            await journey.close()
            raise

    async def _queue(self, ask: Ask, work: EngineWork) -> EngineJourney:
        """Queue every generation of a request, or none when one is refused; others get a turn in between."""
        embeds = ask.path in SILENT
        running: list[Running] = []
        places: Places | None = None
        try:
            if len(work.generations) > 1:  # there is room for all of them before the first is queued
                places = self.engine.keep_places(ask.tenant, work.generations)
            for start in range(0, len(work.generations), BURST):
                running += self.submit(ask, work, range(start, start + BURST), places)
                if len(work.generations) > BURST:
                    await asyncio.sleep(0)
        except BaseException as error:
            if places is not None:
                self.engine.give_back(places)
            await close_all(running)
            if isinstance(error, Refused) and not running:
                self._turned_away(ask, work, error)
            if embeds and isinstance(error, NeverFits):  # the context is longer than the KV pool
                field = ask.prompt_field
                raise ApiError(400, f"{field}: {error}", code=error.code, param=field) from error
            raise
        return EngineJourney(ask.path, running, ask.stream, ask.wants_usage)

    def _turned_away(self, ask: Ask, work: EngineWork, error: Refused) -> None:
        """Keep a ticket of a request that the engine did not take: whoever was refused asks why, too."""
        if self.tickets.get(ask.id) is not None:
            ask.id = new_id()
        first, now = work.generations[0], time.time()
        ticket = Ticket(
            id=ask.id,
            tenant=ask.tenant,
            model=ask.model,
            prompt_hash=work.prompt_hash,
            prompt_tokens=len(first.prompt),
            max_tokens=first.params.max_tokens,
            priority=ask.priority,
            choices=first.choices,
            arrived=now,
            finished=now,
            finish_reason="refused",
            error=words_of(error),
            replica="",  # none worked on it
        )
        if ask.trace is not None:
            ask.trace.holds(ticket)
        self.tickets.add(ticket)
        self._metrics.on_refused(ticket)

    @property
    def _model(self) -> str:
        return self.engine.model_name

    def check_model(self, name: str) -> None:
        """Raises UnknownModel for another model's name; an empty one will do."""
        adapters = self._adapters()
        if name and name != self._model and name not in adapters:
            known = ", ".join(map(repr, (self._model, *adapters)))
            message = f"the model {name!r} does not exist here; this server has {known}"
            raise UnknownModel(message, param="model")

    def _adapter_of(self, ask: Ask) -> str:
        """The adapter that a request asks for by its model's name; empty: none."""
        return "" if ask.model == self._model else ask.model

    def submit(
        self, ask: Ask, work: EngineWork, numbers: range, places: Places | None = None
    ) -> list[Running]:
        """Queue the generations of these numbers on behalf of `ask`, or none of them when one is refused.

        The first of all carries the ticket's id. Raises what the engine's `submit` does.
        """
        running: list[Running] = []
        ticket_id = ask.id if not numbers.start and self.tickets.get(ask.id) is None else None
        try:
            for number in numbers[: max(len(work.generations) - numbers.start, 0)]:
                generation = replace(
                    work.generations[number],
                    tenant=ask.tenant,
                    priority=ask.priority,
                    deadline_ms=ask.deadline_ms,
                    speculative=ask.speculative,
                    ticket_id=ticket_id if not running else None,
                    prompt_hash=work.prompt_hash,
                    cache_salt=ask.cache_salt,
                    adapter=self._adapter_of(ask),
                )
                stream = self.engine.submit(generation, places)
                if ask.trace is not None:
                    ask.trace.holds(stream.ticket)
                self.tickets.add(stream.ticket)
                running.append(Running(stream, work.forms[number], generation.choices))
        except Exception:
            for one in running:
                one.stream.close()
            raise
        return running
