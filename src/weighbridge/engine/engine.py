"""One replica: the scheduler, the model and their loop behind `submit`, for callers on an event loop."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from weighbridge.cost import StepClock
from weighbridge.engine.api import Delta, EngineStep, Generation, Load, Turn
from weighbridge.engine.batch import Batch
from weighbridge.engine.loop import BatchRunner, EngineLoop
from weighbridge.engine.request import Adapter, FinishReason, Places, Request, SamplingParams
from weighbridge.engine.schedule.scheduler_api import Progress, SchedulerLike
from weighbridge.engine.stream import EngineStream, StreamChoice
from weighbridge.engine.text import StopStrings, TextStream, TokenDecoder
from weighbridge.errors import AdaptersFixed, Draining, NeverFits, UnknownModel
from weighbridge.models.readers.form import Form
from weighbridge.models.sampling_defaults import NO_DEFAULTS
from weighbridge.ticket import Ticket, prompt_hash

if TYPE_CHECKING:  # it loads torch, which a simulated replica does without
    from weighbridge.engine.adapters.desk import AdapterDesk

log = logging.getLogger("weighbridge.engine")

#: Priority of speculative requests: behind every class a client can ask for, preempted first.
SPECULATIVE_PRIORITY = 1_000_000


class EngineTokenizer(Protocol):
    """What the engine needs of a tokenizer: the ids that end a text, and an incremental decoder."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def stream(self, *, continuing: bool = False, shown: frozenset[int] = frozenset()) -> TokenDecoder: ...


class EngineObserver(Protocol):
    """A listener, called on the event loop but for `on_turn`; metrics and ticket stores are such."""

    def on_step(self, step: EngineStep) -> None: ...
    def on_finished(self, ticket: Ticket) -> None: ...
    def on_turn(self, seconds: float) -> None:
        """Hear, on the engine's thread, what an iteration took beside the model's own time."""
        ...


