"""A gateway as its console sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.fleet.desk import Standing
from weighbridge.fleet.gateway import Gateway
from weighbridge.server.watching.history import Iterations, ServerHistory
from weighbridge.server.watching.view import KnownFleet
from weighbridge.ticket import Ticket
from weighbridge.wire.journey import RouteLike
from weighbridge.wire.protocols import PROTOCOLS

#: What a place of a route has answered, spent and saved, in the beginning.
_NOTHING = {"requests": 0, "usd": 0.0, "saved_usd": 0.0}
#: What a replica is taken to hold that does not say it.
UNTOLD_KV_TOKENS, UNTOLD_CONTEXT = 131_072, 32_768
_ASKED = frozenset(protocol.path for protocol in PROTOCOLS)


class GatewayView:
    """Hears the finished requests of a gateway; the rest is read when it is asked."""

    def __init__(self, gateway: Gateway) -> None:
        self.iterations: Iterations | None = None
        self.history = ServerHistory()
        self._gateway = gateway
        self._by_route: dict[
            str, dict[str, dict[str, float]]
        ] = {}  # by route and place: bounded by configuration
        gateway.on_finished.append(self._finished)

    @property
    def kind(self) -> str:
        only = all(pool.spec.only_routes for pool in self._gateway.pools.values())
        return "routes" if only and self._gateway.routes else "gateway"

    @property
    def has_experts(self) -> bool:
        return False  # its replicas have, each its own

    def models(self) -> list[str]:
        return list(self._gateway.pools)

    def waiting(self) -> Mapping[tuple[int, str], tuple[int, int]]:
        found: dict[tuple[int, str], tuple[int, int]] = {}
        for pool in self._gateway.pools.values():
            for key, backlog in pool.dispatcher.queue.by_class().items():
                requests, tokens = found.get(key, (0, 0))
                found[key] = requests + backlog.requests, tokens + backlog.tokens
        return found

    def levels(self) -> Mapping[str, float]:
        return self._gateway.load(in_full=False)

    def produced(self) -> int:
        members = [member for pool in self._gateway.pools.values() for member in pool.members.values()]
        return sum([member.counts.output_tokens + member.state.produced for member in members])

    def routes(self) -> list[dict[str, Any]]:
        return [self._told(name, route) for name, route in self._gateway.routes.items()]

    def _told(self, name: str, route: RouteLike) -> dict[str, Any]:
        told = route.told()
        sums = self._by_route.get(name, {})
        places = [{**place, **sums.get(place["name"], _NOTHING)} for place in told["places"]]
        saved = sum(one["saved_usd"] for one in sums.values())
        return {"name": name, **told, "places": places, "saved_usd": round(saved, 9)}

    def _finished(self, ticket: Ticket) -> None:
        self.history.finished(ticket)
        if ticket.legs and ticket.model in self._gateway.routes:
            sums = self._by_route.setdefault(ticket.model, {})
            for leg in ticket.legs:
                sums.setdefault(leg.place, dict(_NOTHING))["usd"] += leg.usd
            answered = sums[ticket.legs[-1].place]
            answered["requests"] += 1
            if ticket.counterfactual_usd is not None:
                answered["saved_usd"] += ticket.counterfactual_usd - ticket.cost_usd

    def known(self, model: str) -> KnownFleet:
        pools, now = self._gateway.pools, self._gateway.clock()
        pool = pools.get(model) or self._gateway.pool(model)
        replicas, skipped = [], {}
        for name, member in pool.members.items():
            cost, capacity = member.state.step_cost, member.state.capacity
            if member.standing(now) is not Standing.UP:
                skipped[name] = f"it is {member.standing(now).value}"
            elif cost is None:
                skipped[name] = "its speed is not known yet"
            else:
                replicas.append(
                    {
                        "cost": cost.as_dict(),
                        "kv_tokens": capacity.kv_tokens or UNTOLD_KV_TOKENS,
                        "max_sequences": capacity.max_sequences,
                        "max_batch_tokens": capacity.max_batch_tokens,
                        "max_model_len": capacity.max_model_len or UNTOLD_CONTEXT,
                        "usd_per_hour": capacity.price.usd_per_hour,
                    }
                )
        if not replicas:
            why = "; ".join(f"{name}: {words}" for name, words in skipped.items()) or "it has no replicas"
            raise BadInput(f"model {pool.spec.name!r} cannot be simulated: {why}", param="model")
        return KnownFleet(pool.spec.name, pool.spec.policy, replicas, skipped)

    def answered(self, path: str, status: int) -> None:
        if path in _ASKED:
            self.history.answered(status)
