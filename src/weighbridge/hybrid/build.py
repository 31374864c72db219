"""From settings to routers at work."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weighbridge.cost.length import OutputLengths
from weighbridge.hybrid.bandit import ThresholdBandit
from weighbridge.hybrid.budget import Ledger
from weighbridge.hybrid.caps import Caps
from weighbridge.hybrid.difficulty.model import load_router
from weighbridge.hybrid.front import Front
from weighbridge.hybrid.judge import AnswerJudge
from weighbridge.hybrid.privacy.guard import Guard
from weighbridge.hybrid.privacy.hits import Detector
from weighbridge.hybrid.privacy.patterns import DenyListDetector, PatternDetector
from weighbridge.hybrid.router import HybridRouter
from weighbridge.hybrid.settings import HybridSettings, PrivacySettings, RouteSettings
from weighbridge.hybrid.shadow import Shadow
from weighbridge.hybrid.side import HttpSide, Side, SideSettings
from weighbridge.ticket.store import TicketStore

#: Makes a side of a route: the route's name, "edge" or "cloud", and what is set.
MakeSide = Callable[[str, str, SideSettings], Side]


def http_side(route: str, where: str, settings: SideSettings) -> Side:
    return HttpSide(where, settings)


def build_front(
    settings: HybridSettings, *, tickets: TicketStore | None = None, make_side: MakeSide = http_side
) -> Front:
    """Everything that serves the routes. `tickets`: a store to share, instead of one of its own.

    Raises BadInput where a file or an extra is missing.
    """
    tickets = tickets if tickets is not None else TicketStore(path=settings.tickets)
    ledger = Ledger(settings.ledger, settings.budgets)
    lengths = OutputLengths()
    routers = {
        route.name: build_router(route, ledger, tickets, lengths, settings.shadow_file, make_side)
        for route in settings.routes
    }
    return Front(routers, tickets, settings.api_keys)


def build_router(
    route: RouteSettings,
    ledger: Ledger,
    tickets: TicketStore,
    lengths: OutputLengths,
    shadow_file: Path | None = None,
    make_side: MakeSide = http_side,
) -> HybridRouter:
    trained = load_router(route.router) if route.router is not None else None
    if trained is not None and route.threshold is None:
        route = replace(route, threshold=trained.threshold)
    shadow = build_shadow(route, shadow_file)
    router = HybridRouter(
        settings=route,
        edge=make_side(route.name, "edge", route.edge),
        cloud=make_side(route.name, "cloud", route.cloud),
        ledger=ledger,
        guard=build_guard(route.privacy),
        caps=Caps(route.caps),
        judge=AnswerJudge(trained if trained is not None and trained.judge is not None else None),
        tickets=tickets,
        scorer=trained,
        lengths=lengths,
        observer=shadow,
    )
    if shadow is not None:
        shadow.router = router
    return router


def build_shadow(route: RouteSettings, path: Path | None) -> Shadow | None:
    """The observer, where anything is to be learned."""
    bandit = None
    if route.bandit.enabled:
        arms = tuple(sorted(route.bandit.arms))
        bandit = ThresholdBandit(arms, route.bandit.usd_per_quality, random.betavariate)
    if bandit is None and route.shadow.share <= 0.0:
        return None
    return Shadow(route.shadow, random.random, path, bandit)


def build_guard(privacy: PrivacySettings) -> Guard:
    """Detectors in the order of their trust; the NER model only where it was asked for."""
    detectors: list[Detector] = [PatternDetector(), DenyListDetector(privacy.deny)]
    if privacy.ner:
        from weighbridge.hybrid.privacy.ner import NerDetector

        detectors.append(NerDetector())
    return Guard(detectors, privacy.types, privacy.timeout)