class LocalEngine:
    """An `Engine` that computes in this process, on a thread of its own."""

    def __init__(
        self,
        model_name: str,
        tokenizer: EngineTokenizer,
        scheduler: SchedulerLike,
        runner: BatchRunner,
        step_clock: StepClock,
        *,
        kv_bytes_per_token: int,
        kv_dtype: str = "",
        check_integrity: bool = False,
        clock: Callable[[], float] = time.monotonic,
        on_thread_start: Callable[[], None] | None = None,
        reads: Form | None = None,
    ) -> None:
        self._model_name = model_name
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._step_clock = step_clock
        self.experts = runner.experts
        self.hidden_size = runner.hidden_size
        self.sampling_defaults = NO_DEFAULTS
        self.reads = reads
        self.desk: AdapterDesk | None = None  # of adapters, where there are any
        self._kv_bytes_per_token = kv_bytes_per_token
        self._kv_dtype = kv_dtype
        self._clock = clock
        self._streams: dict[
            str, tuple[EngineStream, StreamChoice]
        ] = {}  # request id -> where its output goes
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self.observers: list[EngineObserver] = []
        self._loop = EngineLoop(
            scheduler,
            runner,
            step_clock,
            self._deliver,
            clock=clock,
            check_integrity=check_integrity,
            on_start=on_thread_start,
            on_turn=self._turned,
        )

    # -- for callers ----------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        return self._model_name

    @property
    def max_model_len(self) -> int:
        return self._scheduler.settings.max_model_len

    def start(self) -> None:
        """Start the engine's thread; call on the event loop that will read the streams."""
        self._event_loop = asyncio.get_running_loop()
        self._loop.start()

    def stop(self) -> None:
        """End the thread after its current iteration; open streams end with `abort`."""
        self._loop.stop()
        for stream, _ in list(self._streams.values()):
            stream.close()

    def keep_places(self, tenant: str, generations: Sequence[Generation]) -> Places:
        """Keep places in the line for generations of one call. Raises Refused where there is not room for all."""
        self._check_open()
        sizes = [(len(one.prompt), one.params.max_tokens) for one in generations]
        counted = [size for one, size in zip(generations, sizes, strict=True) for _ in range(one.choices)]
        with self._loop.lock:
            return self._scheduler.keep_places(tenant, counted)

    def give_back(self, places: Places) -> None:
        """Give back the places of generations that were not submitted."""
        with self._loop.lock:
            self._scheduler.give_back(places)

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("the server is shutting down and takes no new requests; try another replica")

    def adapters(self) -> Sequence[Adapter]:
        return () if self.desk is None else self.desk.served()

    async def load_adapter(self, name: str, path: str) -> Adapter:
        return await self._some_desk().load(name, path)

    async def unload_adapter(self, name: str, timeout: float) -> None:
        await self._some_desk().unload(name, self, timeout)

    def _some_desk(self) -> AdapterDesk:
        if self.desk is None:
            message = "this server has no adapters: start it with --lora-root DIR to load those below DIR"
            raise AdaptersFixed(message, param="lora_name")
        return self.desk

    def _adapter(self, name: str) -> Adapter | None:
        """Return the adapter of a generation. Raises UnknownModel: it may have gone since it was asked for."""
        if not name:
            return None
        if self.desk is None:
            raise UnknownModel(
                f"the model {name!r} does not exist here; this server has {self._model_name!r}", param="model"
            )
        return self.desk.get(name)

    def users_of(self, adapter: Adapter) -> int:
        """Requests that wait or run with an adapter."""
        with self._loop.lock:
            return sum(choice.request.adapter is adapter for _, choice in self._streams.values())

    def fence(self) -> Future[None]:
        return self._loop.fence()

    def submit(self, generation: Generation, places: Places | None = None) -> EngineStream:
        """Weigh and queue a generation. Raises Refused with the reason when it cannot run."""
        self._check_open()
        stream = self._open(generation)
        requests = [choice.request for choice in stream.choices]
        with self._loop.lock:
            now = self._clock()
            added: list[Request] = []
            try:
                for request in requests:
                    self._scheduler.add(request, now, places)
                    added.append(request)
            except Exception:
                for request in added:
                    self._scheduler.abort(request.id)
                raise
            for choice in stream.choices:
                self._streams[choice.request.id] = (stream, choice)
            self._loop.wake()
        return stream

    def load(self) -> Load:
        with self._loop.lock:
            load = self._scheduler.load()
        return replace(
            load,
            draining=self._draining,
            step_cost=self._step_clock.cost.as_dict(),
            kv_dtype=self._kv_dtype,
            kv_bytes_per_token=self._kv_bytes_per_token,
        )

    def waiting(self) -> dict[tuple[int, str], tuple[int, int]]:
        with self._loop.lock:
            waiting = self._scheduler.waiting()
        return {key: (backlog.requests, backlog.tokens) for key, backlog in waiting.items()}

    def turn(self) -> Turn | None:
        return self._loop.turn()

    async def drain(self, timeout: float) -> bool:
        """Refuse new work and wait for what was accepted; False when `timeout` seconds were not enough."""
        self._draining = True
        deadline = self._clock() + timeout
        while self._streams:
            if self._clock() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    # -- from generation to requests -------------------------------------------------------------------

    def _open(self, generation: Generation) -> EngineStream:
        params = self._bounded(generation)
        ticket = self._ticket(generation, params)
        adapter = self._adapter(generation.adapter)
        if adapter is not None:
            ticket.adapter = adapter.name
            ticket.decisions.append(partial(_adapter_words, adapter, self._model_name))
        arrival = self._clock()
        deadline = None if generation.deadline_ms is None else arrival + generation.deadline_ms / 1e3
        choices: list[StreamChoice] = []
        stop = StopStrings(params.stop, shown=params.shows_stop, after=params.min_tokens)
        stop_ids = self._stop_ids(params)
        for index in range(generation.choices):
            request = Request(
                id=f"{ticket.id}-{index}",
                prompt=generation.prompt,
                params=params if not index else _reseeded(params, index),
                arrival=arrival,
                tenant=generation.tenant,
                priority=SPECULATIVE_PRIORITY if generation.speculative else generation.priority,
                deadline=deadline,
                fork_of=choices[0].request if choices else None,
                stop_token_ids=stop_ids,
                embeds=generation.embeds,
                salt=_salt(generation.cache_salt, adapter),
                adapter=adapter,
            )
            decoder = self._tokenizer.stream(continuing=generation.continues, shown=params.shown_tokens)
            choices.append(StreamChoice(index, request, TextStream(decoder, stop)))
        return EngineStream(ticket, choices, self._cancel)

    def _bounded(self, generation: Generation) -> SamplingParams:
        """Return the sampling parameters within what the context leaves. Raises NeverFits when that is nothing."""
        params, length = generation.params, len(generation.prompt)
        room = self.max_model_len - length
        answers = params.max_tokens > 0
        if room < answers:
            rest = " and at least one must be left for the answer" if answers else ""
            raise NeverFits(
                f"the prompt has {length} tokens, but this model's context is {self.max_model_len} tokens"
                f"{rest}; shorten the prompt"
            )
        params = replace(params, max_tokens=min(params.max_tokens, room))
        if params.seed is None and generation.choices > 1:
            params = replace(params, seed=random.getrandbits(62))
        return params

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        ends = () if params.ignore_eos else self._tokenizer.eos_token_ids
        return params.stop_token_ids.union(ends)

    def _ticket(self, generation: Generation, params: SamplingParams) -> Ticket:
        total = len(generation.prompt) + params.max_tokens
        return Ticket(
            id=generation.ticket_id or uuid.uuid4().hex,
            tenant=generation.tenant,
            model=generation.adapter or self._model_name,
            prompt_hash=generation.prompt_hash or prompt_hash(array("i", generation.prompt).tobytes()),
            prompt_tokens=len(generation.prompt),
            max_tokens=params.max_tokens,
            priority=SPECULATIVE_PRIORITY if generation.speculative else generation.priority,
            choices=generation.choices,
            kv_bytes=total * self._kv_bytes_per_token * generation.choices,
            arrived=time.time(),
        )

    # -- from iterations to deltas ---------------------------------------------------------------------

    def _cancel(self, stream: EngineStream) -> None:
        """Free the requests of a reader that is gone, before the next iteration is scheduled."""
        with self._loop.lock:
            for choice in stream.choices:
                if self._streams.pop(choice.request.id, None) is not None:
                    self._scheduler.abort(choice.request.id)
                    self._close_choice(stream, choice, FinishReason.ABORT)

    def _deliver(
        self, batch: Batch, progress: list[Progress], finished: list[Request], seconds: float
    ) -> None:
        """Turn one iteration's tokens into text and send it. Runs on the engine's thread, under the lock."""
        now = time.time()
        for piece in batch.slices:
            entry = self._streams.get(piece.request.id)
            if entry is not None:
                _note_step(entry[0].ticket, piece.request, batch, now - seconds)
        deltas: dict[EngineStream, list[Delta]] = {}
        for item in progress:
            self._advance(item, now, deltas)
        for request in finished:
            entry = self._streams.pop(request.id, None)
            if entry is not None:
                stream, choice = entry
                deltas.setdefault(stream, []).append(self._last_delta(stream, choice, request.finish_reason))
        if self._event_loop is not None and not self._event_loop.is_closed():
            step = _step_of(batch, progress, seconds)
            self._event_loop.call_soon_threadsafe(self._dispatch, deltas, step)

    def _advance(self, item: Progress, now: float, deltas: dict[EngineStream, list[Delta]]) -> None:
        entry = self._streams.get(item.request.id)
        if entry is None:
            return
        stream, choice = entry
        if item.tokens and stream.ticket.first_token is None:
            stream.ticket.first_token = now
        stream.ticket.output_tokens += len(item.tokens)
        finish = item.finish_reason
        ended_by_id = finish is FinishReason.STOP and item.tokens
        hidden = ended_by_id and not choice.request.params.shows_stop
        piece = choice.text.push(item.tokens[:-1] if hidden else item.tokens)
        text: str = piece.text
        stopped_by: str | int | None = piece.stopped_by
        if stopped_by is not None:
            if finish is None:
                self._scheduler.finish(item.request.id, FinishReason.STOP)
            finish = FinishReason.STOP
        elif finish is not None:
            text += choice.text.flush()
            stopped_by = item.tokens[-1] if ended_by_id else None
        if finish is not None:
            self._streams.pop(item.request.id, None)
            self._close_choice(stream, choice, finish, item.error)
        deltas.setdefault(stream, []).append(
            Delta(
                choice.index,
                text,
                item.tokens,
                item.logprobs,
                finish,
                item.error,
                stopped_by,
                item.embedding,
                item.chances,
                item.prompt_logprobs,
            )
        )

    def _last_delta(self, stream: EngineStream, choice: StreamChoice, reason: FinishReason | None) -> Delta:
        finish = reason or FinishReason.ABORT
        error = None
        if finish is FinishReason.DEADLINE:
            error = (
                "the request's deadline passed before it was done; allow more time or ask for fewer tokens"
            )
        self._close_choice(stream, choice, finish, error)
        return Delta(choice.index, choice.text.flush(), finish=finish, error=error)

    def _close_choice(
        self, stream: EngineStream, choice: StreamChoice, finish: FinishReason, error: str | None = None
    ) -> None:
        ticket, request = stream.ticket, choice.request
        stream.open_choices -= 1
        ticket.preemptions += request.num_preemptions
        ticket.drafted_tokens += request.num_drafted_tokens
        ticket.accepted_tokens += request.num_accepted_tokens
        if error is not None:
            ticket.error = error
        if choice.index == 0 or ticket.finish_reason is None:
            ticket.finish_reason = finish.value
        if stream.open_choices == 0:
            ticket.finished = time.time()
            self._notify(ticket)

    def _notify(self, ticket: Ticket) -> None:
        def tell() -> None:
            for observer in self.observers:
                observer.on_finished(ticket)

        if self._event_loop is not None and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(tell)

    def _turned(self, seconds: float) -> None:
        for observer in self.observers:
            observer.on_turn(seconds)

    def _dispatch(self, deltas: dict[EngineStream, list[Delta]], step: EngineStep) -> None:
        for stream, items in deltas.items():
            stream.push(items)
        if step.tokens:
            for observer in self.observers:
                observer.on_step(step)


