"""A gateway as a service: its models and routes, its replicas, its metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from weighbridge.engine.api import Turn
from weighbridge.fleet.config.spec import EDGE, FleetSpec
from weighbridge.fleet.discovery.build import followers
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.limits.rates import rate_headers
from weighbridge.fleet.limits.spare import SpareRoom
from weighbridge.fleet.on_demand.residents import Residents
from weighbridge.fleet.pool import Pool
from weighbridge.routes.budget import Ledger
from weighbridge.routes.ledger.keeper import UsageKeeper
from weighbridge.routes.settings import RoutesSettings
from weighbridge.secret import Secret
from weighbridge.server.endpoint import Audience, ChatTokenizer, Endpoint, NoTokenizer
from weighbridge.server.gateway.admin import Admin
from weighbridge.server.gateway.behind import asked_behind
from weighbridge.server.gateway.changes import ChangeLog, made_again
from weighbridge.server.gateway.metrics import GatewayMetrics, PeersCollector
from weighbridge.server.gateway.on_demand import ModelAdmin, ResidentsCollector, status_of
from weighbridge.server.gateway.reload import Reloading, Source
from weighbridge.server.gateway.sharing import seeds_of, shared_with, streams_of
from weighbridge.server.gateway.tenant_admin import TenantAdmin
from weighbridge.server.gateway.tenant_changes import TenantChanges
from weighbridge.server.gateway.tenants import MadeKey, Tenants, hash_text
from weighbridge.server.tracing.tracer import Tracer
from weighbridge.server.watching.gateway_view import GatewayView
from weighbridge.wire.ask import Ask
from weighbridge.wire.identity.callers import Callers
from weighbridge.wire.journey import HeaderList, Journey
from weighbridge.wire.keys import ApiKey, Keys, digest_of
from weighbridge.wire.prompts.care import PromptCare

log = logging.getLogger("weighbridge.fleet")


def _kept_in_memory(gateway: Gateway) -> UsageKeeper:
    keeper = UsageKeeper(Ledger(None))
    gateway.on_charged.append(keeper.charged)
    gateway.on_close.append(keeper.close)
    return keeper


def tenants_of(spec: FleetSpec, changes: ChangeLog) -> Tenants:
    """The tenants of a configuration, with what was changed since. Raises BadInput for a hash that is none."""
    digests = {
        one.name: [MadeKey(digest_of(key.secret).hex(), key.expires) for key in one.keys]
        for one in spec.tenants
    }
    return Tenants(spec.tenants, digests, changes.tenants)


def keys_of(spec: FleetSpec, tenants: Tenants) -> Keys:
    """The keys that are let in: those of the configuration and those made since, less those revoked."""
    configured = [ApiKey(one.name, key.secret, key.expires) for one in spec.tenants for key in one.keys]
    made = [ApiKey(tenant, Secret(hash_text(key.digest)), key.expires) for tenant, key in tenants.made_keys()]
    keys = Keys([*configured, *made], spec.admin_key)
    for digest in tenants.standing.revoked:
        keys.revoke(bytes.fromhex(digest))
    return keys


class GatewayService:
    """A gateway as the door sees it. It starts and closes with the door."""

    def __init__(
        self,
        gateway: Gateway,
        metrics: GatewayMetrics,
        usage: UsageKeeper | None = None,
        residents: Residents | None = None,
        source: Source | None = None,
        routes: RoutesSettings | None = None,
    ) -> None:
        """`usage`: what keeps all that is used; None: it is kept in memory. `residents`: models that are loaded on
        demand, if there are some. `source`: reads the configuration anew; `routes`: those that it had at the start."""
        spec = gateway.spec
        self._residents = residents
        self.usage = usage if usage is not None else _kept_in_memory(gateway)
        self.gateway = gateway
        self.tickets = gateway.tickets
        self.access = self.keeping = spec
        self.max_body = spec.max_body
        self.tracer: Tracer | None = None
        self.seen = GatewayView(gateway)
        self.changes = ChangeLog(spec.changes_file)
        self.tenants = tenants_of(spec, self.changes)
        priorities = {one.name: one.priority for one in spec.tenants if one.priority is not None}
        self.prompts = PromptCare(spec.prompt_rules)
        self.callers = Callers(keys_of(spec, self.tenants), spec, priorities)
        self.peers = shared_with(gateway, self.changes)
        self._tenant_changes = TenantChanges(
            gateway, self.callers.keys, self.changes, self.tenants, self.peers
        )
        self.stream_store = streams_of(spec, self.peers)
        if self.peers is not None:
            metrics.register(PeersCollector(self.peers))
        self.reloading = (
            Reloading(gateway, self.changes, self.peers, source, routes or RoutesSettings())
            if source is not None
            else None
        )
        self._kept = frozenset(
            name for one in spec.models if one.keep_streams for name in (one.name, *one.aliases)
        )
        self._followers = followers(gateway)
        self._metrics = metrics
        if residents is not None:
            metrics.register(ResidentsCollector(residents))
        self._created = int(time.time())

    async def start(self) -> None:
        await self.gateway.start()
        if self._residents is not None:
            await self._residents.start()
        for sentence in made_again(self.gateway, self.changes.standing):
            log.warning(sentence)
        self._tenant_changes.start()
        for one in self._followers:
            one.start()
        if self.peers is not None:
            await self.peers.start(seeds_of(self.gateway, self.changes))

    async def stop(self) -> None:
        if self._residents is not None:
            await self._residents.close()
        for one in self._followers:
            await one.close()
        if self.peers is not None:
            await self.peers.stop()
        await self.gateway.close()

    async def admit(self, ask: Ask) -> Journey:
        return await self.gateway.admit(ask)

    def limit_headers(self, tenant: str) -> HeaderList:
        return rate_headers(self.gateway.rates(tenant))

    # -- what the door asks beside requests ------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        return [self.model(name) for name in self._names()]

    def model(self, name: str) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "weighbridge",
        }
        if name in self.gateway.routes:
            return fields
        pool = self.gateway.pool(name)
        longest = pool.longest_context()
        if self._residents is not None and pool.on_demand is not None:
            fields["status"] = status_of(
                self._residents.occupancy.model(pool.spec.name), self.gateway.clock()
            )
        return fields if longest is None else {**fields, "max_model_len": longest}

    def _names(self) -> list[str]:
        named = [pool.spec for pool in self.gateway.pools.values() if not pool.spec.only_routes]
        return [*(name for spec in named for name in (spec.name, *spec.aliases)), *self.gateway.routes]

    def health(self) -> tuple[int, dict[str, Any]]:
        """200 while every model and route can be served; load balancers in front stop sending otherwise."""
        gateway = self.gateway
        routes = {name: route.health() for name, route in gateway.routes.items()}
        more: dict[str, Any] = {"routes": routes} if routes else {}
        if self.peers is not None:
            more["shared"] = self.peers.told()
        if gateway.draining:
            return 503, {"status": "draining", **more}
        if not gateway.ready:
            return 503, {"status": "no replica is up for some model", **more}
        if not all(any(places.values()) for places in routes.values()):
            return 503, {"status": "no place is up for some route", **more}
        return 200, {"status": "ok", **more}

    def load(self, in_full: bool) -> dict[str, Any]:
        return self.gateway.load(in_full)

    async def exposition(self) -> bytes:
        return await self._metrics.exposition()

    def tokenizer(self, model: str) -> tuple[ChatTokenizer, int | None]:
        pool = self._counting(model)
        if pool.tokenizer is None:
            raise NoTokenizer(f"the gateway has no tokenizer of {pool.spec.name!r}")
        # What loads tokenizers for weighing gives them whole.
        return cast(ChatTokenizer, pool.tokenizer), pool.longest_context()

    async def asked_behind(self, path: str, model: str, fields: Mapping[str, Any]) -> bytes:
        pool = self._counting(model)
        if model in self.gateway.routes and pool.spec.placement != EDGE:
            message = (
                f"the prompts of {model!r} are not sent beyond the edge to be counted: nobody looks into them"
            )
            raise NoTokenizer(message)
        return await asked_behind(pool, path, fields)

    def _counting(self, model: str) -> Pool:
        """The model whose tokens are counted: of a route, the one that sees every prompt, which none leaves for."""
        route = self.gateway.routes.get(model)
        return self.gateway.pool(model) if route is None else self.gateway.pools[route.counted_as]

    @property
    def draining(self) -> bool:
        return self.gateway.draining

    def spare_room(self, model: str) -> SpareRoom:
        return self.gateway.spare_room(model, self.keeping.batch_lines)

    async def touch(self, model: str, keep_alive: float | None) -> None:
        if self._residents is None or model in self.gateway.routes:
            return
        pool = self.gateway.pool(model)
        if pool.on_demand is not None:
            await self._residents.touch(pool.spec.name, keep_alive, self.gateway.spec.queue.max_wait)

    def keeps_streams(self, model: str) -> bool:
        return model in self._kept

    def may_write(self, model: str, restricted: bool) -> bool:
        route = self.gateway.routes.get(model)
        if route is None and not model:  # whoever names none may mean any
            return all(one.may_write(restricted) for one in self.gateway.routes.values())
        return route is None or route.may_write(restricted)

    def answered(self, path: str, status: int) -> None:
        self._metrics.answered(path, status)
        self.seen.answered(path, status)

    def stalled(self, thread: str, seconds: float) -> None:
        self._metrics.stalls.labels(thread).observe(seconds)

    def watched(self) -> dict[str, Callable[[], Turn | None]]:
        return {}

    def endpoints(self) -> list[Endpoint]:
        admin = Admin(self.gateway, self.callers.keys, self.changes, self.peers, self.reloading)
        models = ModelAdmin(self.gateway, self._residents)
        return [
            *models.endpoints(),
            Endpoint("GET", "/admin/changes", admin.changes, Audience.ALL),
            Endpoint("POST", "/admin/reload", admin.reload, Audience.ALL),
            Endpoint("GET", "/admin/replicas", admin.replicas, Audience.ALL),
            Endpoint("POST", "/admin/replicas", admin.add, Audience.ALL),
            Endpoint("DELETE", "/admin/replicas/{replica}", admin.remove, Audience.ALL),
            Endpoint("POST", "/admin/replicas/{replica}/drain", admin.drain, Audience.ALL),
            Endpoint("POST", "/admin/replicas/{replica}/undrain", admin.undrain, Audience.ALL),
            *TenantAdmin(self.gateway, self.callers.keys, self._tenant_changes, self.tenants).endpoints(),
        ]
