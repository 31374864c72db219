"""Routers over stubs, and requests to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.price import Price
from weighbridge.routes.answer import Gathered
from weighbridge.routes.budget import Budgets, Ledger
from weighbridge.routes.caps import Caps
from weighbridge.routes.http_side import HttpSide
from weighbridge.routes.judge import AnswerJudge
from weighbridge.routes.policy import Policy
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.hits import Detector
from weighbridge.routes.privacy.patterns import PatternDetector
from weighbridge.routes.request import RoutedRequest, parse_request
from weighbridge.routes.router import HybridRouter
from weighbridge.routes.settings import CascadeSettings, RouteSettings
from weighbridge.routes.side import SideSettings
from weighbridge.ticket import TicketStore

PRICE = Price(2.5, 10.0)


def make_router(
    urls: Sequence[str],
    *,
    policy: Policy | None = None,
    cascade: CascadeSettings | None = None,
    budgets: Budgets | None = None,
    detectors: Sequence[Detector] = (PatternDetector(),),
    timeout: float = 5.0,
    ledger: Ledger | None = None,
    scorer: Any = None,
    readers: Any = None,
    observer: Any = None,
    edge: dict[str, Any] | None = None,
    **settings: Any,
) -> HybridRouter:
    """The first URL is the edge's, the second the cloud's."""
    edge_side = SideSettings(**{"url": urls[0], "model": "small", **(edge or {})})
    cloud_side = SideSettings(urls[1], "big", price=PRICE, first_chunk_timeout=3.0, idle_timeout=3.0)
    route = RouteSettings(
        "auto", edge_side, cloud_side, policy or Policy(), cascade=cascade or CascadeSettings(), **settings
    )
    return HybridRouter(
        settings=route,
        edge=HttpSide("edge", edge_side),
        cloud=HttpSide("cloud", cloud_side),
        ledger=ledger or Ledger(None, budgets or Budgets()),
        guard=Guard(detectors, timeout=timeout),
        caps=Caps(route.caps),
        judge=AnswerJudge(),
        tickets=TicketStore(),
        scorer=scorer,
        readers=readers,
        observer=observer,
        lengths=OutputLengths(),
    )


def ask(text: Any = "hello", **fields: Any) -> RoutedRequest:
    """A request; `placement`, `labels` and so on go into its extension."""
    names = ("placement", "labels", "max_usd", "deadline_ms", "tenant")
    extension = {name: fields.pop(name) for name in names if name in fields}
    messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
    return parse_request({"messages": messages, "weighbridge": extension, **fields}, {})


async def answer(router: HybridRouter, request: RoutedRequest) -> tuple[dict[str, Any], Any]:
    """The whole answer's message, and the ticket."""
    stream = await router.open(request)
    gathered = Gathered()
    async for chunk in stream:
        gathered.add(chunk)
    return gathered.whole("auto", False)["choices"][0]["message"], stream.ticket
