"""Where a request may go, and in which order. Pure: facts in, a plan with its reasons out.

    policy -> capability and context -> budget and health -> pre-router score -> local answer -> escalate

Each step may only narrow what the steps before it left open; a score never widens what policy allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from weighbridge.errors import NeverFits
from weighbridge.routes.errors import CloudDenied, NoPlaceAble, NoPlaceCan, PolicyForbids
from weighbridge.wire.ask import Placement, folded


class Residency(StrEnum):
    """What may cross the boundary, from the loosest to the strictest."""

    FREE = "free"
    REDACT = "redact_then_cloud"
    NEVER = "never_leaves"


#: The rule of a verdict that another try may not have: nobody could look.
DETECTOR_FAILED = "detector_failed"
_STRICTNESS = {Residency.FREE: 0, Residency.REDACT: 1, Residency.NEVER: 2}


class Level(StrEnum):
    """How far a place is trusted: on this side of the boundary, or beyond it."""

    EDGE = "edge"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True)
class Rule:
    """A residency for requests that match. Every condition given must hold; within one, any member does.

    Labels match whatever their case is.
    """

    name: str
    residency: Residency
    tenants: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    types: tuple[str, ...] = ()  # of detector hits; "*" is any

    def matches(self, tenant: str, route: str, labels: frozenset[str], found: frozenset[str]) -> bool:
        """Whether the rule holds for a request. `labels` are folded."""
        if self.types and not ("*" in self.types and found) and not found.intersection(self.types):
            return False
        return (
            (not self.tenants or tenant in self.tenants)
            and (not self.routes or route in self.routes)
            and (not self.labels or any(folded(label) in labels for label in self.labels))
        )


@dataclass(frozen=True, slots=True)
class ResidencyPolicy:
    """Rules and what holds where none matches. The strictest of all that match wins, so that adding a label
    or a rule can never undo another."""

    rules: tuple[Rule, ...] = ()
    default: Residency = Residency.FREE

    @property
    def needs_scan(self) -> bool:
        """Whether any outcome depends on what detectors find."""
        looks = any(rule.types or rule.residency is Residency.REDACT for rule in self.rules)
        return looks or self.default is Residency.REDACT


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request before anything is decided. `found` None: the detectors failed.

    `unreadable` names content that detectors cannot look into (images, audio); empty when there is none.
    `unhidable` says why a value that was found cannot be taken out; empty when it can.
    """

    tenant: str = "default"
    route: str = "auto"
    labels: frozenset[str] = frozenset()
    placement: Placement = Placement.AUTO
    max_usd: float | None = None
    deadline_seconds: float | None = None
    found: frozenset[str] | None = frozenset()
    unreadable: str = ""
    unhidable: str = ""
    needs: frozenset[str] = frozenset()  # abilities: "tools", "images", ...
    held: str = ""  # fields that hold the answer to something and never leave, by name


@dataclass(frozen=True, slots=True)
class Grant:
    """Whether budget and caps let this request spend; `reason` when not, and in how many seconds they may."""

    allowed: bool = True
    reason: str = ""
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class PlaceFacts:
    """What is known of a place for this request. `tokens`: prompt and answer together, by its own count."""

    name: str
    level: Level
    healthy: bool = True
    rest_seconds: float | None = None  # that it asked to be left alone for, if nothing else keeps it away
    context_tokens: int | None = None
    abilities: frozenset[str] | None = None  # None: everything
    tokens: int = 0
    seconds: float | None = None  # expected until the answer is complete; None: not known
    usd: float = 0.0  # at most
    grant: Grant = Grant()  # for money; a place at the edge is never refused any


@dataclass(frozen=True, slots=True)
class Verdict:
    residency: Residency
    rule: str
    reason: str

    @property
    def may_leave(self) -> bool:
        return self.residency is not Residency.NEVER


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """The places to try, in order. `escalate`: a weak answer of the edge may be replaced by the next place's."""

    order: tuple[str, ...]
    escalate: bool
    redact: bool
    rule: str
    degraded: bool = False
    reasons: tuple[str, ...] = ()


class BarKind(StrEnum):
    """What keeps a request from a place."""

    RESIDENCY = "residency"
    CALLER = "caller"
    CONTEXT = "context"
    ABILITY = "ability"
    HEALTH = "health"
    MONEY = "money"


@dataclass(frozen=True, slots=True)
class Bar:
    """Why a place cannot take a request; the words are for people only."""

    kind: BarKind
    words: str


