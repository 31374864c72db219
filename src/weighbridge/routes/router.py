"""A route at work: what its journeys share, and the stream that the client reads."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from weighbridge.cost.length import OutputLengths
from weighbridge.routes.attempt import Attempt
from weighbridge.routes.budget import Ledger
from weighbridge.routes.caps import Caps
from weighbridge.routes.difficulty.vectors import Question, Vector
from weighbridge.routes.errors import SideFailed
from weighbridge.routes.journey import Journey
from weighbridge.routes.judge import Draft, Judgement
from weighbridge.routes.policy import Level, PlaceFacts
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.reading import Readers
from weighbridge.routes.request import RoutedRequest
from weighbridge.routes.settings import RouteSettings
from weighbridge.routes.side import Chunk, Side
from weighbridge.ticket import Ticket, TicketStore

#: Part of the time a client gives that may be spent on looking at the prompt.
LARGEST_SHARE = 0.25


class Scorer(Protocol):
    """Difficulty before answering, in [0, 1], from the text and the vectors that are there."""

    def __call__(self, prompt: str, vectors: Mapping[str, Vector] | None = None) -> float: ...


class Judge(Protocol):
    """Confidence in what was held back of a local answer. `samples`: further answers of the edge, if any."""

    def __call__(
        self, prompt: str, body: Mapping[str, Any], draft: Draft, samples: Sequence[str] = ()
    ) -> Judgement: ...


class Observer(Protocol):
    """Told of every finished request: shadow evaluation and learning."""

    def threshold(self, default: float) -> float: ...
    def finished(self, request: RoutedRequest, ticket: Ticket, answer: str) -> None: ...
    async def close(self) -> None: ...


@dataclass(slots=True)
class HybridRouter:
    """One route. `clock` is monotonic, `wall` the epoch; both in seconds."""

    settings: RouteSettings
    edge: Side
    cloud: Side
    ledger: Ledger
    guard: Guard
    caps: Caps
    judge: Judge
    tickets: TicketStore
    scorer: Scorer | None = None
    readers: Readers | None = None
    observer: Observer | None = None
    lengths: OutputLengths | None = None
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    async def open(self, request: RoutedRequest) -> RoutedStream:
        """Place a request and begin its answer. Raises Refused; the ticket is written either way."""
        ticket = self._ticket(request)
        self.tickets.add(ticket)
        journey = Journey(self, request, ticket)
        try:
            attempt = await journey.commit()
        except asyncio.CancelledError:  # nobody waits for it any more
            ticket.finish_reason = "abort"
            self._close_ticket(journey, None)
            raise
        except BaseException as error:
            ticket.error, ticket.finish_reason = str(error) or type(error).__name__, "error"
            self._close_ticket(journey, None)
            raise
        stream = RoutedStream(self, journey, attempt)
        ticket.placement, ticket.replica = attempt.where, f"{attempt.side.name}:{attempt.side.model}"
        if attempt.upstream_ticket:
            journey.note(f"{attempt.side.name}'s own ticket: {attempt.upstream_ticket}")
        return stream

    async def close(self) -> None:
        if self.observer is not None:
            await self.observer.close()
        self.guard.close()
        if self.readers is not None:
            await self.readers.close()
        await self.edge.close()
        await self.cloud.close()

    # -- facts that decisions are made of ----------------------------------------------------------------

    async def score(self, request: RoutedRequest) -> tuple[float | None, str]:
        """The score, and what it was made from where that may differ from prompt to prompt."""
        if self.scorer is None or self.readers is None:
            return (None if self.scorer is None else self.scorer(request.prompt)), ""
        tenant, priority = request.tenant, request.priority
        body = request.forwarded(edge=True)
        question = Question(request.prompt, body, request.size, tenant, priority)
        most = LARGEST_SHARE * (request.deadline_seconds or self.settings.timeout)
        reading = await self.readers.read(question, most)
        return self.scorer(request.prompt, reading.vectors), str(reading)

    def threshold(self) -> float:
        default = 0.7 if self.settings.threshold is None else self.settings.threshold
        return default if self.observer is None else self.observer.threshold(default)

    def edge_facts(self, request: RoutedRequest) -> PlaceFacts:
        return self._facts(Level.EDGE, self.edge, request)

    def cloud_facts(self, request: RoutedRequest) -> PlaceFacts:
        return self._facts(Level.CLOUD, self.cloud, request)

    def refusal(self, request: RoutedRequest, usd: float) -> str:
        """Why caps or budgets keep this request from the cloud; empty when they do not."""
        capped = self.caps.refusal(request.tenant, self.clock())
        return capped or self.ledger.refusal(request.tenant, self.settings.name, usd)

    def _facts(self, level: Level, side: Side, request: RoutedRequest) -> PlaceFacts:
        """`usd` is a bound: no prompt has more tokens than bytes, no answer more than it may have."""
        prompt = side.estimate_tokens(request.size)
        most = (request.max_tokens or side.max_tokens) * request.choices
        expected = float(most)
        if self.lengths is not None:
            expected = self.lengths.estimate(request.tenant, side.model, self.settings.name, most).mean
        return PlaceFacts(
            name=level,
            level=level,
            healthy=side.healthy,
            context_tokens=side.context_tokens,
            abilities=side.abilities,
            tokens=prompt + (request.max_tokens or 1),
            seconds=side.expected_seconds(prompt, expected),
            usd=side.price.cost(request.most_prompt_tokens, most),
        )

    # -- tickets ---------------------------------------------------------------------------------------

    def _ticket(self, request: RoutedRequest) -> Ticket:
        text = json.dumps(request.body["messages"], ensure_ascii=False, sort_keys=True)
        return Ticket(
            id=uuid.uuid4().hex,
            tenant=request.tenant,
            model=self.settings.name,
            prompt_hash=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32],
            prompt_tokens=self.edge.estimate_tokens(request.size),
            max_tokens=request.max_tokens or self.edge.max_tokens,
            choices=request.choices,
            arrived=self.wall(),
        )

    def _close_ticket(self, journey: Journey, attempt: Attempt | None) -> None:
        """Add up what all attempts cost, and what the other side would have."""
        ticket = journey.ticket
        ticket.finished = self.wall()
        bills = [one.bill() for one in journey.attempts]
        ticket.cost_usd = round(sum(bill.usd for bill in bills), 9)
        ticket.cost_estimated = any(bill.estimated and bill.usd > 0 for bill in bills)
        if attempt is not None:
            bill = attempt.bill()
            other = self.cloud if attempt.where is Level.EDGE else self.edge
            ticket.prompt_tokens = bill.prompt_tokens or ticket.prompt_tokens
            ticket.output_tokens, ticket.cached_tokens = bill.output_tokens, bill.cached_tokens
            ticket.counterfactual_usd = round(other.price.cost(bill.prompt_tokens, bill.output_tokens), 9)
            if self.lengths is not None and attempt.complete:
                self.lengths.observe(
                    ticket.tenant, attempt.side.model, self.settings.name, bill.output_tokens
                )
        self.tickets.finish(ticket)


class RoutedStream:
    """The client's view of a committed answer: chunks with the values that were redacted put back.

    Iterate to the end, or `close()`; either way everything is settled and the ticket finished once.
    """

    def __init__(self, router: HybridRouter, journey: Journey, attempt: Attempt) -> None:
        self.ticket = journey.ticket
        self._router = router
        self._journey = journey
        self._attempt = attempt
        self._closed = False
        redacted = journey.redacted if attempt.where is Level.CLOUD else None
        self._restore = redacted.restorer() if redacted is not None else None

    @property
    def is_behind(self) -> bool:
        """Whether the next chunk is here already, so that it may be sent together with this one."""
        return self._attempt.is_behind

    @property
    def cost_usd(self) -> float:
        """Known when the answer is complete; before that, what it has cost so far."""
        return sum(attempt.bill().usd for attempt in self._journey.attempts)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        wanted = bool(self._journey.request.body.get("logprobs"))
        try:
            async for chunk in self._attempt.rest():
                if self.ticket.first_token is None and chunk.get("choices"):
                    self.ticket.first_token = self._router.wall()
                shown = {**chunk, "model": self.ticket.model}
                if self._attempt.where is Level.EDGE and not wanted:
                    shown["choices"] = [{**c, "logprobs": None} for c in chunk.get("choices") or ()]
                if self._restore is not None:
                    shown = self._restore.chunk(shown)
                yield shown
            if self._restore is not None:
                for index, delta in self._restore.finish().items():
                    choice = {"index": index, "delta": delta, "finish_reason": None}
                    yield {"object": "chat.completion.chunk", "model": self.ticket.model, "choices": [choice]}
            self.ticket.finish_reason = self._attempt.finish_reason or "stop"
        except SideFailed as error:
            self.ticket.error, self.ticket.finish_reason = str(error), "error"
            self._journey.note(f"{error}; bytes are out, so nobody else may continue")
            raise
        finally:
            await self.close()

    async def close(self) -> None:
        """Cancel what still runs, settle, and write the ticket. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._journey.close()
        self.ticket.finish_reason = self.ticket.finish_reason or "abort"
        self._router._close_ticket(self._journey, self._attempt)
        if self._router.observer is not None and self.ticket.finish_reason not in ("abort", "error"):
            self._router.observer.finished(self._journey.request, self.ticket, self._attempt.text)
