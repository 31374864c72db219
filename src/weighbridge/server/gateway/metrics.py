"""Prometheus metrics of a gateway: per replica, tenant, model and policy. Label values are bounded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from weighbridge.fleet.desk import Standing
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.member import Member
from weighbridge.fleet.peers.peers import Peers
from weighbridge.server.watching.series import Spread, Sums
from weighbridge.server.watching.watchdog import stall_histogram
from weighbridge.ticket import Leg, Ticket
from weighbridge.ticket.record import between, gap_of

#: Lines of `/metrics` that are written at once.
_PIECE = 250
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Tenants with a label of their own; whoever comes later counts as "other", because names are the clients' to choose.
MAX_TENANTS = 200


class GatewayMetrics:
    """Hears every finished request; reads what the replicas' states hold when it is asked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        registry = self.registry = CollectorRegistry()

        def histogram(name: str, text: str, *labels: str) -> Spread:
            return Spread(registry, f"weighbridge_{name}", text, labels, _SECONDS)

        def counter(name: str, text: str, *labels: str) -> Sums:
            return Sums(registry, f"weighbridge_{name}", text, labels)

        by_model = ("model", "policy")
        self._wait = histogram("gateway_wait_seconds", "Arrival to the first replica chosen", *by_model)
        self._ttft = histogram("gateway_time_to_first_token_seconds", "Arrival to first token", *by_model)
        self._itl = histogram(
            "gateway_inter_token_latency_seconds", "Mean gap of a request's tokens", *by_model
        )
        self._e2e = histogram("gateway_request_seconds", "Arrival to last byte", *by_model)
        self._finished = counter("gateway_requests_finished", "Requests by how they ended", "model", "reason")
        self._tokens = counter("gateway_tenant_tokens", "Tokens by tenant and kind", "tenant", "kind")
        self._usd = counter("gateway_tenant_usd", "US dollars by tenant", "tenant")
        self._requests = counter("gateway_tenant_requests", "Finished requests by tenant", "tenant")
        self._resumed = counter("gateway_resumed_streams", "Streams that went on at another replica", "model")
        self._http = counter("http_requests", "HTTP requests", "route", "status")
        self.stalls = stall_histogram(registry)
        self._tenants: set[str] = set()
        registry.register(_FleetCollector(gateway))
        gateway.on_finished.append(self.finished)

    def register(self, collector: Collector) -> None:
        """Show what this one collects too."""
        self.registry.register(collector)

    def answered(self, route: str, status: int) -> None:
        self._http.add((route, str(status)))

    def finished(self, ticket: Ticket) -> None:
        """Count a request once for its tenant, and each of its legs for the model that worked on it."""
        tenant = self._tenant(ticket.tenant)
        if not ticket.legs and ticket.replica:  # one leg, which the ticket tells of as well
            self._requests.add((tenant,))
            self._tokens.add((tenant, "prompt"), ticket.prompt_tokens)
            self._tokens.add((tenant, "output"), ticket.output_tokens)
            if ticket.cost_usd:
                self._usd.add((tenant,), ticket.cost_usd)
            self._leg(ticket, ticket.finish_reason, ticket.choices)
            return
        legs = ticket.every_leg()
        self._requests.add((tenant,))
        self._tokens.add((tenant, "prompt"), sum([leg.prompt_tokens for leg in legs]))
        self._tokens.add((tenant, "output"), sum([leg.output_tokens for leg in legs]))
        if usd := sum([leg.usd for leg in legs]):
            self._usd.add((tenant,), usd)
        if not legs:
            self._finished.add((ticket.model, ticket.finish_reason or "unknown"))
        for leg in legs:
            self._leg(leg, leg.outcome, ticket.choices)

    def _leg(self, leg: Leg | Ticket, outcome: str | None, choices: int) -> None:
        by_model = (leg.model, self._gateway.pools[leg.model].spec.policy)
        self._finished.add((leg.model, outcome or "unknown"))
        if leg.resumed:
            self._resumed.add((leg.model,), leg.resumed)
        if leg.scheduled is not None:
            self._wait.observe(by_model, between(leg.arrived, leg.scheduled))
        if leg.finished is None:
            return
        self._e2e.observe(by_model, between(leg.arrived, leg.finished))
        if leg.first_token is not None:
            self._ttft.observe(by_model, between(leg.arrived, leg.first_token))
        gap = gap_of(leg, choices)
        if gap is not None:
            self._itl.observe(by_model, gap)

    async def exposition(self) -> bytes:
        """The page of `/metrics`. Written in pieces, between which others have their turn."""
        page: bytes = generate_latest(self.registry)
        pieces = [page]
        for piece in replica_pieces(self._gateway):
            pieces.append(piece)
            await asyncio.sleep(0)
        return b"".join(pieces)

    def _tenant(self, name: str) -> str:
        if name in self._tenants:
            return name
        if len(self._tenants) >= MAX_TENANTS:
            return "other"
        self._tenants.add(name)
        return name