def _salt(cache_salt: str, adapter: Adapter | None) -> bytes:
    """What cached prefixes are kept apart by: no text has the byte 0xFF, so no client writes that of an adapter."""
    text = cache_salt.encode()
    return text if adapter is None else b"\xff" + adapter.key + text


def _adapter_words(adapter: Adapter, base: str) -> str:
    return f"adapter {adapter.name} (rank {adapter.rank}) over {base}: {adapter.share:.2%} more to compute a token"


def _step_of(batch: Batch, progress: list[Progress], seconds: float) -> EngineStep:
    """What an iteration was. A slice is a part of a prompt where it begins in one."""
    tokens = prompts = prompt_tokens = 0
    for piece in batch.slices:
        tokens += piece.count + piece.padding
        if piece.start < piece.request.num_prompt_tokens:
            prompts += 1
            prompt_tokens += piece.count
    produced = sum([len(item.tokens) for item in progress])
    return EngineStep(len(batch.slices), tokens, seconds, prompts, prompt_tokens, produced)


def _reseeded(params: SamplingParams, index: int) -> SamplingParams:
    """Give choice `index` a random stream of its own; its seed follows from the request's, so that it repeats.

    The log-probabilities of the prompt, which they share, come with the first choice.
    """
    assert params.seed is not None
    seed = (params.seed + index * 0x9E3779B97F4A7C15) % (1 << 62)
    return replace(params, seed=seed, prompt_logprobs=None)


def _note_step(ticket: Ticket, request: Request, batch: Batch, started: float) -> None:
    sequences = batch.num_sequences
    if ticket.scheduled is None:
        ticket.scheduled = started
        ticket.cached_tokens = request.num_cached_tokens
    ticket.steps += 1
    ticket.batch_sizes[sequences] = ticket.batch_sizes.get(sequences, 0) + 1
    if batch.experts_touched is not None:
        ticket.experts_touched = (ticket.experts_touched or 0) + batch.experts_touched
