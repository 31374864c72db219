"""One request on its way: decided, tried, judged, escalated or kept, until one side's answer is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from weighbridge.errors import Refused
from weighbridge.routes.attempt import FIRST_TOKEN, WHOLE, Attempt, Window
from weighbridge.routes.budget import FREE_OF_CHARGE, Reservation
from weighbridge.routes.errors import CloudDenied, NoSideCan, SideFailed
from weighbridge.routes.policy import Asked, Grant, Level, Residency, RoutePlan, decide, residency
from weighbridge.routes.privacy.guard import Inspection, Redacted
from weighbridge.routes.request import RoutedRequest
from weighbridge.routes.side import SideRequest
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Placement

if TYPE_CHECKING:
    from weighbridge.routes.router import HybridRouter

#: Pause before the cloud is asked again, in seconds, where it names none; and the longest that is waited.
RETRY_PAUSE, LONGEST_PAUSE = 0.2, 2.0


class Journey:
    """Keeps what was decided and every attempt made, so that whatever happens all of them are closed."""

    def __init__(self, router: HybridRouter, request: RoutedRequest, ticket: Ticket) -> None:
        self.router = router
        self.request = request
        self.ticket = ticket
        self.attempts: list[Attempt] = []
        self.redacted: Redacted | None = None
        self.plan: RoutePlan | None = None
        self._deadline = router.clock() + (request.deadline_seconds or router.settings.timeout)
        self._timeout_at = router.clock() + router.settings.timeout

    async def commit(self) -> Attempt:
        """The attempt whose answer the client gets. Raises Refused where there is none; all is closed then."""
        try:
            self.plan = plan = await self._decide()
            begin = self._cloud_first if plan.order[0] == Level.CLOUD else self._edge_first
            committed = await begin(plan)
            await self.close(keep=committed)
            return committed
        except BaseException:
            await self.close()
            raise

    async def close(self, keep: Attempt | None = None) -> None:
        """End all attempts but `keep`."""
        for attempt in self.attempts:
            if attempt is not keep:
                await attempt.close()

    def note(self, text: str) -> None:
        self.ticket.decisions.append(text)

    # -- deciding --------------------------------------------------------------------------------------

    async def _decide(self) -> RoutePlan:
        router, request = self.router, self.request
        router.caps.arrived(request.tenant, router.clock())
        inspection = await self._inspect()
        asked = Asked(
            tenant=request.tenant,
            route=router.settings.name,
            labels=request.labels,
            placement=request.placement,
            max_usd=request.max_usd,
            deadline_seconds=request.deadline_seconds,
            found=inspection.found,
            unreadable=inspection.unreadable,
            needs=request.needs(),
        )
        verdict = residency(router.settings.policy, asked)
        if verdict.residency is Residency.REDACT:
            self.redacted = inspection.redact(request.forwarded(edge=False))
            if self.redacted is None:
                asked = replace(asked, found=None)
                verdict = residency(router.settings.policy, asked)
        edge, cloud = router.edge_facts(request), router.cloud_facts(request)
        score = threshold = None
        if verdict.may_leave and request.placement is Placement.AUTO:
            (score, said), threshold = await router.score(request), router.threshold()
            if said:
                self.note(said)
        if verdict.may_leave:
            reason = router.refusal(request, cloud.usd)
            cloud = replace(cloud, grant=Grant(not reason, reason))
        self.ticket.rule, self.ticket.score, self.ticket.threshold = verdict.rule, score, threshold
        plan = decide(verdict, asked, (edge, cloud), score, 1.0 if threshold is None else threshold)
        self.ticket.decisions.extend(plan.reasons)
        self.ticket.degraded = plan.degraded
        return plan

    async def _inspect(self) -> Inspection:
        """Look only where a rule depends on it; `only_edge` never leaves whatever is found."""
        router = self.router
        if not router.settings.policy.needs_scan or self.request.placement is Placement.ONLY_EDGE:
            return Inspection.nothing()
        return await router.guard.inspect(self.request.forwarded(edge=False))

    # -- trying ----------------------------------------------------------------------------------------

    async def _cloud_first(self, plan: RoutePlan) -> Attempt:
        try:
            attempt = await self._cloud()
        except Refused as error:
            if len(plan.order) == 1 or _at_fault(error):
                raise
            self.note(f"{error}; the edge answers instead")
            self.ticket.degraded = True
            return await self._edge(FIRST_TOKEN if self.request.stream else WHOLE)
        return attempt

    async def _edge_first(self, plan: RoutePlan) -> Attempt:
        router = self.router
        judged = plan.escalate and router.settings.cascade.enabled
        window = (router.settings.cascade.window if judged else FIRST_TOKEN) if self.request.stream else WHOLE
        if judged and router.settings.cascade.race:
            return await self._race(window)
        try:
            edge = await self._edge(window)
        except SideFailed as error:
            if _at_fault(error):
                raise
            if len(plan.order) == 1:
                message = f"{error}; policy permits no other side ({plan.rule})"
                raise NoSideCan(message, retry_after=error.retry_after) from error
            self.note(f"{error}; the cloud answers instead")
            return await self._cloud()
        if not judged or await self._good_enough(edge):
            return edge
        try:
            cloud = await self._cloud()
        except Refused as error:
            self.note(f"{error}; the local answer stands")
            self.ticket.degraded = True
            return edge
        return cloud

    async def _race(self, window: Window) -> Attempt:
        """Both at once: the local answer if it is judged good, or the cloud's if that is there first."""
        self.note("race: edge and cloud start together")
        edge = asyncio.ensure_future(self._edge(window))
        cloud = asyncio.ensure_future(self._cloud())
        try:
            await asyncio.wait((edge, cloud), return_when=asyncio.FIRST_COMPLETED)
            if cloud.done() and not cloud.exception() and not edge.done():
                return self._win(cloud.result(), "the cloud was first")
            local = await _or_none(edge)
            if local is not None and await self._good_enough(local):
                return self._win(local, "the local answer is good enough")
            remote = await _or_none(cloud)
            if remote is not None:
                return self._win(remote, "the local answer is not good enough")
            if local is None:
                raise NoSideCan("both sides failed: " + "; ".join(self.ticket.decisions[-2:]))
            self.ticket.degraded = True
            return self._win(local, "the cloud failed; the local answer stands")
        finally:
            for task in (edge, cloud):
                task.cancel()
                with suppress(asyncio.CancelledError, Refused):
                    await task

    def _win(self, winner: Attempt, why: str) -> Attempt:
        self.note(f"race: {why}")
        return winner

    async def _edge(self, window: Window) -> Attempt:
        router, request = self.router, self.request
        body = request.forwarded(edge=True)
        if router.settings.cascade.enabled and request.choices == 1:
            wanted = max(router.settings.cascade.top_logprobs, request.body.get("top_logprobs") or 0)
            body |= {"logprobs": True, "top_logprobs": wanted}
        attempt = self._edge_attempt(body)
        await attempt.start(window)
        return attempt

    def _edge_attempt(self, body: Mapping[str, Any]) -> Attempt:
        router, tenant = self.router, self.request.tenant
        headers = {"x-weighbridge-tenant": tenant} if tenant.isprintable() else {}
        attempt = Attempt(
            Level.EDGE, router.edge, self._to_side(body, headers), router.ledger, FREE_OF_CHARGE
        )
        self.attempts.append(attempt)
        return attempt

    async def _cloud(self) -> Attempt:
        """Ask the cloud, more than once where that may help. Raises CloudDenied or SideFailed."""
        for number in range(1, self.router.settings.cloud_attempts + 1):
            reservation = self._reserve()
            try:
                return await self._cloud_once(reservation)
            except SideFailed as error:
                self.note(str(error))
                pause = min(error.retry_after or RETRY_PAUSE * number, LONGEST_PAUSE)
                last = number == self.router.settings.cloud_attempts
                if last or error.is_request_at_fault or self.router.clock() + pause > self._deadline:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _cloud_once(self, reservation: Reservation) -> Attempt:
        request, redacted = self.request, self.redacted
        body = redacted.body if redacted is not None else request.forwarded(edge=False)
        side_request = self._to_side(body, {})
        attempt = Attempt(Level.CLOUD, self.router.cloud, side_request, self.router.ledger, reservation)
        self.attempts.append(attempt)
        what = redacted.summary if redacted is not None else "nothing redacted"
        self.ticket.left_machine.append(f"{self.router.cloud.model}: {request.size} bytes of text, {what}")
        await attempt.start(FIRST_TOKEN if request.stream else WHOLE)
        return attempt

    def _reserve(self) -> Reservation:
        router, request = self.router, self.request
        refusal = router.caps.refusal(request.tenant, router.clock())
        reservation = refusal or router.ledger.reserve(
            request.tenant, router.settings.name, router.cloud_facts(request).usd
        )
        if isinstance(reservation, str):
            raise CloudDenied(f"cloud: {reservation}")
        router.caps.sent(request.tenant, router.clock())
        return reservation

    def _to_side(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> SideRequest:
        request, now = self.request, self.router.clock()
        deadline = max(self._deadline - now, 0.001) if request.deadline_seconds else None
        left = max(self._timeout_at - now, 0.001)
        return SideRequest(body, request.size, headers, left, request.tenant, request.priority, deadline)

    # -- judging ---------------------------------------------------------------------------------------

    async def _good_enough(self, edge: Attempt) -> bool:
        """Judge what was held back of the local answer, and write down how it came out."""
        threshold = self.router.settings.cascade.threshold
        prompt, body, draft = self.request.prompt, self.request.body, edge.draft()
        judged = self.router.judge(prompt, body, draft)
        if judged.confidence > 0.0 and (samples := await self._samples(edge)):
            judged = self.router.judge(prompt, body, draft, samples)
        self.ticket.confidence = judged.confidence
        sign = ">=" if judged.confidence >= threshold else "<"
        self.note(f"confidence {judged.confidence:.3f} {sign} {threshold:.3f} ({judged.reason})")
        return judged.confidence >= threshold

    async def _samples(self, edge: Attempt) -> list[str]:
        """Further local answers to the same question, drawn at once; those that fail are left out."""
        cascade = self.router.settings.cascade
        if cascade.samples < 2 or not (edge.complete and edge.text) or self.request.choices > 1:
            return []
        drawn = [self._edge_attempt(self._sampling(number)) for number in range(1, cascade.samples)]
        ended = await asyncio.gather(*(one.start(WHOLE) for one in drawn), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, Refused):
                raise error
        return [one.text for one, error in zip(drawn, ended, strict=True) if error is None]

    def _sampling(self, number: int) -> dict[str, Any]:
        """The body of one further sample: its own draw, in earnest even where the client asked for the likeliest."""
        body = self.request.forwarded(edge=True)
        seed = (int(body.get("seed") or 0) + number) % 2**31
        least = self.router.settings.cascade.sample_temperature
        temperature = max(float(body.get("temperature", 1.0)), least)
        body |= {"temperature": temperature, "seed": seed}
        return {name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs")}


def _at_fault(error: Refused) -> bool:
    return isinstance(error, SideFailed) and error.is_request_at_fault


async def _or_none(task: Awaitable[Attempt]) -> Attempt | None:
    try:
        return await task
    except Refused:
        return None
