"""One request on a route: decided, tried, judged, escalated or kept, until one place's answer is committed."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.errors import BadInput, Inside, Refused, some_of, wording, words_of
from weighbridge.routes.answer import BrokenOff, Shown, chunks_of, whole_answer
from weighbridge.routes.budget import FREE_OF_CHARGE, Reservation, wait_of
from weighbridge.routes.errors import CloudDenied, NoPlaceCan, PlaceFailed, PolicyForbids, TooLate
from weighbridge.routes.leg import FIRST_TOKEN, WHOLE, LegRun
from weighbridge.routes.place import Place
from weighbridge.routes.policy import (
    Asked,
    Grant,
    Level,
    PlaceFacts,
    Residency,
    RoutePlan,
    decide,
    residency,
    share_seconds,
)
from weighbridge.routes.privacy.guard import Inspection, Redacted
from weighbridge.routes.privacy.restoring.chunks import ChunkRestorer
from weighbridge.routes.privacy.walk import Unhidable
from weighbridge.routes.request import RouteRequest
from weighbridge.routes.route import Route
from weighbridge.routes.settings import Window
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask, Fields, Placement
from weighbridge.wire.body import LONG_BODY, apart
from weighbridge.wire.errors import as_api_error, error_event, error_message
from weighbridge.wire.events import Event
from weighbridge.wire.journey import HeaderList, Journey, WholeAnswer
from weighbridge.wire.protocols import chat, decisions

log = logging.getLogger("weighbridge.routes")

#: Pause before the cloud is asked again, in seconds, where it names none; and the longest that is waited for one that
#: does.
RETRY_PAUSE, LONGEST_PAUSE = 0.2, 2.0
#: Bytes of events that are made the client's on the event loop; more take a thread.
AT_ONCE = 16_384
#: Seconds that must be left for a place to be asked; the event loop's clock counts in no smaller ones.
SHORTEST_DEADLINE = 0.001


class RouteService:
    """Lets requests in to a route."""

    def __init__(self, route: Route) -> None:
        self.route = route

    async def admit(self, ask: Ask) -> Journey:
        """Raises BadInput for what no place could answer."""
        if ask.path == decisions.PATH:
            return await self._decide(ask)
        if ask.path != chat.PATH:
            message = f"{ask.model!r} is a route between models, and routes answer chats; use {chat.PATH}"
            raise BadInput(message, param="model")
        request = await apart(ask.size, RouteRequest.read, ask)
        gateway = self.route.gateway
        gateway.claim_id(ask)
        ticket = self.route.new_ticket(ask)
        if ask.trace is not None:
            ask.trace.holds(ticket)
        gateway.tickets.add(ticket)
        gateway.open_journeys += 1  # a drain waits for it, also between two places
        return RouteJourney(self.route, request, ticket)

    async def _decide(self, ask: Ask) -> Journey:
        """Decisions are made at the nearest place, whatever the rules: they cost a prefill, and nothing of them leaves.

        Raises PolicyForbids where that place is beyond the boundary, or where the client wants it to be.
        """
        nearest = next(iter(self.route.places.values()))
        if nearest.level is not Level.EDGE or ask.placement is Placement.ONLY_CLOUD:
            message = f"{ask.model!r}: decisions are made at the edge alone; name a model instead of a route"
            raise PolicyForbids(message)
        ask.route, ask.model = ask.model, nearest.model
        ask.off_disk = ask.off_disk or not self.route.settings.may_store
        journey = await self.route.gateway.run(ask, nearest.pool)
        journey.ticket.decisions.append(f"decisions stay at {nearest.name}, the nearest place")
        return journey

    @property
    def counted_as(self) -> str:
        """The model of its nearest place: a prompt that must not leave can be counted there."""
        return next(iter(self.route.places.values())).model

    def may_write(self, restricted: bool) -> bool:
        settings = self.route.settings
        free = settings.policy.default is Residency.FREE and not (settings.policy.rules or restricted)
        return settings.may_store or free

    def health(self) -> dict[str, bool]:
        return {name: place.healthy for name, place in self.route.places.items()}

    def told(self) -> dict[str, Any]:
        return self.route.told()

    async def close(self) -> None:
        await self.route.close()


@dataclass(frozen=True, slots=True)
class RouteOpened:
    """An answer is committed."""

    is_stream: bool
    status: int = 200


class RouteJourney:
    """Keeps what was decided and every leg that was begun, so that whatever happens all of them are closed."""

    def __init__(self, route: Route, request: RouteRequest, ticket: Ticket) -> None:
        self.ticket = ticket
        self._route = route
        self._request = request
        self._runs: list[LegRun] = []
        self._committed: LegRun | None = None
        self._redacted: Redacted | None = None
        self._must_redact = False
        self._fields: dict[str, Fields] = {}  # what would be sent to each place
        self._expected: dict[str, float | None] = {}  # seconds that each place's answer should take
        now = asyncio.get_running_loop().time()
        self._ends = now + route.settings.timeout
        self._deadline = min(self._ends, now + (request.deadline_seconds or math.inf))
        self._error: str | None = None
        self._is_whole = False  # the client has been given all there is
        self._closing: asyncio.Task[None] | None = None

    def note(self, text: str) -> None:
        self.ticket.decisions.append(text)

    # -- the journey as a door sees it -----------------------------------------------------------------

    async def open(self) -> RouteOpened:
        """Decide, and try until an answer is committed. Raises Refused where there is none."""
        try:
            plan = await self._decide()
            committed = await self._run(plan)
            await self._close_runs(keep=committed)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):  # else nobody waits for it any more
                self._error = words_of(error) or type(error).__name__
            raise
        self._committed = committed
        self.ticket.placement = committed.place.level.value
        self.ticket.replica = f"{committed.place.name}:{committed.place.settings.shown_model}"
        return RouteOpened(self._request.ask.stream)

    def headers(self) -> HeaderList:
        """What a stream costs is known at its end only: here it is expected."""
        ticket = self.ticket
        return [
            (b"x-weighbridge-ticket", ticket.id.encode()),
            (b"x-weighbridge-replica", ticket.replica.encode("latin-1", "replace")),
            (b"x-weighbridge-placement", ticket.placement.encode()),
            (b"x-weighbridge-degraded", b"true" if ticket.degraded else b"false"),
            (b"x-weighbridge-cost", f"{self._usd:.9f}".encode()),
        ]

    async def stream(self) -> AsyncIterator[Event]:
        run, parse = self._begun(), chat.chat_parts
        usage = self._usage_note if self._request.ask.wants_usage else None
        shown = Shown(
            self.ticket.model, keep_logprobs=not run.asked_logprobs, usage=usage, restore=self._restorer(run)
        )
        try:
            async for event in run.rest():
                if self.ticket.first_token is None:
                    self.ticket.first_token = time.time()
                if len(event.raw) <= AT_ONCE:
                    body = shown.events(event.raw)
                else:
                    body = await asyncio.to_thread(shown.events, event.raw)
                if run.complete:
                    self._is_whole = True
                    yield Event(body + shown.rest(), parse, last=True)
                elif body:
                    yield Event(body, parse)
        except (PlaceFailed, BrokenOff) as error:
            if not self._is_whole:
                failure = self._broken(run, error)
                yield Event(error_event(as_api_error(failure)), parse, last=True)
            return
        if not self._is_whole:
            self._is_whole = True
            yield Event(shown.rest(), parse, last=True)

    async def whole(self) -> WholeAnswer:
        run, restore = self._begun(), self._restorer(self._begun())
        events = run.held()
        size = len(events) if restore is None else LONG_BODY  # looking for values is long work
        body = await apart(size, self._merged, events, restore, not run.asked_logprobs)
        self._is_whole = True
        return WholeAnswer(body, chat.chat_answer_parts)

    def _merged(self, events: bytes, restore: ChunkRestorer | None, keep_logprobs: bool) -> bytes:
        """A stream's events as an answer in one piece, with redacted values put back."""
        chunks = chunks_of(events, keep_logprobs=keep_logprobs)
        if restore is not None:
            chunks = restore.whole(chunks)
        return msgspec.json.encode(whole_answer(chunks, self.ticket.model, keep_logprobs=keep_logprobs))

    async def close(self, error: str | None = None) -> bool:
        """Cancel what still runs, settle, and write the ticket; whoever waits may be cancelled meanwhile."""
        is_first = self._closing is None
        if self._closing is None:
            self._error = self._error or error
            self._closing = asyncio.get_running_loop().create_task(self._finish())
        await asyncio.shield(self._closing)
        return is_first

    # -- deciding --------------------------------------------------------------------------------------

    async def _decide(self) -> RoutePlan:
        route, request, ask = self._route, self._request, self._request.ask
        policy = route.settings.policy
        route.caps.arrived(ask.tenant, route.clock())
        inspection = await self._inspect()
        asked = Asked(
            tenant=ask.tenant,
            route=route.name,
            labels=ask.labels,
            placement=ask.placement,
            max_usd=ask.max_usd,
            deadline_seconds=request.deadline_seconds,
            found=inspection.found,
            unreadable=inspection.unreadable,
            needs=request.needs,
            held=request.held,
        )
        verdict = residency(policy, asked)
        if verdict.residency is Residency.REDACT:
            asked = await self._redact(inspection, asked)
            verdict = residency(policy, asked)
        facts = [await self._facts(place, may_leave=verdict.may_leave) for place in route.places.values()]
        score = threshold = None
        if verdict.may_leave and ask.placement is Placement.AUTO:
            (score, said), threshold = await route.score(request), route.threshold()
            if said:
                self.note(said)
        taken_out = self._redacted is not None and bool(self._redacted.vault.values)
        if (not verdict.may_leave or taken_out) and not route.settings.may_store:
            ask.off_disk = True
        self.ticket.rule, self.ticket.score, self.ticket.threshold = verdict.rule, score, threshold
        plan = decide(verdict, asked, facts, score, 1.0 if threshold is None else threshold)
        self.ticket.decisions.extend(plan.reasons)
        self.ticket.degraded = plan.degraded
        self._must_redact = plan.redact
        return plan

    async def _redact(self, inspection: Inspection, asked: Asked) -> Asked:
        """Take out what was found; where that cannot be, `asked` says why."""
        try:
            body = self._request.forwarded(Level.CLOUD)
            self._redacted = await self._route.guard.redact(inspection, body, self._request.sent_bytes)
        except Unhidable as error:
            return replace(asked, unhidable=str(error))
        return asked if self._redacted is not None else replace(asked, found=None)

    async def _inspect(self) -> Inspection:
        """Look only where a rule depends on it; `only_edge` never leaves whatever is found."""
        route, request = self._route, self._request
        if not route.settings.policy.needs_scan or request.ask.placement is Placement.ONLY_EDGE:
            return Inspection.nothing()
        return await route.guard.inspect(request.forwarded(Level.CLOUD), request.sent_bytes)

    async def _facts(self, place: Place, *, may_leave: bool) -> PlaceFacts:
        if place.level is Level.CLOUD and not may_leave:
            return PlaceFacts(place.name, place.level)  # nothing of it matters: it is barred
        ask = self._request.ask
        fields = self._fields[place.name] = self._sent_to(place)
        facts = await place.facts(self._request, fields)
        self._expected[place.name] = facts.seconds
        if place.level is Level.EDGE:
            self.ticket.prompt_tokens = self.ticket.prompt_tokens or facts.tokens - (ask.max_tokens or 1)
            return facts
        reason = self._route.refusal(ask.tenant, facts.usd)
        return replace(facts, grant=Grant(not reason, reason, wait_of(reason)))

    def _sent_to(self, place: Place) -> Fields:
        """The fields that go to a place: beyond the boundary redacted, where the verdict wants it, and in any case only
        what was looked at: of a field that is written twice, detectors see one."""
        if place.level is Level.EDGE or not self._route.settings.policy.needs_scan:
            return self._request.fields(place.level)
        return _raw(
            self._redacted.body if self._redacted is not None else self._request.forwarded(place.level)
        )

    # -- trying ----------------------------------------------------------------------------------------

    async def _run(self, plan: RoutePlan) -> LegRun:
        """Try the places of the plan in their order, until one has an answer that is good enough."""
        places = [self._route.places[name] for name in plan.order]
        cascade = self._route.settings.cascade
        draft: LegRun | None = None
        for index, place in enumerate(places):
            following = places[index + 1 :]
            judged = plan.escalate and cascade.enabled and place.level is Level.EDGE and len(following) > 0
            if judged and cascade.race and draft is None:
                return await self._race(place, following[0])
            try:
                run = await self._begin(place, self._until(place, following), judged=judged)
            except Refused as error:
                if draft is None and (_at_fault(error) or not following):
                    raise self._unanswered(error, plan, places) from error
                if not following:
                    self.note(wording("{}; the local answer stands", error))
                    self.ticket.degraded = True
                    break
                self.note(wording("{}; the {} answers instead", error, following[0].name))
                if place.level is Level.CLOUD and following[0].level is Level.EDGE:
                    self.ticket.degraded = True
                continue
            if not judged or await self._is_good_enough(run):
                return run
            draft = run
        assert draft is not None, "a plan has at least one place"
        return draft

    def _unanswered(self, error: Refused, plan: RoutePlan, places: Sequence[Place]) -> Refused:
        """What the client is told when the last place failed, or no place can help."""
        stays = all(place.level is Level.EDGE for place in places)
        if not stays or _at_fault(error) or isinstance(error, TooLate) or not isinstance(error, PlaceFailed):
            return error
        message = wording("{}; policy permits no other side ({})", error, plan.rule)
        return NoPlaceCan(message, retry_after=error.retry_after)

    async def _race(self, near: Place, far: Place) -> LegRun:
        """Both at once: the local answer if it is judged good, or the other's if that is there first."""
        self.note(f"race: {near.name} and {far.name} start together")
        until = self._until(near, ())
        local_task = asyncio.ensure_future(self._begin(near, until, judged=True))
        other_task = asyncio.ensure_future(self._begin(far, until, judged=False))
        try:
            await asyncio.wait((local_task, other_task), return_when=asyncio.FIRST_COMPLETED)
            if other_task.done() and not other_task.exception() and not local_task.done():
                return self._win(other_task.result(), f"the {far.name} was first")
            local = await _or_none(local_task)
            if local is not None and await self._is_good_enough(local):
                return self._win(local, "the local answer is good enough")
            remote = await _or_none(other_task)
            if remote is not None:
                return self._win(remote, "the local answer is not good enough")
            if local is None:
                raise _neither(local_task.exception(), other_task.exception())
            self.ticket.degraded = True
            return self._win(local, f"the {far.name} failed; the local answer stands")
        finally:
            for task in (local_task, other_task):
                task.cancel()
                with suppress(asyncio.CancelledError, Refused):
                    await task

    def _win(self, winner: LegRun, why: str) -> LegRun:
        self.note(f"race: {why}")
        return winner

    def _until(self, place: Place, following: Sequence[Place]) -> float:
        """When a place must have answered, so that the deadline leaves those who follow their share."""
        if self._request.deadline_seconds is None:
            return math.inf
        now = asyncio.get_running_loop().time()
        others = [self._expected.get(other.name) for other in following]
        return now + share_seconds(self._deadline - now, self._expected.get(place.name), others)

    async def _begin(self, place: Place, until: float, *, judged: bool) -> LegRun:
        """Ask a place for its answer, beyond the boundary more than once where that may help.

        Raises CloudDenied or PlaceFailed.
        """
        if until - asyncio.get_running_loop().time() < SHORTEST_DEADLINE:
            raise TooLate(f"{place.name}: the deadline has passed before it was asked")
        cascade, stream = self._route.settings.cascade, self._request.ask.stream
        window = (cascade.window if judged else FIRST_TOKEN) if stream else WHOLE
        if place.level is Level.EDGE:
            return await self._ask(place, window, FREE_OF_CHARGE, until, judged=judged)
        attempts = self._route.settings.cloud_attempts
        for number in range(1, attempts + 1):
            reservation = await self._reserve(place)
            try:
                return await self._ask(place, window, reservation, until)
            except PlaceFailed as error:
                self.note(words_of(error))
                pause = error.retry_after or RETRY_PAUSE * number
                late = asyncio.get_running_loop().time() + pause > min(until, self._ends)
                if number == attempts or error.is_request_at_fault or late or pause > LONGEST_PAUSE:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _reserve(self, place: Place) -> Reservation:
        route, request = self._route, self._request
        tenant = request.ask.tenant
        refusal = route.caps.refusal(tenant, route.clock())
        usd = place.max_usd(request)
        reservation = refusal or await route.cashier.reserve(tenant, route.name, usd)
        if isinstance(reservation, str):
            raise CloudDenied(f"{place.name}: {reservation}", retry_after=wait_of(reservation))
        route.caps.sent(tenant, route.clock())
        return reservation

    async def _ask(
        self, place: Place, window: Window, reservation: Reservation, until: float, *, judged: bool = False
    ) -> LegRun:
        fields = dict(self._fields[place.name])
        extra: dict[str, Any] = {}
        if judged and self._request.ask.choices == 1:
            body, cascade = self._request.body, self._route.settings.cascade
            wanted = body.get("top_logprobs") or 0
            if type(wanted) is int:  # else whoever answers refuses it
                extra = {"logprobs": True, "top_logprobs": max(cascade.top_logprobs, wanted)}
        run = self._new_run(place, {**fields, **_raw(extra)}, reservation, until)
        run.asked_logprobs = bool(extra) and not self._request.body.get("logprobs")
        if place.level is Level.CLOUD:
            if self._must_redact and self._redacted is None:
                raise PolicyForbids("this request may only leave redacted, and it is not")
            what = self._redacted.summary if self._redacted is not None else "nothing redacted"
            self.ticket.left_machine.append(
                f"{place.settings.shown_model}: {self._request.size} bytes of text, {what}"
            )
        await run.start(window)
        return run

    def _new_run(
        self, place: Place, fields: Fields, reservation: Reservation, until: float, purpose: str = "answer"
    ) -> LegRun:
        deadline = None
        if self._request.deadline_seconds is not None:
            left = self._deadline - asyncio.get_running_loop().time()
            deadline = place.gateway.clock() + max(left, SHORTEST_DEADLINE)
        ask = place.ask(self._request, fields, deadline)
        run = LegRun(
            place, ask, self._route.cashier, reservation, ends=self._ends, until=until, purpose=purpose
        )
        run.reads_all = self._route.observer is not None
        if (trace := self._request.ask.trace) is not None:
            ask.trace = trace.part()
            run.leg.span_id = ask.trace.span.span_id
        self._runs.append(run)
        self.ticket.legs.append(run.leg)
        return run

    # -- judging ---------------------------------------------------------------------------------------

    async def _is_good_enough(self, run: LegRun) -> bool:
        """Judge what was held back of the local answer, and write down how it came out."""
        threshold = self._route.settings.cascade.threshold
        prompt, body, draft = self._request.prompt, self._request.body, run.draft()
        judged = self._route.judge(prompt, body, draft)
        if judged.confidence > 0.0 and (samples := await self._samples(run)):
            judged = self._route.judge(prompt, body, draft, samples)
        self.ticket.confidence = judged.confidence
        sign = ">=" if judged.confidence >= threshold else "<"
        self.note(f"confidence {judged.confidence:.3f} {sign} {threshold:.3f} ({judged.reason})")
        return judged.confidence >= threshold

    async def _samples(self, run: LegRun) -> list[str]:
        """Further local answers to the same question, drawn at once; those that fail are left out."""
        cascade = self._route.settings.cascade
        if cascade.samples < 2 or not (run.complete and run.text) or self._request.ask.choices > 1:
            return []
        drawn = [
            self._new_run(run.place, self._sampling(number), FREE_OF_CHARGE, run.until, "sample")
            for number in range(1, cascade.samples)
        ]
        ended = await asyncio.gather(*(each.start(WHOLE) for each in drawn), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, Refused):
                raise error
        return [each.text for each, error in zip(drawn, ended, strict=True) if error is None]

    def _sampling(self, number: int) -> Fields:
        """The body of one further sample: its own draw, in earnest even where the client asked for the likeliest."""
        body = self._request.body
        seed = (int(_number(body.get("seed"), 0.0)) + number) % 2**31
        lowest = self._route.settings.cascade.sample_temperature
        temperature = max(_number(body.get("temperature"), 1.0), lowest)
        fields = self._request.fields(Level.EDGE) | _raw({"temperature": temperature, "seed": seed})
        return {name: raw for name, raw in fields.items() if name not in ("logprobs", "top_logprobs")}

    # -- the answer and its end ------------------------------------------------------------------------

    def _begun(self) -> LegRun:
        assert self._committed is not None, "open() comes first"
        return self._committed

    def _restorer(self, run: LegRun) -> ChunkRestorer | None:
        is_cloud = run.place.level is Level.CLOUD
        return self._redacted.restorer() if is_cloud and self._redacted is not None else None

    @property
    def _usd(self) -> float:
        """What all legs have cost, as far as it is known."""
        return round(sum(run.usd for run in self._runs), 9)

    def _usage_note(self) -> dict[str, Any]:
        return {"ticket": self.ticket.id, "cost_usd": self._usd}

    def _broken(self, run: LegRun, error: PlaceFailed | BrokenOff) -> PlaceFailed:
        """A leg broke off when its bytes were on their way to the client."""
        if isinstance(error, BrokenOff):
            name, data = run.place.name, error.data
            words = Inside(f"{name} failed: {error_message(data)}", f"{name} failed")
            error = PlaceFailed(words, billable=True)
        self._error = words_of(error)
        self.note(wording("{}; bytes are out, so nobody else may continue", error))
        return error

    async def _close_runs(self, keep: LegRun | None = None) -> None:
        for run in self._runs:
            if run is not keep:
                await run.close()

    async def _finish(self) -> None:
        try:
            for run in self._runs:
                try:
                    await run.finish(self._error if run is self._committed else None)
                except Exception:
                    log.exception("closing a leg of %s failed", self.ticket.id)
        finally:
            self._fill_ticket()
            ended = self._committed if self._is_whole and self._error is None else None
            self._route.finished(self._request, self.ticket, ended.text if ended is not None else None)

    def _fill_ticket(self) -> None:
        """Add up what all legs took, and what another place would have cost."""
        ticket, legs = self.ticket, self.ticket.legs
        ticket.finished = time.time()
        ticket.error = self._error
        ticket.cost_usd = round(sum(leg.usd for leg in legs), 9)
        ticket.cost_estimated = any(leg.estimated and leg.usd > 0 for leg in legs)
        ticket.finish_reason = "error" if self._error else "abort"
        committed = self._committed
        if committed is None:
            if legs:  # left before an answer was chosen: the last one that was begun
                ticket.output_tokens, ticket.cached_tokens = legs[-1].output_tokens, legs[-1].cached_tokens
                ticket.weighed_tokens = legs[-1].weighed_tokens
            return
        leg = committed.leg
        if not self._error and self._is_whole:
            ticket.finish_reason = leg.outcome if leg.outcome not in (None, "abort", "error") else "stop"
        ticket.prompt_tokens = leg.prompt_tokens or ticket.prompt_tokens
        ticket.output_tokens, ticket.cached_tokens = leg.output_tokens, leg.cached_tokens
        ticket.scheduled, ticket.weighed_tokens = leg.scheduled, leg.weighed_tokens
        ticket.attempts = sum(leg.tries for leg in legs)
        ticket.prefix = committed.prefix
        other = self._route.other(committed.place)
        if other is not None:
            ticket.counterfactual_usd = other.price.usd(Usage(leg.prompt_tokens, leg.output_tokens))


def _number(value: Any, default: float) -> float:
    """A number of a body that nobody has checked, for whoever answers may take others than we do."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _raw(fields: dict[str, Any]) -> Fields:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}


def _at_fault(error: Refused) -> bool:
    return isinstance(error, PlaceFailed) and error.is_request_at_fault


def _neither(*errors: BaseException | None) -> Refused:
    """What the client is told when both sides of a race failed."""
    said = [error for error in errors if isinstance(error, Refused)]
    words = wording("both sides failed: {}", some_of([words_of(error) for error in said], len(said), "; "))
    if said and all(isinstance(error, TooLate) for error in said):
        return TooLate(words)
    rests = [error.retry_after for error in said if error.retry_after is not None]
    return NoPlaceCan(words, retry_after=min(rests, default=None))


async def _or_none(task: Awaitable[LegRun]) -> LegRun | None:
    try:
        return await task
    except Refused:
        return None
