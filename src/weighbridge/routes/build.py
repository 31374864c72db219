"""From settings to routers at work."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weighbridge.cost.length import OutputLengths
from weighbridge.errors import BadInput
from weighbridge.routes import edge_state
from weighbridge.routes.budget import Ledger
from weighbridge.routes.caps import Caps
from weighbridge.routes.difficulty import minilm
from weighbridge.routes.difficulty.trained import TrainedRouter, load_router
from weighbridge.routes.difficulty.vectors import Embedder, Source, mismatch
from weighbridge.routes.front import Front
from weighbridge.routes.http_side import HttpSide
from weighbridge.routes.judge import AnswerJudge
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.learn.shadow import Shadow
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.hits import Detector
from weighbridge.routes.privacy.patterns import DenyListDetector, PatternDetector
from weighbridge.routes.reading import Readers
from weighbridge.routes.router import HybridRouter
from weighbridge.routes.settings import HybridSettings, PrivacySettings, RouteSettings
from weighbridge.routes.side import Side, SideSettings
from weighbridge.ticket import TicketStore

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
    edge = make_side(route.name, "edge", route.edge)
    router = HybridRouter(
        settings=route,
        edge=edge,
        cloud=make_side(route.name, "cloud", route.cloud),
        ledger=ledger,
        guard=build_guard(route.privacy),
        caps=Caps(route.caps),
        judge=AnswerJudge(trained if trained is not None and trained.judge is not None else None),
        tickets=tickets,
        scorer=trained,
        readers=build_readers(trained, route, edge) if trained is not None else None,
        lengths=lengths,
        observer=shadow,
    )
    if shadow is not None:
        shadow.router = router
    return router


def build_readers(trained: TrainedRouter, route: RouteSettings, edge: Side) -> Readers | None:
    """The vectors that the router wants; None where the text is all. Raises BadInput where they cannot be had."""
    sources: list[tuple[Embedder, Source]] = []
    for source in trained.wanted:
        known = {minilm.SOURCE.name: _minilm, edge_state.NAME: _edge_state}
        if source.name not in known:
            raise BadInput(
                f"{route.router}: trained with features {source.name!r}, which this version does not know"
            )
        try:
            sources.append((known[source.name](source, route, edge), source))
        except BadInput as error:
            without = f"or train it again without the features {source.name}"
            raise BadInput(f"routes.{route.name}.router: {route.router}: {error}; {without}") from error
    return Readers(sources, route.score_wait) if sources else None


def _minilm(source: Source, route: RouteSettings, edge: Side) -> Embedder:
    if source != minilm.SOURCE:
        raise BadInput(mismatch(source, minilm.SOURCE))
    return minilm.MiniLm()


def _edge_state(source: Source, route: RouteSettings, edge: Side) -> Embedder:
    """What a model of the fleet is called here says nothing of the engine; there the first vector tells."""
    if edge.elsewhere:
        raise BadInput(
            f"trained with the state of the edge's engine, but {edge.elsewhere}; nothing is sent there"
        )
    if route.edge.url and route.edge.model != source.model:
        raise BadInput(
            f"trained with the state of {source.model!r}, but the edge is {route.edge.model!r}; train it again "
            "with that one"
        )
    return edge_state.EdgeState(edge)


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
        from weighbridge.routes.privacy.ner import NerDetector

        detectors.append(NerDetector())
    return Guard(detectors, privacy.types, privacy.timeout)
