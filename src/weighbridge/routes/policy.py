"""Where a request may go, and where it goes first. Pure: facts in, a decision with its reasons out.

    policy -> capability and context -> budget and health -> pre-router score -> local answer -> escalate

Each step may only narrow what the steps before it left open; a score never widens what policy allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from weighbridge.errors import NeverFits
from weighbridge.routes.errors import CloudDenied, NoSideCan, PolicyForbids


class Residency(StrEnum):
    """What may cross the boundary, from the loosest to the strictest."""

    FREE = "free"
    REDACT = "redact_then_cloud"
    NEVER = "never_leaves"


_STRICTNESS = {Residency.FREE: 0, Residency.REDACT: 1, Residency.NEVER: 2}


class Placement(StrEnum):
    """What the caller asks for."""

    AUTO = "auto"
    ONLY_EDGE = "only_edge"
    PREFER_EDGE = "prefer_edge"
    PREFER_CLOUD = "prefer_cloud"
    ONLY_CLOUD = "only_cloud"


class Side(StrEnum):
    EDGE = "edge"
    CLOUD = "cloud"

    @property
    def other(self) -> Side:
        return Side.CLOUD if self is Side.EDGE else Side.EDGE


@dataclass(frozen=True, slots=True)
class Rule:
    """A residency for requests that match. Every condition given must hold; within one, any member does."""

    name: str
    residency: Residency
    tenants: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    types: tuple[str, ...] = ()  # of detector hits; "*" is any

    def matches(self, tenant: str, route: str, labels: frozenset[str], found: frozenset[str]) -> bool:
        if self.types and not ("*" in self.types and found) and not found.intersection(self.types):
            return False
        return (
            (not self.tenants or tenant in self.tenants)
            and (not self.routes or route in self.routes)
            and (not self.labels or bool(labels.intersection(self.labels)))
        )


@dataclass(frozen=True, slots=True)
class Policy:
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
    """

    tenant: str = "default"
    route: str = "auto"
    labels: frozenset[str] = frozenset()
    placement: Placement = Placement.AUTO
    max_usd: float | None = None
    deadline_seconds: float | None = None
    found: frozenset[str] | None = frozenset()
    unreadable: str = ""
    needs: frozenset[str] = frozenset()  # abilities: "tools", "images", ...


@dataclass(frozen=True, slots=True)
class SideFacts:
    """What is known of a side for this request. `tokens`: prompt and answer together, by its own count."""

    healthy: bool = True
    context_tokens: int | None = None
    abilities: frozenset[str] | None = None  # None: everything
    tokens: int = 0
    seconds: float | None = None  # expected until the answer is complete; None: not known
    usd: float = 0.0  # at most


@dataclass(frozen=True, slots=True)
class Grant:
    """Whether budget and caps let this request spend; `reason` when not."""

    allowed: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    residency: Residency
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Where to begin, what may follow. `escalate`: a weak local answer may be replaced by the cloud's."""

    first: Side
    fallback: Side | None
    escalate: bool
    redact: bool
    rule: str
    degraded: bool = False
    reasons: tuple[str, ...] = field(default_factory=tuple)


def residency(policy: Policy, asked: Asked) -> Verdict:
    """The residency of a request. Fails closed: what could not be inspected does not leave, unless nothing
    that was configured depends on looking."""
    if asked.placement is Placement.ONLY_EDGE:
        return Verdict(Residency.NEVER, "only_edge", "the caller asked for the edge only")
    matching = [
        rule
        for rule in policy.rules
        if rule.matches(asked.tenant, asked.route, asked.labels, asked.found or frozenset())
    ]
    if matching:
        strictest = max(matching, key=lambda rule: _STRICTNESS[rule.residency])
        verdict = Verdict(
            strictest.residency, strictest.name, f"rule {strictest.name}: {strictest.residency}"
        )
    else:
        verdict = Verdict(policy.default, "default", f"no rule matches: {policy.default}")
    if verdict.residency is Residency.NEVER or not policy.needs_scan:
        return verdict
    if asked.found is None:
        return Verdict(Residency.NEVER, "detector_failed", "the detectors failed: it does not leave")
    if asked.unreadable and (verdict.residency is Residency.REDACT or any(r.types for r in policy.rules)):
        reason = f"no detector can look into {asked.unreadable}: it does not leave"
        return Verdict(Residency.NEVER, "unreadable", reason)
    return verdict


