"""From settings to routes at work."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway
from weighbridge.routes.budget import Cashier, Ledger
from weighbridge.routes.caps import Caps
from weighbridge.routes.difficulty.embedders import edge_state, minilm
from weighbridge.routes.difficulty.embedders.vectors import Embedder, Readers, Source, mismatch
from weighbridge.routes.difficulty.trained import TrainedRouter, load_router
from weighbridge.routes.journey import RouteService
from weighbridge.routes.judge import AnswerJudge
from weighbridge.routes.learn.bandit import ThresholdBandit
from weighbridge.routes.learn.shadow import Shadow
from weighbridge.routes.ledger.keeper import UsageKeeper
from weighbridge.routes.place import Place
from weighbridge.routes.policy import Level
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.hits import Detector
from weighbridge.routes.privacy.patterns import DenyListDetector, PatternDetector
from weighbridge.routes.route import Route
from weighbridge.routes.settings import PrivacySettings, RouteSettings, RoutesSettings


def add_routes(gateway: Gateway, settings: RoutesSettings) -> UsageKeeper:
    """Make a gateway's routes, if there are to be any; return what keeps all that is used, also without them.

    Raises BadInput where a file or an extra is missing.
    """
    ledger = Ledger(settings.ledger, settings.budgets)
    keeper = UsageKeeper(ledger)
    gateway.on_charged.append(keeper.charged)
    cashier = Cashier(ledger, keeper.add)
    for route in settings.routes:
        gateway.routes[route.name] = RouteService(build_route(route, gateway, cashier, settings.shadow_file))
    gateway.on_close += [cashier.close, keeper.close]
    return keeper


def build_route(
    settings: RouteSettings, gateway: Gateway, cashier: Cashier, shadow_file: Path | None = None
) -> Route:
    trained = load_router(settings.router) if settings.router is not None else None
    if trained is not None and settings.threshold is None:
        settings = replace(settings, threshold=trained.threshold)
    shadow = build_shadow(settings, shadow_file)
    places = {each.name: Place(each, gateway, settings.name) for each in settings.places}
    route = Route(
        settings=settings,
        gateway=gateway,
        places=places,
        cashier=cashier,
        guard=build_guard(settings.privacy),
        caps=Caps(settings.caps),
        judge=AnswerJudge(trained if trained is not None and trained.judge is not None else None),
        scorer=trained,
        readers=build_readers(trained, settings, list(places.values())) if trained is not None else None,
        observer=shadow,
    )
    if shadow is not None:
        shadow.route = route
    return route


def build_readers(trained: TrainedRouter, settings: RouteSettings, places: Sequence[Place]) -> Readers | None:
    """The vectors that the router wants; None where the text is all. Raises BadInput where one is out of reach."""
    sources: list[tuple[Embedder, Source]] = []
    for source in trained.wanted:
        known = {minilm.SOURCE.name: _minilm, edge_state.NAME: _edge_state}
        if source.name not in known:
            raise BadInput(
                f"{settings.router}: trained with features {source.name!r}, which this version does not know"
            )
        try:
            sources.append((known[source.name](source, places), source))
        except BadInput as error:
            without = f"or train it again without the features {source.name}"
            raise BadInput(f"routes.{settings.name}.router: {settings.router}: {error}; {without}") from error
    return Readers(sources, settings.score_wait) if sources else None


def _minilm(source: Source, places: Sequence[Place]) -> Embedder:
    if source != minilm.SOURCE:
        raise BadInput(mismatch(source, minilm.SOURCE))
    return minilm.MiniLm()


def _edge_state(source: Source, places: Sequence[Place]) -> Embedder:
    """The state of the first place at the edge. What a model of the fleet is called here says nothing of the engine;
    there the first vector tells."""
    edge = next((place for place in places if place.level is Level.EDGE), None)
    if edge is None:
        raise BadInput("trained with the state of the edge's engine, but the route has no edge")
    if edge.elsewhere:
        raise BadInput(
            f"trained with the state of the edge's engine, but {edge.elsewhere}; nothing is sent there"
        )
    calls_it = edge.settings.calls_it
    if calls_it and calls_it != source.model:
        raise BadInput(
            f"trained with the state of {source.model!r}, but the edge is {calls_it!r}; train it again "
            "with that one"
        )
    return edge_state.EdgeState(edge)


def build_shadow(settings: RouteSettings, path: Path | None) -> Shadow | None:
    """The observer, where anything is to be learned."""
    bandit = None
    if settings.bandit.enabled:
        arms = tuple(sorted(settings.bandit.arms))
        bandit = ThresholdBandit(arms, settings.bandit.usd_per_quality, random.betavariate)
    if bandit is None and settings.shadow.share <= 0.0:
        return None
    return Shadow(settings.shadow, random.random, path, bandit)


def build_guard(privacy: PrivacySettings) -> Guard:
    """Detectors in the order of their trust; the NER model only where it was asked for."""
    detectors: list[Detector] = [PatternDetector(), DenyListDetector(privacy.deny)]
    if privacy.ner:
        from weighbridge.routes.privacy.ner import NerDetector  # loads onnxruntime

        detectors.append(NerDetector())
    return Guard(detectors, privacy.types, privacy.timeout)
