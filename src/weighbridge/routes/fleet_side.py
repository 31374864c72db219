"""A side that is a model of the fleet in this process: its queue, policy, retries, limits and cancellation."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import msgspec

from weighbridge.cost.price import FREE, Price
from weighbridge.errors import BadInput, NeverFits, RateLimited, Refused
from weighbridge.fleet.attempt import Opened
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.journey import FleetJourney
from weighbridge.fleet.member import Member
from weighbridge.fleet.meter import Meter
from weighbridge.fleet.reliability.retry import retry_after
from weighbridge.routes.build import MakeSide
from weighbridge.routes.errors import SideFailed
from weighbridge.routes.fleet_state import fleet_embeddings, foreign
from weighbridge.routes.http_side import HttpSide
from weighbridge.routes.latency import Latency, TokenCount
from weighbridge.routes.side import Chunk, Side, SideRequest, SideSettings
from weighbridge.wire.ask import Ask
from weighbridge.wire.journey import Answered

PATH = "/v1/chat/completions"


class LimitReached(SideFailed):
    """The tenant has used up one of its limits at the gateway; the free side would not change that."""

    kind = "rate_limit_error"
    code = "rate_limit_exceeded"

    @property
    def is_request_at_fault(self) -> bool:
        return True


class DoesNotFit(SideFailed):
    """Too long for this model, as its own tokenizer counts; the other side may take it."""

    kind = "invalid_request_error"
    code = "context_length_exceeded"

    @property
    def is_request_at_fault(self) -> bool:
        return False


def fleet_sides(gateway: Gateway) -> MakeSide:
    """Makes the sides of routes: models of `gateway`, or URLs where the configuration has one."""

    def make(route: str, where: str, settings: SideSettings) -> Side:
        return HttpSide(where, settings) if settings.url else FleetSide(where, settings, gateway, route)

    return make


class FleetSide:
    """Everything it says is read from the pool of the model at that moment; replicas may come and go.

    Replicas of a cloud side are not told whose request it is. Raises BadInput for a model that is not there.
    """

    def __init__(self, name: str, settings: SideSettings, gateway: Gateway, route: str) -> None:
        self.name = name
        self.model = settings.model
        self.settings = settings
        self.abilities = settings.abilities
        self.max_tokens = settings.max_tokens
        self.latency = Latency()
        self.tokens = TokenCount()
        self.gateway = gateway
        self._pool = gateway.pool(settings.model)
        self._route = route

    # -- what decisions are made of ----------------------------------------------------------------------

    @property
    def price(self) -> Price:
        """No replica charges more, in any of its rates."""
        members = self._pool.members.values()
        prices = {m.spec.price for m in members} or {one.price for one in self._pool.spec.replicas}
        return dearest(prices)

    @property
    def context_tokens(self) -> int | None:
        longest = self._pool.longest_context()
        limits = [one for one in (self.settings.context_tokens, longest) if one is not None]
        return min(limits, default=None)

    @property
    def healthy(self) -> bool:
        """Whether any replica may be sent something now; whether it has room is the queue's to wait for."""
        return bool(self._usable())

    def queue_seconds(self) -> float:
        now = self.gateway.clock()
        lines = [m.state.line_seconds(now) or 0.0 for m in self._usable()]
        return self._waiting_seconds() + min(lines, default=0.0)

    def expected_seconds(self, prompt_tokens: int, output_tokens: float) -> float | None:
        """On the replica that is quickest by its step cost; where none tells, as answers have taken so far."""
        now = self.gateway.clock()
        predicted = [_answer_seconds(m, prompt_tokens, output_tokens, now) for m in self._usable()]
        times = [seconds for seconds in predicted if seconds is not None]
        if times:
            return self._waiting_seconds() + min(times)
        return self.latency.expected(output_tokens)

    def estimate_tokens(self, size: int) -> int:
        return self.tokens.estimate(size)

    def _usable(self) -> list[Member]:
        now = self.gateway.clock()
        return [
            member
            for member in self._pool.members.values()
            if member.usable(now) and member.state.healthy and not member.state.tells_draining
        ]

    def _waiting_seconds(self) -> float:
        """In which the replicas work off what waits in the gateway."""
        dispatcher = self._pool.dispatcher
        return (dispatcher.work_seconds(dispatcher.queue.tokens) or 0.0) if len(dispatcher.queue) else 0.0

    # -- answering ---------------------------------------------------------------------------------------

    async def open(self, request: SideRequest) -> FleetStream:
        started = self.gateway.clock()
        journey: FleetJourney | None = None
        try:
            async with asyncio.timeout(request.timeout):
                journey = await self.gateway.run(self._ask(request, started), accepted=True)
                journey.meter = Meter(hide_usage=False)  # what it used is read here, whoever asked for it
                journey.ticket.placement = self.name
                opened = await journey.open()
            self._check(opened)
        except BaseException as error:
            if journey is not None:
                await _finished(journey, _reason(error))
            failure = self._failure(error, admitted=journey is not None)
            if failure is None:
                raise
            raise failure from error
        return FleetStream(self, journey, opened, request, started)

    @property
    def elsewhere(self) -> str:
        """Asked of the replicas that are there now, or, before there are any, of those that are configured."""
        members = self._pool.members.values()
        return foreign([one.spec for one in members] or self._pool.spec.replicas)

    async def embeddings(self, request: SideRequest) -> Any:
        if self.elsewhere:
            raise SideFailed(f"{self.name}: {self.elsewhere}")
        return await fleet_embeddings(self.gateway, self._pool, request, self._route)

    async def close(self) -> None:
        """The fleet is the gateway's to close."""

    def _ask(self, request: SideRequest, now: float) -> Ask:
        body = {"max_tokens": self.max_tokens, **request.body}
        if "max_completion_tokens" in body:
            body.pop("max_tokens")
        body |= {"model": self.model, "stream": True}
        return Ask(
            id=uuid.uuid4().hex,
            path=PATH,
            fields={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()},
            model=self.model,
            tenant=request.tenant,
            stream=True,
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            choices=body.get("n") or 1,
            priority=max(-1000, min(request.priority, 1000)),
            deadline=None if request.deadline is None else now + request.deadline,
            route=self._route,
            anonymous=self.name != "edge",
        )

    def _check(self, opened: Opened) -> None:
        """Raises SideFailed for an answer that is no stream of chunks."""
        if opened.status >= 400:
            raise SideFailed(
                f"{self.name} answered {opened.status}: {_message(opened.first)}", status=opened.status
            )
        if not opened.is_stream:
            raise SideFailed(f"{self.name} sent no stream although it was asked for one", billable=True)

    def _failure(self, error: BaseException, *, admitted: bool) -> SideFailed | None:
        """What a route understands; None for what is to go on as it is."""
        text = f"{self.name}: {error}"
        if isinstance(error, SideFailed):
            return error
        if isinstance(error, TimeoutError):
            return SideFailed(f"{self.name}: no answer in time", status=504, billable=admitted)
        if isinstance(error, Answered):
            wait = retry_after(error.headers, time.time())
            text = f"{self.name} answered {error.status}: {_message(error.body)}"
            return SideFailed(text, status=error.status, retry_after=wait)
        if isinstance(error, RateLimited) and self.name == "edge":
            return LimitReached(text, status=429, retry_after=error.retry_after)
        if isinstance(error, NeverFits) and self.name == "edge":
            return DoesNotFit(text, status=400)
        if isinstance(error, Refused):
            late = error.status == 504 and admitted  # it was sent, and may have been worked on
            return SideFailed(text, status=error.status, retry_after=error.retry_after, billable=late)
        return SideFailed(text, status=400) if isinstance(error, BadInput) else None


