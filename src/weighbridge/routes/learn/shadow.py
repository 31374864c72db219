"""Learning from traffic: a sampled share is also answered by the other side, and the two answers are compared.

In the background, bounded in number, paid out of the same budgets, and never for requests that must not leave.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from weighbridge.errors import Refused
from weighbridge.routes.difficulty.features import prompt_features
from weighbridge.routes.judge import agreement
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.policy import Asked, Level, Residency, residency
from weighbridge.routes.request import RouteRequest
from weighbridge.routes.settings import RouteSettings, ShadowSettings
from weighbridge.state.lines import LineFile
from weighbridge.state.schema import DocumentSchema, unchanged
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Placement

log = logging.getLogger("weighbridge.routes")


#: A comparison as a line of a file.
SHADOW = DocumentSchema("shadow evaluation", (unchanged,))


class SecondAnswers(Protocol):
    """What is needed of a route: its settings, and answers from either side of the boundary."""

    @property
    def settings(self) -> RouteSettings: ...
    async def second_answer(self, request: RouteRequest, level: Level) -> str:
        """The text of a whole answer. Raises Refused."""
        ...


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
    """The observer of a route. `draw`: uniform in [0, 1). Call `close` to end what still runs."""

    def __init__(
        self,
        settings: ShadowSettings,
        draw: Callable[[], float],
        path: Path | None = None,
        bandit: ThresholdBandit | None = None,
    ) -> None:
        self.route: SecondAnswers | None = None
        self._settings = settings
        self._draw = draw
        self._bandit = bandit
        self._tasks: set[asyncio.Task[None]] = set()
        self._file = LineFile(path, SHADOW) if path is not None else None

    def threshold(self, default: float) -> float:
        return default if self._bandit is None else self._bandit.choose()

    def finished(self, request: RouteRequest, ticket: Ticket, answer: str) -> None:
        """Begin a comparison for a sampled share. Requests that were redacted, or may not leave, never are."""
        route, ask = self.route, request.ask
        if route is None or self._draw() >= self._settings.share or not answer:
            return
        policy = route.settings.policy
        asked = Asked(tenant=ask.tenant, route=route.settings.name, labels=ask.labels)
        verdict = residency(policy, asked).residency
        if policy.needs_scan or verdict is not Residency.FREE or ask.placement is Placement.ONLY_EDGE:
            return
        if len(self._tasks) < self._settings.max_concurrent:
            task = asyncio.get_running_loop().create_task(self._compare(route, request, ticket, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._file is not None:
            await asyncio.to_thread(self._file.close)

    async def _compare(
        self, route: SecondAnswers, request: RouteRequest, ticket: Ticket, answer: str
    ) -> None:
        other = Level.CLOUD if ticket.placement == Level.EDGE else Level.EDGE
        try:
            second = await route.second_answer(request, other)
            edge, cloud = (answer, second) if other is Level.CLOUD else (second, answer)
            quality = await self._judge(route, request, edge, cloud)
        except Refused as error:
            log.info("a shadow evaluation came to nothing: %s", error)
            return
        if self._bandit is not None and ticket.threshold is not None:
            shown = quality if ticket.placement == Level.EDGE else 1.0
            self._bandit.learn(ticket.threshold, shown, ticket.cost_usd)
        self._write(request, ticket, edge, cloud, quality)

    async def _judge(self, route: SecondAnswers, request: RouteRequest, edge: str, cloud: str) -> float:
        if self._settings.judge == "agreement":
            return agreement(edge, cloud)
        text = _QUESTION.format(request=request.prompt, cloud=cloud, edge=edge)
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
        fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
        question = replace(request.ask, fields=fields, max_tokens=4, choices=1)
        verdict = await route.second_answer(RouteRequest(question), Level.CLOUD)
        return float("SAME" in verdict.upper())

    def _confidence_threshold(self) -> float | None:
        cascade = self.route.settings.cascade if self.route is not None else None
        return cascade.threshold if cascade is not None and cascade.enabled else None

    def _write(self, request: RouteRequest, ticket: Ticket, edge: str, cloud: str, quality: float) -> None:
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
        self._file.append(row)