def residency(policy: ResidencyPolicy, asked: Asked) -> Verdict:
    """Decide what of a request may leave. Fails closed: what could not be inspected does not leave, unless
    nothing that was configured depends on looking."""
    if asked.placement is Placement.ONLY_EDGE:
        return Verdict(Residency.NEVER, "only_edge", "the caller asked for the edge only")
    labels = frozenset(folded(label) for label in asked.labels)
    found = asked.found or frozenset()
    matching = [rule for rule in policy.rules if rule.matches(asked.tenant, asked.route, labels, found)]
    if matching:
        strictest = max(matching, key=lambda rule: _STRICTNESS[rule.residency])
        verdict = Verdict(
            strictest.residency, strictest.name, f"rule {strictest.name}: {strictest.residency}"
        )
    else:
        verdict = Verdict(policy.default, "default", f"no rule matches: {policy.default}")
    if not verdict.may_leave or not policy.needs_scan:
        return verdict
    if asked.found is None:
        return Verdict(Residency.NEVER, DETECTOR_FAILED, "the detectors failed: it does not leave")
    if asked.unreadable and (verdict.residency is Residency.REDACT or any(r.types for r in policy.rules)):
        reason = f"no detector can look into {asked.unreadable}: it does not leave"
        return Verdict(Residency.NEVER, "unreadable", reason)
    if asked.unhidable and verdict.residency is Residency.REDACT:
        return Verdict(Residency.NEVER, "unhidable", f"{asked.unhidable}: it does not leave")
    return verdict


def decide(
    verdict: Verdict,
    asked: Asked,
    places: Sequence[PlaceFacts],
    score: float | None = None,
    threshold: float = 0.5,
) -> RoutePlan:
    """Order the places that may take a request: the whole way of steps up to the first byte of work.

    `places` stand in the order of trust. Raises PolicyForbids, NeverFits, NoPlaceAble, NoPlaceCan or CloudDenied where
    none of them is open.
    """
    reasons = [verdict.reason]
    if asked.placement is Placement.ONLY_CLOUD and not verdict.may_leave:
        raise PolicyForbids(
            f"only_cloud was asked for, but {verdict.reason}; ask for another placement or change the rule"
        )
    bars = {place.name: bar for place in places if (bar := _bar(place, verdict, asked)) is not None}
    free = [place for place in places if place.name not in bars]
    if not free:
        _refuse(verdict, asked, places, bars)
    for place in places:
        bar = bars.get(place.name)
        if bar is not None and bar.kind is not BarKind.RESIDENCY:
            reasons.append(f"{place.name}: {bar.words}")
    if len(free) == 1:
        order, escalate = free, False
    else:
        order, escalate = _between(free, asked, score, threshold, reasons)
    wanted = asked.placement is Placement.PREFER_CLOUD or (score is not None and score >= threshold)
    return RoutePlan(
        tuple(place.name for place in order),
        escalate,
        redact=verdict.residency is Residency.REDACT,
        rule=verdict.rule,
        degraded=verdict.may_leave and _is_degraded(places, bars, wanted),
        reasons=tuple(reasons),
    )


def share_seconds(left: float, own: float | None, following: Sequence[float | None]) -> float:
    """The part of `left` seconds that a place may take, so that those who follow have theirs should it fail.

    In proportion to what each is expected to take; whoever is unknown counts as the mean of the others. Nobody has less
    than half an even part, since what is expected of a place that hangs says nothing.
    """
    known = [seconds for seconds in (own, *following) if seconds is not None]
    usual = sum(known) / len(known) if known else 1.0
    needs = [usual if seconds is None else seconds for seconds in (own, *following)]
    least = left / (2 * len(needs))
    wanted = left * needs[0] / sum(needs) if sum(needs) > 0 else left / len(needs)
    return min(max(wanted, least), left - len(following) * least)


def _bar(place: PlaceFacts, verdict: Verdict, asked: Asked) -> Bar | None:
    """Why a place cannot take the request; None when it can."""
    is_cloud = place.level is Level.CLOUD
    if is_cloud and not verdict.may_leave:
        return Bar(BarKind.RESIDENCY, verdict.reason)
    if not is_cloud and asked.placement is Placement.ONLY_CLOUD:
        return Bar(BarKind.CALLER, "the caller asked for the cloud only")
    if is_cloud and asked.held:
        return Bar(BarKind.ABILITY, f"what the answer is held to does not leave ({asked.held})")
    if place.context_tokens is not None and place.tokens > place.context_tokens:
        words = f"about {place.tokens} tokens do not fit its context of {place.context_tokens}"
        return Bar(BarKind.CONTEXT, words)
    missing = sorted(asked.needs - place.abilities) if place.abilities is not None else []
    if missing:
        return Bar(BarKind.ABILITY, f"it has no {', '.join(missing)}")
    if place.rest_seconds is not None:
        return Bar(BarKind.HEALTH, f"it asked to be left alone for another {place.rest_seconds:.1f} s")
    if not place.healthy:
        return Bar(BarKind.HEALTH, "it is down")
    return _money_bar(place, asked) if is_cloud else None


def _money_bar(place: PlaceFacts, asked: Asked) -> Bar | None:
    if asked.max_usd is not None and place.usd > asked.max_usd:
        words = f"it may cost {place.usd:.6f} USD, more than max_usd {asked.max_usd:.6f}"
        return Bar(BarKind.MONEY, words)
    return None if place.grant.allowed else Bar(BarKind.MONEY, place.grant.reason)