class FleetStream:
    """The events of a journey as chunks. However it ends, the journey is finished: place, limits, ticket."""

    def __init__(
        self, side: FleetSide, journey: FleetJourney, opened: Opened, request: SideRequest, started: float
    ) -> None:
        self.upstream_ticket: str | None = journey.ticket.id
        self.price = opened.lease.member.spec.price
        self._side = side
        self._journey = journey
        self._source = journey.stream()
        self._size = request.size
        self._clock: Callable[[], float] = side.gateway.clock
        self._started = started
        self._first = self._clock()
        self._ends = started + request.timeout
        self._closing: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        error: str | None = None
        try:
            while (events := await self._next()) is not None:
                for data in _data(events):
                    if data != b"[DONE]":
                        yield self._chunk(data)
            self._done()
        except SideFailed as failure:
            error = str(failure)
            raise
        finally:
            await self._close(error)

    async def close(self) -> None:
        await self._close(None)

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(max(self._ends - self._clock(), 0.001)):
                event = await anext(self._source, None)
                return None if event is None else event.raw
        except TimeoutError as error:
            raise SideFailed(f"{self._side.name} took too long", status=504, billable=True) from error

    def _chunk(self, data: bytes) -> Chunk:
        name = self._side.name
        try:
            chunk = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SideFailed(f"{name} sent an event that is no JSON", billable=True) from None
        if not isinstance(chunk, dict):
            raise SideFailed(f"{name} sent an event that is no object", billable=True)
        if chunk.get("error"):
            raise SideFailed(f"{name} failed: {_message(data)}", billable=True)
        return chunk

    def _done(self) -> None:
        usage = self._journey.meter.usage
        tokens = self._journey.meter.produced if usage is None else usage.output_tokens
        self._side.latency.observe(self._first - self._started, self._clock() - self._first, tokens)
        if usage is not None:
            self._side.tokens.observe(self._size, usage.prompt_tokens)

    async def _close(self, error: str | None) -> None:
        """Shielded: whoever waits for it may be cancelled, the place on the replica is given back all the same."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._finish(error))
        await asyncio.shield(self._closing)

    async def _finish(self, error: str | None) -> None:
        try:
            await self._source.aclose()  # type: ignore[attr-defined]
        finally:
            await self._journey.close(error)


def _reason(error: BaseException) -> str | None:
    """What went wrong, for the ticket; None where nothing did but that nobody wants the answer any more."""
    return None if isinstance(error, asyncio.CancelledError) else str(error) or type(error).__name__


async def _finished(journey: FleetJourney, error: str | None) -> None:
    await asyncio.shield(asyncio.ensure_future(journey.close(error)))


def dearest(prices: set[Price]) -> Price:
    """The highest of each rate: a bound for all of `prices`."""
    if len(prices) <= 1:
        return next(iter(prices), FREE)
    cached = [
        one.input_usd_per_million if one.cached_usd_per_million is None else one.cached_usd_per_million
        for one in prices
    ]
    return Price(
        max(one.input_usd_per_million for one in prices),
        max(one.output_usd_per_million for one in prices),
        max(cached),
        max(one.usd_per_hour for one in prices),
    )


def _answer_seconds(member: Member, prompt_tokens: int, output_tokens: float, now: float) -> float | None:
    first = member.state.first_token_seconds(prompt_tokens, 0, now)
    return member.state.last_token_seconds(first, prompt_tokens, output_tokens)


def _data(events: bytes) -> list[bytes]:
    """The data of whole server-sent events; comments and other fields are left out."""
    return [line[5:].strip() for line in events.splitlines() if line.startswith(b"data:")]


def _message(body: bytes) -> str:
    """The message of OpenAI's error body, else the text itself, kept short."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        error = msgspec.json.decode(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    return body[:300].decode(errors="replace") or "no message"