def decide(
    verdict: Verdict,
    asked: Asked,
    edge: SideFacts,
    cloud: SideFacts,
    grant: Grant,
    score: float | None = None,
    threshold: float = 0.5,
) -> Decision:
    """The whole order of steps up to the first byte of work.

    Raises PolicyForbids, NeverFits, NoSideCan or CloudDenied where no permitted side can take the request.
    """
    reasons = [verdict.reason]
    may_leave = verdict.residency is not Residency.NEVER
    if asked.placement is Placement.ONLY_CLOUD and not may_leave:
        raise PolicyForbids(
            f"only_cloud was asked for, but {verdict.reason}; ask for another placement or change the rule"
        )
    edge_bar = _bar("edge", edge, asked)
    cloud_bar = _bar("cloud", cloud, asked) if may_leave else verdict.reason
    if asked.placement is Placement.ONLY_CLOUD:
        edge_bar = "the caller asked for the cloud only"
    money_bar = "" if cloud_bar else _money_bar(asked, cloud, grant)
    if edge_bar and not (cloud_bar or money_bar):
        reasons.append(f"edge: {edge_bar}")
        return _decision(Side.CLOUD, None, False, verdict, reasons)
    if edge_bar:
        _refuse(asked, edge, cloud, edge_bar, cloud_bar, money_bar)
    bar = cloud_bar or money_bar
    if bar:
        if may_leave:
            reasons.append(f"cloud: {bar}")
        wanted = asked.placement is Placement.PREFER_CLOUD or (score is not None and score >= threshold)
        degraded = may_leave and (bool(money_bar) or not cloud.healthy or wanted)
        return _decision(Side.EDGE, None, False, verdict, reasons, degraded)
    return _between(verdict, asked, edge, cloud, score, threshold, reasons)


def _between(
    verdict: Verdict,
    asked: Asked,
    edge: SideFacts,
    cloud: SideFacts,
    score: float | None,
    threshold: float,
    reasons: list[str],
) -> Decision:
    """Both sides are open: what the caller prefers, then the deadline, then the score."""
    if asked.placement is Placement.PREFER_CLOUD:
        reasons.append("the caller prefers the cloud")
        return _decision(Side.CLOUD, Side.EDGE, False, verdict, reasons)
    faster = _only_side_in_time(asked, edge, cloud)
    if faster is not None:
        reasons.append(
            f"deadline {asked.deadline_seconds:.2f} s: edge needs {_seconds(edge)}, cloud {_seconds(cloud)}"
        )
        return _decision(faster, faster.other, False, verdict, reasons)
    if asked.placement is Placement.PREFER_EDGE:
        reasons.append("the caller prefers the edge")
        return _decision(Side.EDGE, Side.CLOUD, False, verdict, reasons)
    if score is None:
        reasons.append("no pre-router: the edge answers first")
        return _decision(Side.EDGE, Side.CLOUD, True, verdict, reasons)
    sign = ">=" if score >= threshold else "<"
    reasons.append(f"score {score:.3f} {sign} threshold {threshold:.3f}")
    if score >= threshold:
        return _decision(Side.CLOUD, Side.EDGE, False, verdict, reasons)
    return _decision(Side.EDGE, Side.CLOUD, True, verdict, reasons)


def _decision(
    first: Side,
    fallback: Side | None,
    escalate: bool,
    verdict: Verdict,
    reasons: Iterable[str],
    degraded: bool = False,
) -> Decision:
    redact = verdict.residency is Residency.REDACT
    return Decision(first, fallback, escalate, redact, verdict.rule, degraded, tuple(reasons))


def _bar(name: str, side: SideFacts, asked: Asked) -> str:
    """Why a side cannot take the request; empty when it can."""
    if side.context_tokens is not None and side.tokens > side.context_tokens:
        return f"about {side.tokens} tokens do not fit its context of {side.context_tokens}"
    missing = sorted(asked.needs - side.abilities) if side.abilities is not None else []
    if missing:
        return f"it has no {', '.join(missing)}"
    return "" if side.healthy else "it is down"


def _money_bar(asked: Asked, cloud: SideFacts, grant: Grant) -> str:
    if asked.max_usd is not None and cloud.usd > asked.max_usd:
        return f"it may cost {cloud.usd:.6f} USD, more than max_usd {asked.max_usd:.6f}"
    return "" if grant.allowed else grant.reason


def _only_side_in_time(asked: Asked, edge: SideFacts, cloud: SideFacts) -> Side | None:
    """The side to take because the other misses the deadline; the quicker when both do; None when free."""
    limit = asked.deadline_seconds
    if limit is None or edge.seconds is None or cloud.seconds is None:
        return None
    edge_late, cloud_late = edge.seconds > limit, cloud.seconds > limit
    if not edge_late:
        return Side.EDGE if cloud_late else None
    return Side.EDGE if cloud_late and edge.seconds <= cloud.seconds else Side.CLOUD


def _seconds(side: SideFacts) -> str:
    return "an unknown time" if side.seconds is None else f"{side.seconds:.2f} s"


def _refuse(
    asked: Asked, edge: SideFacts, cloud: SideFacts, edge_bar: str, cloud_bar: str, money_bar: str
) -> None:
    """Say why nobody can. Always raises."""
    if asked.placement is Placement.ONLY_CLOUD:
        if "context" in cloud_bar:
            raise NeverFits(f"the cloud cannot: {cloud_bar}; shorten the request")
        raise CloudDenied(f"only_cloud was asked for, but the cloud cannot: {cloud_bar or money_bar}")
    if "context" in edge_bar:
        raise NeverFits(f"the edge cannot: {edge_bar}; the cloud may not: {cloud_bar or money_bar}")
    raise NoSideCan(f"the edge cannot: {edge_bar}; the cloud may not: {cloud_bar or money_bar}")
