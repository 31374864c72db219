"""A place of a route: a model of the same gateway, what is known of it, and how it is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec

from weighbridge.cost.price import FREE, Price
from weighbridge.errors import WeighbridgeError, wording, words_of
from weighbridge.fleet.abilities.ability import Ability
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.desk import Standing
from weighbridge.fleet.gateway import Gateway, arrival_of, ticket_of
from weighbridge.fleet.journey import FleetJourney
from weighbridge.fleet.member import Member
from weighbridge.routes.errors import PlaceFailed
from weighbridge.routes.policy import Level, PlaceFacts
from weighbridge.routes.request import RouteRequest
from weighbridge.routes.settings import PlaceSettings
from weighbridge.wire.ask import Ask, Fields, new_id
from weighbridge.wire.protocols import chat, embeddings

#: Replicas that are started here, or as actors of the fleet's own cluster.
OWN_KINDS = frozenset(("process", "engine", "ray"))

#: What requests need, by the words of routes.
_WORDS = {
    "tools": Ability.TOOLS,
    "forced_tools": Ability.FORCED_TOOLS,
    "images": Ability.VISION,
    "audio": Ability.AUDIO,
}

_encode = msgspec.json.encode


class Place:
    """Everything it says is read from the model's pool at that moment; replicas may come and go.

    Raises BadInput for a model that is not there.
    """

    def __init__(self, settings: PlaceSettings, gateway: Gateway, route: str) -> None:
        self.name = settings.name
        self.level = settings.level
        self.settings = settings
        self.latency = Latency()
        self.gateway = gateway
        self.pool = gateway.pools[settings.model]
        self.route = route

    @property
    def model(self) -> str:
        return self.pool.spec.name

    @property
    def price(self) -> Price:
        """A bound: no replica charges more, in any of its rates."""
        members = self.pool.members.values()
        prices = {m.spec.price for m in members} or {replica.price for replica in self.pool.spec.replicas}
        return highest(prices)

    @property
    def context_tokens(self) -> int | None:
        longest = self.pool.longest_context()
        limits = [limit for limit in (self.settings.context_tokens, longest) if limit is not None]
        return min(limits, default=None)

    @property
    def healthy(self) -> bool:
        """Whether any replica may be sent something now, or is started for it; whether it has room is the queue's to
        wait for."""
        on_demand = self.pool.on_demand
        return bool(self._usable()) or (on_demand is not None and on_demand.is_hopeful)

    @property
    def rest_seconds(self) -> float | None:
        """Seconds until the first replica is back, where all that could answer asked to be left alone."""
        if self.healthy:
            return None
        now = self.gateway.clock()
        members = self.pool.members.values()
        return min((m.held_until - now for m in members if m.standing(now) is Standing.HELD), default=None)

    def expected_seconds(self, prompt_tokens: int, output_tokens: float) -> float | None:
        """Seconds until an answer is complete, on the replica that is quickest; None when nothing is known yet.

        Where no replica tells its speed, as answers have taken so far; with the load of a model that is not there yet.
        """
        now = self.gateway.clock()
        predicted = [_answer_seconds(member, prompt_tokens, output_tokens, now) for member in self._usable()]
        times = [seconds for seconds in predicted if seconds is not None]
        if times:
            return self._waiting_seconds() + min(times)
        learned, on_demand = self.latency.expected(output_tokens), self.pool.on_demand
        return learned if learned is None or on_demand is None else learned + on_demand.expected_wait_s

    @property
    def abilities(self) -> frozenset[str] | None:
        """What it is said to have; else everything but what all of its replicas are known to lack. None: everything."""
        stated = self.settings.abilities
        if stated is not None:
            return stated | {"forced_tools"} if "tools" in stated else stated
        lacking = {word for word, ability in _WORDS.items() if self.pool.all_lack(frozenset({ability}))}
        return frozenset({*_WORDS, "files"} - lacking) if lacking else None

    async def facts(self, request: RouteRequest, fields: Fields) -> PlaceFacts:
        """What is known of the place for a request that is sent there as `fields`."""
        weight, _ = await self.pool.scales.weigh(self.ask(request, fields))
        return PlaceFacts(
            self.name,
            self.level,
            healthy=self.healthy,
            rest_seconds=self.rest_seconds,
            context_tokens=self.context_tokens,
            abilities=self.abilities,
            tokens=weight.prompt_tokens + (request.ask.max_tokens or 1),
            seconds=self.expected_seconds(weight.prompt_tokens, weight.output.mean),
            usd=self.max_usd(request),
        )

    def max_usd(self, request: RouteRequest) -> float:
        """A bound on what an answer costs: no prompt has more tokens than bytes, no answer more than it may have."""
        longest = (request.ask.max_tokens or self.settings.max_tokens) * request.ask.choices
        return self.price.at_most(request.max_prompt_tokens, longest)

    def ask(self, request: RouteRequest, fields: Fields, deadline: float | None = None) -> Ask:
        """The request as the gateway is asked for this place's model. Replicas beyond the boundary are told neither
        whose it is nor how its client traces it."""
        own = dict(fields)
        asked = request.ask
        limit = asked.max_tokens
        if limit is None:
            limit = self.settings.max_tokens
            own["max_tokens"] = msgspec.Raw(_encode(limit))
        own["model"], own["stream"] = msgspec.Raw(_encode(self.model)), _TRUE
        is_edge = self.level is Level.EDGE
        return Ask(
            id=new_id(),
            path=chat.PATH,
            fields=own,
            model=self.model,
            tenant=asked.tenant,
            stream=True,
            max_tokens=limit,
            choices=asked.choices,
            priority=asked.priority,
            deadline=deadline,
            route=self.route,
            session=asked.session if is_edge else "",
            speculative=asked.speculative if is_edge else False,
            anonymous=not is_edge,
            cache_salt=asked.cache_salt,
            headers={**asked.headers, **_tenant_header(asked.tenant)} if is_edge else {},
        )

    # -- the state of a prompt -------------------------------------------------------------------------

    @property
    def elsewhere(self) -> str:
        """Why its engine may not be asked for the state of a prompt: it is not on this machine. Empty: it may.

        Asked of the replicas that are there now, or, before there are any, of those that are configured.
        """
        members = self.pool.members.values()
        return foreign([member.spec for member in members] or self.pool.spec.replicas)

    async def embeddings(
        self, chat_body: Mapping[str, Any], timeout: float, tenant: str, priority: int
    ) -> Any:
        """What `/v1/embeddings` answers to a chat, decoded. Raises PlaceFailed, and where it is elsewhere.

        The replica is the one that the policy chooses for this prompt, which then has it in its prefix cache, so that
        the chat follows it there. It takes its place in the queue, but none of the tenant's limits: the request it
        belongs to has.
        """
        if self.elsewhere:
            raise PlaceFailed(f"{self.name}: {self.elsewhere}")
        body = {**chat_body, "model": self.model}
        ask = Ask(
            id=new_id(),
            path=embeddings.PATH,
            fields={name: msgspec.Raw(_encode(value)) for name, value in body.items()},
            model=self.model,
            tenant=tenant,
            priority=priority,
            deadline=self.gateway.clock() + timeout,
            route=self.route,
            headers=_tenant_header(tenant),
            cache_salt=chat_body.get("cache_salt", ""),
        )
        journey: FleetJourney | None = None
        try:
            async with asyncio.timeout(timeout):
                journey = await self._look(ask)
                opened = await journey.open()
            answer = (await journey.whole()).body
        except (WeighbridgeError, TimeoutError) as error:
            raise PlaceFailed(wording("{}: {}", self.name, words_of(error) or "no answer in time")) from error
        finally:
            if journey is not None:  # shielded: the place on the replica is given back whoever is cancelled
                await asyncio.shield(asyncio.ensure_future(journey.close()))
        if opened.status >= 400:
            raise PlaceFailed(f"{self.name} answered {opened.status}", status=opened.status)
        try:
            return msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise PlaceFailed(f"{self.name} sent an answer that is no JSON") from None

    async def _look(self, ask: Ask) -> FleetJourney:
        """As the gateway makes a journey, without limits and without a ticket in its store."""
        weight, weighed = await self.pool.scales.weigh(replace(ask, path=chat.PATH, max_tokens=1))
        arrival = arrival_of(ask, weight, weighed.chain, self.gateway.clock())
        return FleetJourney(self.pool, ask, arrival, weighed, ticket_of(ask, weight, time.time()))

    # -- inside ----------------------------------------------------------------------------------------

    def _usable(self) -> list[Member]:
        now = self.gateway.clock()
        return [
            member
            for member in self.pool.members.values()
            if member.usable(now) and member.state.healthy and not member.state.tells_draining
        ]

    def _waiting_seconds(self) -> float:
        """Seconds in which the replicas work off what waits in the gateway."""
        dispatcher = self.pool.dispatcher
        return (dispatcher.work_seconds(dispatcher.queue.tokens) or 0.0) if len(dispatcher.queue) else 0.0


_TRUE = msgspec.Raw(b"true")


def _tenant_header(tenant: str) -> dict[str, str]:
    return {"x-weighbridge-tenant": tenant} if tenant.isascii() and tenant.isprintable() else {}


def _answer_seconds(member: Member, prompt_tokens: int, output_tokens: float, now: float) -> float | None:
    first = member.state.first_token_seconds(prompt_tokens, 0, now)
    return member.state.last_token_seconds(first, prompt_tokens, output_tokens)


def highest(prices: set[Price]) -> Price:
    """The highest of each rate: a bound for all of `prices`."""
    if len(prices) <= 1:
        return next(iter(prices), FREE)

    def rate(of_input: float, own: float | None) -> float:
        return of_input if own is None else own

    return Price(
        max(price.input_usd_per_million for price in prices),
        max(price.output_usd_per_million for price in prices),
        max(rate(price.input_usd_per_million, price.cached_usd_per_million) for price in prices),
        max(price.usd_per_hour for price in prices),
        None
        if all(price.cache_write_usd_per_million is None for price in prices)
        else max(rate(price.input_usd_per_million, price.cache_write_usd_per_million) for price in prices),
    )


def foreign(replicas: Iterable[ReplicaSpec]) -> str:
    """Why these may not be asked for the state of a prompt; empty where all are our engines, on this machine."""
    for replica in replicas:
        if replica.kind in OWN_KINDS:
            continue
        if not is_here(replica.target):
            return f"its replica {replica.name!r} ({replica.target}) is not on this machine"
        if replica.dialect != "weighbridge":
            return f"its replica {replica.name!r} is no Weighbridge engine; write `dialect: weighbridge` if it is one"
    return ""


def is_here(url: str) -> bool:
    """Whether a URL is of this machine itself: `localhost`, or a loopback address."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


