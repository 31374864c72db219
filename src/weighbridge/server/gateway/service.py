"""A gateway as a service: its models and routes, its replicas, its metrics."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Any, cast

from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway
from weighbridge.server.endpoint import Endpoint, TextTokenizer
from weighbridge.server.gateway.admin import Admin
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.wire.ask import Ask, Placement
from weighbridge.wire.errors import ApiError
from weighbridge.wire.journey import Journey
from weighbridge.wire.keys import ApiKey, Keys


class GatewayService:
    """A gateway as the door sees it. It starts and closes with the door."""

    def __init__(self, gateway: Gateway, metrics: GatewayMetrics) -> None:
        spec = gateway.spec
        self.gateway = gateway
        self.tickets = gateway.tickets
        self.max_body = spec.max_body
        self.page = (files("weighbridge.server.gateway") / "console.html").read_text(encoding="utf-8")
        keys = [
            ApiKey(tenant.name, key.secret, key.expires) for tenant in spec.tenants for key in tenant.keys
        ]
        self.keys = Keys(keys, spec.admin_key)
        self._metrics = metrics
        self._created = int(time.time())

    async def start(self) -> None:
        await self.gateway.start()

    async def stop(self) -> None:
        await self.gateway.close()

    async def admit(self, ask: Ask) -> Journey:
        if ask.placement is Placement.ONLY_CLOUD and ask.model not in self.gateway.routes:
            message = "placement: this gateway chooses by load alone; use only_edge or prefer_edge"
            raise ApiError(400, message, param="weighbridge")
        return await self.gateway.admit(ask)

    # -- what the door asks beside requests ------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        return [self.model(name) for name in self._names()]

    def model(self, name: str) -> dict[str, Any]:
        fields = {"id": name, "object": "model", "created": self._created, "owned_by": "weighbridge"}
        if name in self.gateway.routes:
            return fields
        longest = self.gateway.pool(name).longest_context()
        return fields if longest is None else {**fields, "max_model_len": longest}

    def _names(self) -> list[str]:
        pools = self.gateway.pools.values()
        return [name for pool in pools for name in (pool.spec.name, *pool.spec.aliases)] + list(
            self.gateway.routes
        )

    def health(self) -> tuple[int, str]:
        """200 while every model can be served; load balancers in front stop sending otherwise."""
        if self.gateway.draining:
            return 503, "draining"
        return (200, "ok") if self.gateway.ready else (503, "no replica is up for some model")

    def load(self) -> dict[str, Any]:
        return self.gateway.load()

    def exposition(self) -> bytes:
        return self._metrics.exposition()

    def tokenizer(self, model: str) -> tuple[TextTokenizer, int | None]:
        if model in self.gateway.routes:
            raise BadInput(f"{model!r} is a route between models; name one of them", param="model")
        pool = self.gateway.pool(model)
        if pool.tokenizer is None:
            message = f"the gateway has no tokenizer of {pool.spec.name!r}; set `tokenizer:` of the model"
            raise BadInput(message, param="model")
        # What loads tokenizers for weighing gives them whole.
        return cast(TextTokenizer, pool.tokenizer), pool.longest_context()

    def answered(self, path: str, status: int) -> None:
        self._metrics.answered(path, status)

    def endpoints(self) -> list[Endpoint]:
        admin = Admin(self.gateway, self.keys)
        return [
            Endpoint("GET", "/admin/replicas", admin.replicas, open_to_all=True),
            Endpoint("POST", "/admin/replicas", admin.add, open_to_all=True),
            Endpoint("DELETE", "/admin/replicas/{replica}", admin.remove, open_to_all=True),
            Endpoint("POST", "/admin/replicas/{replica}/drain", admin.drain, open_to_all=True),
            Endpoint("POST", "/admin/replicas/{replica}/undrain", admin.undrain, open_to_all=True),
        ]
