"""A leg of a route's request under way: asked of one place, held back until it may be judged, paid for once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import fields
from typing import Any, cast

import msgspec

from weighbridge.cost.price import NANO
from weighbridge.cost.usage import Usage
from weighbridge.errors import (
    BadInput,
    DeadlineMissed,
    Inside,
    NeverFits,
    RateLimited,
    Refused,
    WeighbridgeError,
    wording,
    words_of,
)
from weighbridge.fleet.attempt import OpenedAttempt
from weighbridge.fleet.journey import FleetJourney
from weighbridge.fleet.limits.remaining import retry_after
from weighbridge.fleet.meter import GENERATED, Meter
from weighbridge.routes.answer import sound
from weighbridge.routes.budget import FREE_OF_CHARGE, Cashier, Reservation
from weighbridge.routes.errors import REQUESTS_FAULT, DoesNotFit, LimitReached, PlaceFailed, TooLate
from weighbridge.routes.judge import Draft, SignalMeter
from weighbridge.routes.ledger.usage import Used
from weighbridge.routes.place import Place
from weighbridge.routes.policy import Level
from weighbridge.routes.settings import Window
from weighbridge.ticket import Leg
from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import error_fields, error_message
from weighbridge.wire.events import Event
from weighbridge.wire.journey import Answered
from weighbridge.wire.sse import event_data

FIRST_TOKEN = Window(tokens=1)
WHOLE = Window()
#: A bill of so many times what an answer can cost at most is a mistake of the server that says so.
CREDIBLE = 2.0
#: Seconds in which a body must end behind its last event.
END_WITHIN = 1.5


class _Alternative(msgspec.Struct):
    logprob: float


class _Token(msgspec.Struct):
    logprob: float
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct):
    """One `chat.completion.chunk`, as far as a judge reads it: of log-probabilities only the numbers."""

    choices: list[_Choice] | None = None
    error: Any = None
    id: str | None = None
    created: int | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class LegRun:
    """Opens a journey at a place, and settles its reservation when it is closed.

    `ends`: when the whole answer must be there, on the event loop's clock. `until`: when what is held back must be,
    where the client's deadline says so.
    """

    def __init__(
        self,
        place: Place,
        ask: Ask,
        cashier: Cashier,
        reservation: Reservation = FREE_OF_CHARGE,
        *,
        ends: float,
        until: float = math.inf,
        purpose: str = "answer",
    ) -> None:
        self.place = place
        self.until = until
        self.signals = SignalMeter()
        self.finish_reason: str | None = None
        self.complete = False  # its last event is here
        self.asked_logprobs = False  # for the judge; the client did not
        self.prefix: dict[str, Any] | None = None  # where the prompt left the one before it
        self.reads_all = False  # its text is wanted, also of what is not held back
        self.leg = Leg(ask.model, place.name, place.level, purpose)
        self._ask = ask
        self._cashier = cashier
        self._reservation = reservation
        self._ends = ends
        self._journey: FleetJourney | None = None
        self._events: AsyncGenerator[Event, None] | None = None
        self._next: asyncio.Task[Event | None] | None = None  # waited for when a window ended by its time
        self._held: list[Event] = []
        self._text: list[str] = []
        self._counted = 0  # tokens of what was held back
        self._exhausted = False  # nothing comes behind its last event any more
        self._billable = False
        self._started_at = self._opened_at = 0.0
        self._closing: asyncio.Task[None] | None = None
        self._is_finished = False

    @property
    def text(self) -> str:
        """The content of the first choice, as far as it was read here."""
        return "".join(self._text)

    def draft(self) -> Draft:
        """What there is of the answer now, to be judged."""
        return Draft(self.text, self.complete, self.finish_reason, self.signals)

    # -- until it may be judged ------------------------------------------------------------------------

    async def start(self, window: Window) -> None:
        """Ask the place and hold back `window` of its answer. Raises PlaceFailed; then it is closed already."""
        gateway = self.place.gateway
        self._started_at = gateway.clock()
        try:
            async with asyncio.timeout_at(min(self._ends, self.until)):
                self._journey = await gateway.leg(self._ask, self.place.pool)
                self._journey.meter = Meter(
                    hide_usage=False
                )  # what it used is read here, whoever asked for it
                self._billable = True  # a request cut off on its way may have been worked on
                self._check(await self._journey.open())
                self._opened_at = gateway.clock()
                self.leg.first_token = self._journey.ticket.first_token
                self._events = cast("AsyncGenerator[Event, None]", self._journey.stream())
                await self._hold(window)
        except BaseException as error:
            failure = self._failure(error)
            if failure is not None:
                self._billable = failure.billable or (
                    self._journey is not None and self._journey.meter.produced > 0
                )
            await self.close(_reason(failure or error))
            if failure is None or failure is error:
                raise
            raise failure from error

    def _check(self, opened: OpenedAttempt) -> None:
        """Raises PlaceFailed for an answer that is no stream of chunks."""
        name = self.place.name
        if opened.status >= 400:
            raise _answered(name, opened.status, opened.first)
        if not opened.is_stream:
            raise PlaceFailed(f"{name} sent no stream although it was asked for one", billable=True)

    async def _hold(self, window: Window) -> None:
        loop = asyncio.get_running_loop()
        until: float | None = None
        while not self.complete and (window.tokens is None or self._counted < window.tokens):
            event = await self._event_before(until)
            if event is None:
                return
            self._held.append(event)
            self._read(event)
            if until is None and window.seconds is not None and self._counted:
                until = loop.time() + window.seconds

    async def _event_before(self, until: float | None) -> Event | None:
        """The next event; None after the last, and when `until` comes first: then it is still waited for."""
        if until is None:
            return await self._following()
        task = self._next = asyncio.ensure_future(self._following())
        await asyncio.wait((task,), timeout=until - asyncio.get_running_loop().time())
        if not task.done():
            return None
        self._next = None
        return task.result()

    async def _following(self) -> Event | None:
        assert self._events is not None
        event = await anext(self._events, None)
        self._exhausted = event is None
        self.complete = self.complete or event is None or event.last
        return event

    def _read(self, event: Event) -> None:
        """Take in what an event says: its text, its log-probabilities, how many tokens it carries."""
        for data in event_data(event.raw):
            if data != b"[DONE]":
                self._note(self._chunk(data))

    def _chunk(self, data: bytes) -> _Chunk:
        name = self.place.name
        try:
            chunk = _decode(data)
        except msgspec.ValidationError:
            raise PlaceFailed(f"{name} sent an event in no known shape", billable=True) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            whole = sound(data)
            if whole is None:
                raise PlaceFailed(f"{name} sent an event that is no JSON", billable=True) from None
            return self._chunk(whole)
        if chunk.error:
            raise PlaceFailed(
                Inside(f"{name} failed: {error_message(data)}", f"{name} failed"), billable=True
            )
        return chunk

    def _note(self, chunk: _Chunk) -> None:
        for choice in chunk.choices or ():
            delta = choice.delta or {}
            tokens = (choice.logprobs.content if choice.logprobs is not None else None) or ()
            content = delta.get("content")
            if tokens or any(delta.get(name) for name in GENERATED):  # a thought is a first token too
                self._counted += max(len(tokens), 1)
            if choice.index == 0:
                if content is not None and not isinstance(content, str):
                    raise PlaceFailed(f"{self.place.name} sent content that is no text", billable=True)
                self._text.append(content or "")
                for token in tokens:
                    self.signals.token(token.logprob, [top.logprob for top in token.top_logprobs or ()])
                self.finish_reason = choice.finish_reason or self.finish_reason

    # -- the answer ------------------------------------------------------------------------------------

    def held(self) -> bytes:
        """The events that were held back."""
        return b"".join([event.raw for event in self._held])

    async def rest(self) -> AsyncIterator[Event]:
        """What was held back, as one event, then the rest as it comes. Raises PlaceFailed where it breaks off."""
        if self._held:
            yield _joined(self._held)
        while not self._exhausted:
            try:
                async with asyncio.timeout_at(self._ends):
                    if self._next is not None:
                        event = await self._next
                        self._next = None
                    else:
                        event = await self._following()
            except TimeoutError as error:
                raise PlaceFailed(f"{self.place.name} took too long", status=504, billable=True) from error
            if event is not None:
                if self.reads_all:
                    self._read(event)
                yield event

    # -- the end ---------------------------------------------------------------------------------------

    @property
    def usd(self) -> float:
        """US dollars as far as they are known: before the end of the answer, what it is expected to cost."""
        if self.leg.finished is not None or self._journey is None or self._events is None:
            return self.leg.usd
        return self._paid(self._journey.cost())

    def _paid(self, usd: float) -> float:
        """What is paid of a bill: the same figure in headers, usage and tickets, at whatever time it is looked at."""
        bound = self._reservation.nano_usd / NANO
        return bound if self._reservation.id and usd > CREDIBLE * bound else usd

    async def close(self, error: str | None = None) -> None:
        """Stop, settle, and fill in the leg. Whoever waits may be cancelled; it goes on all the same."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._finish(error))
        await asyncio.shield(self._closing)

    async def finish(self, error: str | None = None) -> None:
        """Close it in a task that nobody cancels."""
        if self._closing is not None:
            await self._closing
        else:
            await self._finish(error)

    async def _finish(self, error: str | None) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        try:
            await self._stop()
        finally:
            if self._journey is not None:
                await self._journey.close(error)
                self._fill(self._journey)
            leg = self.leg
            leg.error = leg.error or error
            leg.finished = leg.finished or time.time()
            leg.outcome = leg.outcome or ("refused" if error else "abort")  # nobody took it
            await self._cashier.settle(self._reservation, leg.usd, self._used())

    def _used(self) -> Used | None:
        """What it took, for the bill; None where nobody was asked."""
        leg, journey = self.leg, self._journey
        if journey is None or not journey.ticket.attempts:
            return None
        is_free = journey.meter.usage is None and not self._billable
        usage = Usage(0, 0) if is_free else journey.charge.usage
        hidden = min(journey.charge.hidden_tokens, usage.cached_tokens)
        nano = round(leg.usd * NANO)
        return Used(self._ask.tenant, leg.model, self.place.route, usage, nano, hidden_tokens=hidden)

    async def _stop(self) -> None:
        if self._next is not None:
            self._next.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._next
        if self._events is not None:
            if self.complete and not self._exhausted:  # its end is near, and the connection is kept then
                with suppress(WeighbridgeError, TimeoutError):
                    async with asyncio.timeout(END_WITHIN):
                        while await anext(self._events, None) is not None:
                            pass
            await self._events.aclose()

    def _fill(self, journey: FleetJourney) -> None:
        """What the fleet settled, as the leg; what it decided belongs to the leg alone."""
        ticket, place, leg = journey.ticket, self.place, self.leg
        error = leg.error
        settled = ticket.as_leg()
        for name in _SETTLED:
            setattr(leg, name, getattr(settled, name))
        leg.error = settled.error or error
        leg.decisions, leg.scores, leg.score_unit = ticket.decisions, ticket.scores, ticket.score_unit
        leg.candidates = ticket.candidates
        self.prefix = ticket.prefix
        usage = journey.meter.usage
        leg.estimated = journey.charge.estimated or usage is None
        if usage is None and not self._billable:
            leg.prompt_tokens = leg.output_tokens = 0
            leg.usd = 0.0
        if (paid := self._paid(leg.usd)) != leg.usd:
            leg.decisions.append(
                f"it says that it costs {leg.usd:.6f} USD, which cannot be: {paid:.6f} are paid"
            )
            leg.usd, leg.estimated = paid, True
        if self.complete and usage is not None and journey.meter.complete and self._opened_at:
            now = place.gateway.clock()
            place.latency.observe(
                self._opened_at - self._started_at, now - self._opened_at, journey.charge.usage.output_tokens
            )

    def _failure(self, error: BaseException) -> PlaceFailed | None:
        """An error as a route understands it; None for what goes on as it is."""
        name, admitted = self.place.name, self._journey is not None
        is_edge = self.place.level is Level.EDGE
        text = wording("{}: {}", name, error)
        if isinstance(error, PlaceFailed):
            return error
        if isinstance(error, TimeoutError) and self.until < self._ends:
            return TooLate(f"{name}: no answer within its share of the deadline", billable=admitted)
        if isinstance(error, TimeoutError):
            return PlaceFailed(f"{name}: no answer in time", status=504, billable=admitted)
        if isinstance(error, Answered):
            return _answered(name, error.status, error.body, retry_after(error.headers, time.time()))
        if isinstance(error, RateLimited) and is_edge:
            return LimitReached(text, status=429, retry_after=error.retry_after)
        if isinstance(error, NeverFits) and is_edge:
            return DoesNotFit(text, status=400)
        if isinstance(error, DeadlineMissed):
            return TooLate(text, billable=admitted)
        if isinstance(error, Refused):
            late = error.status == 504 and admitted  # it was sent, and may have been worked on
            return PlaceFailed(text, status=error.status, retry_after=error.retry_after, billable=late)
        if isinstance(error, BadInput):
            return PlaceFailed(text, status=400, said={"code": error.code, "param": error.param})
        return None


def _answered(name: str, status: int, body: bytes, wait: float | None = None) -> PlaceFailed:
    """What a place's own error means for a route."""
    text, said = f"{name} answered {status}: {error_message(body)}", error_fields(body)
    if status == DeadlineMissed.status and said.get("code") == DeadlineMissed.code:
        return TooLate(text)
    words = text if status in REQUESTS_FAULT else Inside(text, f"{name} answered {status}")
    return PlaceFailed(words, status=status, retry_after=wait, said=said)


#: What a leg knows itself: where it was asked.
_OWN = frozenset({"model", "place", "placement", "purpose", "span_id"})
#: What it takes over from the ticket that the fleet settled.
_SETTLED = [each.name for each in fields(Leg) if each.name not in _OWN]


def _reason(error: BaseException) -> str | None:
    """What went wrong, for the ticket; None where nothing did but that nobody wants the answer any more."""
    return None if isinstance(error, asyncio.CancelledError) else words_of(error) or type(error).__name__


def _joined(events: list[Event]) -> Event:
    if len(events) == 1:
        return events[0]
    return Event(b"".join([event.raw for event in events]), events[0].parse, events[-1].last)