# -- how long answers have taken, where no replica tells its speed ---------------------------------------


@dataclass(slots=True)
class Smoothed:
    """Exponentially smoothed mean and absolute deviation, as TCP estimates round trips (Jacobson 1988)."""

    gain: float = 0.1
    mean: float = 0.0
    deviation: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        gain = max(self.gain, 1.0 / self.count)
        error = value - self.mean
        self.mean += gain * error
        self.deviation += gain * (abs(error) - self.deviation)

    def upper(self, deviations: float = 2.0) -> float:
        """A cautious estimate: about the 95th percentile where values are normal."""
        return self.mean + deviations * self.deviation


@dataclass(slots=True)
class Latency:
    """Time to first token and time per further token of one place, in seconds."""

    first: Smoothed = field(default_factory=Smoothed)
    per_token: Smoothed = field(default_factory=Smoothed)

    def observe(self, first_seconds: float, rest_seconds: float, tokens: int) -> None:
        """Learn from a finished answer: seconds to its first token, then `rest_seconds` for the others."""
        self.first.add(first_seconds)
        if tokens > 1:
            self.per_token.add(rest_seconds / (tokens - 1))

    def expected(self, output_tokens: float) -> float | None:
        """Seconds until an answer of `output_tokens` is complete; None before anything was observed."""
        if not self.first.count:
            return None
        return self.first.upper() + max(output_tokens - 1, 0) * self.per_token.mean