class _FleetCollector(Collector):  # type: ignore[misc]
    """What is true now, read at the moment of the scrape: costs nothing between scrapes."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Any]:
        yield from self._of_pools()
        yield from self._of_shared_limits()

    def _of_shared_limits(self) -> Iterator[Any]:
        shared = self._gateway.shared_limits
        if shared is None:
            return
        yield _gauge("gateway_shared_limits_up", "Whether limits are shared now", [], [([], not shared.away)])
        text = "Requests held to the limits of this gateway alone, as Redis was away"
        local = CounterMetricFamily("weighbridge_gateway_limit_fallbacks", text)
        local.add_metric([], shared.fallbacks)
        yield local

    def _of_pools(self) -> Iterator[Any]:
        pools = self._gateway.pools.values()
        yield _gauge("gateway_queued_requests", "Requests waiting in the gateway", ["model"], [
            ([p.spec.name], len(p.dispatcher.queue)) for p in pools
        ])  # fmt: skip
        yield _gauge("gateway_queued_tokens", "Tokens of work waiting in the gateway", ["model"], [
            ([p.spec.name], p.dispatcher.queue.tokens) for p in pools
        ])  # fmt: skip
        yield _gauge("gateway_load_imbalance", "Variation of outstanding tokens over replicas", ["model"], [
            ([p.spec.name], p.imbalance()) for p in pools
        ])  # fmt: skip
        lost = CounterMetricFamily(
            "weighbridge_gateway_cancelled_copies", "Losers of hedges by outcome", labels=["model", "outcome"]
        )
        for pool in pools:
            for outcome, count in pool.lost_copies.items():
                lost.add_metric([pool.spec.name, outcome], count)
        yield lost


class PeersCollector(Collector):  # type: ignore[misc]
    """What this gateway shares with others."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def collect(self) -> Iterator[Any]:
        peers = self._peers
        told = peers.told()
        yield _gauge("gateway_shared_up", "Whether what gateways share is read and written now", [], [
            ([], told["redis"] == "up")
        ])  # fmt: skip
        yield _gauge(
            "gateway_peers", "Gateways that are there, this one included", [], [([], told["gateways"])]
        )
        yield _gauge("gateway_shared_records", "Replicas of which gateways have told each other", [], [
            ([], told["records"])
        ])  # fmt: skip
        yield _gauge(
            "gateway_shared_tenant_records",
            "Keys and limits of tenants of which gateways have told each other",
            [],
            [([], told["tenant_records"])],
        )
        for name, text, value in (
            ("gateway_shared_refused", "What lay in Redis and no gateway of ours wrote", told["refused"]),
            (
                "gateway_shared_operations",
                "Commands sent to Redis beside those of limits",
                peers.board.operations,
            ),
        ):
            family = CounterMetricFamily(f"weighbridge_{name}", text)
            family.add_metric([], value)
            yield family


def replica_pieces(gateway: Gateway) -> Iterator[bytes]:
    """What is true of each replica now, in the text format of Prometheus, a few hundred lines at a time.

    Written by hand: the client's families take 15 µs a line, and a large fleet has 15 lines a replica.
    """
    members = [(p.spec.name, m) for p in gateway.pools.values() for m in list(p.members.values())]
    labels = [
        f'{{model="{_escaped(model)}",replica="{_escaped(member.name)}"}} ' for model, member in members
    ]
    for name, text, value in REPLICA_GAUGES:
        now = gateway.clock()
        yield from _family(f"weighbridge_{name}", text, "gauge", labels, (value(m, now) for _, m in members))
    for name, text, field in REPLICA_COUNTERS:
        counts = (getattr(m.counts, field) for _, m in members)
        yield from _family(f"weighbridge_{name}_total", text, "counter", labels, counts)


def _family(name: str, text: str, kind: str, labels: list[str], values: Iterator[float]) -> Iterator[bytes]:
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
    for at in range(0, len(labels), _PIECE):
        piece = labels[at : at + _PIECE]
        lines = [f"{name}{label}{floatToGoString(next(values))}\n" for label in piece]
        yield "".join(lines).encode()


def _escaped(label: str) -> str:
    """A label's value as the format wants it."""
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _gauge(
    name: str, text: str, labels: list[str], values: list[tuple[list[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"weighbridge_{name}", text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family


def _up(member: Member, now: float) -> float:
    return float(member.standing(now) is Standing.UP)


def _known(member: Member, now: float) -> float:
    return float(member.state.kv is not None and member.state.kv.is_reliable(now))


def _error(member: Member, now: float) -> float:
    score = member.state.experience.score
    return score.error if score.count else math.nan


REPLICA_GAUGES = (
    ("replica_up", "Whether it may be sent requests", _up),
    ("replica_requests", "Requests in flight there", lambda m, now: m.state.requests),
    ("replica_outstanding_tokens", "Tokens of work in flight there", lambda m, now: m.state.outstanding_tokens),
    ("replica_uncomputed_tokens", "Prompt tokens not computed yet", lambda m, now: m.state.uncomputed_tokens),
    ("replica_kv_tokens", "Tokens of KV cache held or promised", lambda m, now: m.state.kv_tokens),
    ("replica_others_requests", "Requests there that are not ours", lambda m, now: m.state.others.queued_requests),
    ("replica_prefixes_known", "Whether what its prefix cache holds is known from its own events", _known),
    ("prediction_error", "By what share first tokens were lately off what was predicted; NaN until one was", _error),
)  # fmt: skip
REPLICA_COUNTERS = (
    ("replica_requests_sent", "Requests sent there", "requests"),
    ("replica_requests_finished", "Requests that ended well there", "finished"),
    ("replica_failures", "Requests that failed there", "failures"),
    ("replica_retries", "Failed requests that were tried elsewhere", "retries"),
    ("replica_hedges", "Second copies sent there", "hedges"),
    ("replica_prompt_tokens", "Prompt tokens", "prompt_tokens"),
    ("replica_prefix_cache_hit_tokens", "Prompt tokens served from its cache", "cached_tokens"),
    ("replica_output_tokens", "Output tokens", "output_tokens"),
    ("replica_usd", "US dollars", "usd"),
)