def _between(
    free: list[PlaceFacts], asked: Asked, score: float | None, threshold: float, reasons: list[str]
) -> tuple[list[PlaceFacts], bool]:
    """Order several open places: what the caller prefers, then the deadline, then the score.

    Returns with them whether a weak answer of the edge may be replaced.
    """
    cloud_first = sorted(free, key=lambda place: place.level is Level.EDGE)  # stable: trust decides the rest
    if asked.placement is Placement.PREFER_CLOUD:
        reasons.append("the caller prefers the cloud")
        return cloud_first, False
    in_time = _by_deadline(free, asked.deadline_seconds)
    if in_time is not None:
        needs = ", ".join(f"{p.name} {'needs ' * (p is free[0])}{_seconds(p)}" for p in free)
        reasons.append(f"deadline {asked.deadline_seconds:.2f} s: {needs}")
        return in_time, False
    if asked.placement is Placement.PREFER_EDGE:
        reasons.append("the caller prefers the edge")
        return free, False
    if score is None:
        reasons.append(f"no pre-router: the {free[0].name} answers first")
        return free, free[0].level is Level.EDGE
    sign = ">=" if score >= threshold else "<"
    reasons.append(f"score {score:.3f} {sign} threshold {threshold:.3f}")
    return (cloud_first, False) if score >= threshold else (free, free[0].level is Level.EDGE)


def _by_deadline(free: list[PlaceFacts], limit: float | None) -> list[PlaceFacts] | None:
    """Places that keep the deadline first, then the quicker ones; None where all keep it or somebody is unknown."""
    if limit is None:
        return None
    late: dict[str, float] = {}
    for place in free:
        if place.seconds is None:
            return None
        late[place.name] = place.seconds if place.seconds > limit else 0.0
    return sorted(free, key=lambda place: late[place.name]) if any(late.values()) else None


def _seconds(place: PlaceFacts) -> str:
    return "an unknown time" if place.seconds is None else f"{place.seconds:.2f} s"


def _is_degraded(places: Iterable[PlaceFacts], bars: dict[str, Bar], wanted: bool) -> bool:
    """Whether the edge has to answer alone what the cloud was wanted for, or kept from by money or health."""
    clouds = [place for place in places if place.level is Level.CLOUD]
    if not clouds or any(place.name not in bars for place in clouds):
        return False
    money = any(bars[place.name].kind is BarKind.MONEY for place in clouds)
    return money or wanted or any(not place.healthy for place in clouds)


def _refuse(verdict: Verdict, asked: Asked, places: Sequence[PlaceFacts], bars: dict[str, Bar]) -> NoReturn:
    """Say why no place is open."""
    edge = [place.name for place in places if place.level is Level.EDGE]
    cloud = [place.name for place in places if place.level is Level.CLOUD]
    of_cloud = _words(cloud, bars)
    wait = _rest(places, bars)
    if asked.placement is Placement.ONLY_CLOUD:
        if cloud and _never_fits(cloud, bars):
            raise NeverFits(f"the cloud cannot: {of_cloud}; shorten the request")
        if cloud and asked.held:
            raise NoPlaceAble(f"only_cloud was asked for, but the cloud cannot: {of_cloud}")
        raise CloudDenied(f"only_cloud was asked for, but the cloud cannot: {of_cloud}", retry_after=wait)
    said = f"the edge cannot: {_words(edge, bars)}; the cloud may not: {of_cloud}"
    if edge and _never_fits(edge, bars):
        raise NeverFits(said)
    unable = all(bars[name].kind is BarKind.ABILITY for name in edge)
    if unable and _is_lasting(cloud, bars) and verdict.rule != DETECTOR_FAILED:
        raise NoPlaceAble(said)
    raise NoPlaceCan(said, retry_after=wait)


def _rest(places: Sequence[PlaceFacts], bars: dict[str, Bar]) -> float | None:
    """Seconds until the first place is back that only rests, or may be paid again; None where none does."""
    rests = [place.rest_seconds for place in places if bars[place.name].kind is BarKind.HEALTH]
    rests += [place.grant.retry_after for place in places if bars[place.name].kind is BarKind.MONEY]
    return min((rest for rest in rests if rest is not None), default=None)


def _never_fits(names: list[str], bars: dict[str, Bar]) -> bool:
    return all(bars[name].kind is BarKind.CONTEXT for name in names)


def _is_lasting(names: list[str], bars: dict[str, Bar]) -> bool:
    """Whether these places will never take such a request."""
    return all(bars[name].kind in (BarKind.ABILITY, BarKind.RESIDENCY) for name in names)


def _words(names: list[str], bars: dict[str, Bar]) -> str:
    if not names:
        return "this route has none"
    if len(names) == 1:
        return bars[names[0]].words
    return "; ".join(f"{name}: {bars[name].words}" for name in names)
