"""Learning from traffic: a sampled share is also answered by the other side, and the two answers are compared.

In the background, bounded in number, paid out of the same budgets, and never for requests that must not leave.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from weighbridge.errors import Refused
from weighbridge.routes.answer import Gathered
from weighbridge.routes.attempt import WHOLE, Attempt
from weighbridge.routes.budget import FREE_OF_CHARGE, Reservation
from weighbridge.routes.difficulty.features import prompt_features
from weighbridge.routes.judge import agreement
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.policy import Asked, Level, Residency, residency
from weighbridge.routes.request import RoutedRequest
from weighbridge.routes.settings import ShadowSettings
from weighbridge.routes.side import SideRequest
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Placement

if TYPE_CHECKING:
    from weighbridge.routes.router import HybridRouter

log = logging.getLogger("weighbridge.routes")

_QUESTION = (
    "Two assistants answered the same request. Say only SAME if answer B is as good as answer A, else WORSE.\n\n"
    "Request:\n{request}\n\nAnswer A:\n{cloud}\n\nAnswer B:\n{edge}"
)


def _costs(ticket: Ticket) -> dict[str, float]:
    """What each side costs for this request, in US dollars, without what failed attempts cost."""
    own, other = ticket.cost_usd, ticket.counterfactual_usd or 0.0
    edge, cloud = (own, other) if ticket.placement == Level.EDGE else (other, own)
    return {"edge_usd": edge, "cloud_usd": cloud}


class Shadow:
    """The router's observer. `draw`: uniform in [0, 1). Call `close` to end what still runs."""

    def __init__(
        self,
        settings: ShadowSettings,
        draw: Callable[[], float],
        path: Path | None = None,
        bandit: ThresholdBandit | None = None,
    ) -> None:
        self.router: HybridRouter | None = None
        self._settings = settings
        self._draw = draw
        self._bandit = bandit
        self._tasks: set[asyncio.Task[None]] = set()
        self._file: IO[str] | None = path.open("a", encoding="utf-8", buffering=1) if path else None

    def threshold(self, default: float) -> float:
        return default if self._bandit is None else self._bandit.choose()

    def finished(self, request: RoutedRequest, ticket: Ticket, answer: str) -> None:
        """Begin a comparison for a sampled share. Requests that were redacted, or may not leave, never are."""
        router = self.router
        if router is None or self._draw() >= self._settings.share or not answer:
            return
        policy = router.settings.policy
        asked = Asked(tenant=request.tenant, route=router.settings.name, labels=request.labels)
        verdict = residency(policy, asked).residency
        if policy.needs_scan or verdict is not Residency.FREE or request.placement is Placement.ONLY_EDGE:
            return
        if len(self._tasks) < self._settings.max_concurrent:
            task = asyncio.get_running_loop().create_task(self._compare(router, request, ticket, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _compare(
        self, router: HybridRouter, request: RoutedRequest, ticket: Ticket, answer: str
    ) -> None:
        try:
            other = Level.CLOUD if ticket.placement == Level.EDGE else Level.EDGE
            body = request.forwarded(edge=other is Level.EDGE)
            second = await self._ask(router, request, other, body)
            edge, cloud = (answer, second) if other is Level.CLOUD else (second, answer)
            quality = await self._judge(router, request, edge, cloud)
        except Refused as error:
            log.info("a shadow evaluation came to nothing: %s", error)
            return
        if self._bandit is not None and ticket.threshold is not None:
            shown = quality if ticket.placement == Level.EDGE else 1.0
            self._bandit.learn(ticket.threshold, shown, ticket.cost_usd)
        self._write(request, ticket, edge, cloud, quality)

    async def _ask(
        self, router: HybridRouter, request: RoutedRequest, where: Level, body: dict[str, Any]
    ) -> str:
        """One whole answer. The cloud's is reserved first. Raises Refused."""
        side = router.cloud if where is Level.CLOUD else router.edge
        reservation = FREE_OF_CHARGE
        if where is Level.CLOUD:
            reservation = self._reserve(router, request)
        side_request = SideRequest(body, request.size, tenant=request.tenant)
        attempt = Attempt(where, side, side_request, router.ledger, reservation)
        try:
            await attempt.start(WHOLE)
            gathered = Gathered()
            async for chunk in attempt.rest():
                gathered.add(chunk)
        finally:
            await attempt.close()
        return attempt.text

    @staticmethod
    def _reserve(router: HybridRouter, request: RoutedRequest) -> Reservation:
        """Money, and a place under the tenant's caps, as for any other request to the cloud. Raises Refused."""
        now = router.clock()
        usd = router.cloud_facts(request).usd
        reserved = router.caps.refusal(request.tenant, now) or router.ledger.reserve(
            request.tenant, router.settings.name, usd
        )
        if isinstance(reserved, str):
            raise Refused(reserved)
        router.caps.sent(request.tenant, now)
        return reserved

    async def _judge(self, router: HybridRouter, request: RoutedRequest, edge: str, cloud: str) -> float:
        if self._settings.judge == "agreement":
            return agreement(edge, cloud)
        text = _QUESTION.format(request=request.prompt, cloud=cloud, edge=edge)
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
        verdict = await self._ask(router, request, Level.CLOUD, body)
        return float("SAME" in verdict.upper())

    def _confidence_threshold(self) -> float | None:
        cascade = self.router.settings.cascade if self.router is not None else None
        return cascade.threshold if cascade is not None and cascade.enabled else None

    def _write(self, request: RoutedRequest, ticket: Ticket, edge: str, cloud: str, quality: float) -> None:
        if self._file is None:
            return
        row: dict[str, Any] = {
            "ticket": ticket.id,
            "route": ticket.model,
            "placement": str(ticket.placement),
            "score": ticket.score,
            "threshold": ticket.threshold,
            "confidence": ticket.confidence,
            "confidence_threshold": self._confidence_threshold(),
            "edge_quality": quality,
            "features": [round(value, 5) for value in prompt_features(request.prompt)],
            **_costs(ticket),
        }
        if self._settings.keep_texts:
            row |= {"prompt": request.prompt, "edge_response": edge, "cloud_response": cloud}
            row |= {"edge_correct": quality, "cloud_correct": 1.0}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
