"""One endpoint over many replicas: models by name, limits by tenant, one journey per request."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.weight import Weight
from weighbridge.engine.memory.prefix import Digest
from weighbridge.errors import BadInput, Draining, Refused, UnknownModel
from weighbridge.fleet.api import Arrival
from weighbridge.fleet.autoscale import Autoscale
from weighbridge.fleet.config.spec import FleetSpec, ReplicaSpec
from weighbridge.fleet.journey import FleetJourney
from weighbridge.fleet.limits.shared import SharedLimits
from weighbridge.fleet.limits.tenant import Limiter
from weighbridge.fleet.load.weigher import Counter
from weighbridge.fleet.member import Member, Standing
from weighbridge.fleet.pool import Build, Pool, Rules
from weighbridge.ticket import Ticket, TicketStore
from weighbridge.wire.ask import Ask
from weighbridge.wire.journey import Journey, RouteLike

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two looks at who waits in vain.
TICK = 0.05


class Gateway:
    """`start` on the event loop that serves; `admit` each request; `drain`, then `close`.

    `tokenizers` are those of the models by name; `on_finished` hears every ticket and the pool it belongs to.
    """

    def __init__(
        self,
        spec: FleetSpec,
        build: Build,
        tokenizers: Mapping[str, Counter] | None = None,
        *,
        tickets: TicketStore | None = None,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self.spec = spec
        self.tickets = tickets if tickets is not None else TicketStore(path=spec.tickets)
        self.draining = False
        self.open_journeys = 0
        self.on_finished: list[Callable[[Ticket, Pool], None]] = []
        self.clock = clock
        self.routes: dict[str, RouteLike] = {}  # between models, addressed as models themselves
        self._lengths = OutputLengths()
        self._priorities = {tenant.name: tenant.priority for tenant in spec.tenants}
        self.limiter = Limiter({tenant.name: tenant.limits for tenant in spec.tenants}, spec.default_limits)
        shared = spec.shared_limits
        self.shared_limits = SharedLimits(shared, self.limiter, clock) if shared is not None else None
        rules = Rules(spec.queue, spec.health, spec.retry, spec.breaker)
        rng = random.Random(seed)
        self.pools: dict[str, Pool] = {}
        self._names: dict[str, Pool] = {}
        for model in spec.models:
            tokenizer = (tokenizers or {}).get(model.name)
            pool = Pool(model, rules, self._lengths, build, tokenizer, rng, clock)
            self.pools[model.name] = pool
            for name in (model.name, *model.aliases):
                self._names[name] = pool
        self._scalers: list[Autoscale] = []
        self._ticking: asyncio.Task[None] | None = None

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Add the configured replicas; they are used as soon as they answer."""
        for pool in self.pools.values():
            for replica in pool.spec.replicas:
                for one in expanded(replica):
                    pool.add(one)
                if replica.kind == "ray" and replica.ray.scaling.most > replica.ray.scaling.least:
                    self._scalers.append(Autoscale(pool, replica))
        self._ticking = asyncio.create_task(self._tick())

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests, finish those admitted; False when `timeout` seconds were not enough."""
        self.draining = True
        until = self.clock() + timeout
        while self.open_journeys:
            if self.clock() >= until:
                return False
            await asyncio.sleep(0.02)
        return True

    async def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        for route in self.routes.values():
            await route.close()
        for pool in self.pools.values():
            pool.dispatcher.refuse_all(Draining("the gateway is going down; try another one"))
            await pool.close()
        if self.shared_limits is not None:
            await self.shared_limits.close()
        self.tickets.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for pool in self.pools.values():
                try:
                    pool.dispatcher.tick()
                except Exception:
                    log.exception("looking after the queue of %s failed", pool.spec.name)
            for scaler in self._scalers:
                scaler.step()

    # -- requests --------------------------------------------------------------------------------------

    def pool(self, name: str) -> Pool:
        """The pool behind a model's name or alias; with one model only, an empty name will do."""
        pool = self._names.get(name)
        if pool is None and not name and len(self.pools) == 1:
            pool = next(iter(self.pools.values()))
        if pool is None:
            known = ", ".join(self._names)
            if not name:
                raise BadInput(f"the field 'model' is required; this gateway has {known}", param="model")
            raise UnknownModel(
                f"the model {name!r} does not exist here; this gateway has {known}", param="model"
            )
        return pool

    async def admit(self, ask: Ask) -> Journey:
        """Accept a request for a model or a route. Raises Refused or BadInput; the caller closes the journey."""
        route = self.routes.get(ask.model)
        if route is None:
            return await self.run(ask)
        if self.draining:
            raise Draining("the gateway is shutting down and takes no new requests; try another one")
        return await route.admit(ask)

    async def run(self, ask: Ask, *, accepted: bool = False) -> FleetJourney:
        """Weigh a request for a model and reserve it in its tenant's limits. Raises like `admit`.

        `accepted`: it belongs to a request that was let in before, so draining does not stop it.
        """
        if self.draining and not accepted:
            raise Draining("the gateway is shutting down and takes no new requests; try another one")
        pool = self.pool(ask.model)
        ask.model = pool.spec.name
        ask.priority = max(ask.priority, self._priorities.get(ask.tenant, ask.priority))
        arrived, began = self.clock(), time.time()
        weight, weighed = await pool.scales.weigh(ask)
        if self.tickets.get(ask.id) is not None or self.limiter.holds(ask.id):
            ask.id = uuid.uuid4().hex  # a client proposed an id that was used before
        ticket = ticket_of(ask, weight, weighed.hash, began)
        self.tickets.add(ticket)
        try:
            await self._reserve(pool, ask, weight)
        except (Refused, BadInput) as error:
            self._turned_away(ticket, pool, "refused", str(error))
            raise
        except asyncio.CancelledError:
            self._turned_away(ticket, pool, "abort")
            raise
        self.open_journeys += 1
        arrival = arrival_of(ask, weight, weighed.chain, arrived)
        return FleetJourney(pool, ask, arrival, weighed, ticket, self._settled)

    async def _reserve(self, pool: Pool, ask: Ask, weight: Weight) -> None:
        """The most it may use where the client bounds it, else what nine of ten outputs do not exceed."""
        each = weight.max_tokens if ask.max_tokens is not None else weight.output.p90
        output = weight.choices * each
        usd = pool.dearest(weight.prompt_tokens, output)
        tokens = weight.prompt_tokens + output
        self.limiter.reserve(ask.tenant, ask.id, tokens, usd, self.clock())
        if self.shared_limits is not None:
            try:
                await self.shared_limits.reserve(ask.tenant, ask.id, tokens, usd)
            except BaseException:
                self.limiter.withdraw(ask.id)
                raise

    def _turned_away(self, ticket: Ticket, pool: Pool, reason: str, error: str | None = None) -> None:
        ticket.finished, ticket.finish_reason, ticket.error = time.time(), reason, error
        self._tell(ticket, pool)

    def _settled(self, journey: FleetJourney) -> None:
        """A journey has ended: its place among the open ones, its limits and its ticket are settled."""
        ticket = journey.ticket
        self.open_journeys -= 1
        used = ticket.output_tokens + (journey.prompt_tokens if ticket.attempts else 0)
        self.limiter.settle(ticket.id, used, ticket.cost_usd, self.clock())
        if self.shared_limits is not None:
            self.shared_limits.settle(ticket.tenant, ticket.id, used, ticket.cost_usd)
        self._tell(ticket, journey.pool)

    def _tell(self, ticket: Ticket, pool: Pool) -> None:
        self.tickets.finish(ticket)
        for heard in self.on_finished:
            heard(ticket, pool)

    # -- what is seen from outside ---------------------------------------------------------------------

    def member(self, name: str) -> tuple[Pool, Member]:
        """A replica by name, whatever its model. Raises BadInput."""
        for pool in self.pools.values():
            if name in pool.members:
                return pool, pool.members[name]
        known = ", ".join(name for pool in self.pools.values() for name in pool.members)
        raise BadInput(f"there is no replica {name!r}; there are: {known or 'none'}")

    @property
    def ready(self) -> bool:
        """Whether every model has a replica that is up, or that the next request would try."""
        now = self.clock()
        return all(
            any(_takes_requests(member, now) for member in pool.members.values())
            for pool in self.pools.values()
        )

    def load(self) -> dict[str, Any]:
        """The whole fleet, as `/v1/load` shows it; the sums on top are what a replica reports of itself, so a
        gateway can stand behind another."""
        now = self.clock()
        pools = {name: _pool_load(pool, now) for name, pool in self.pools.items()}
        members = [member for pool in self.pools.values() for member in pool.members.values()]
        total = sum(m.state.capacity.kv_tokens or 0 for m in members)
        return {
            "queued_requests": sum(one["queued_requests"] for one in pools.values()),
            "running_requests": sum(m.state.requests for m in members),
            "queued_tokens": sum(one["queued_tokens"] for one in pools.values()),
            "running_tokens": round(sum(m.state.outstanding_tokens for m in members)),
            "kv_blocks_total": total,
            "kv_blocks_used": min(sum(m.state.kv_tokens for m in members), total),
            "block_size": 1,
            "draining": self.draining,
            "models": pools,
        }


def _takes_requests(member: Member, now: float) -> bool:
    standing = member.standing(now)
    return standing is Standing.UP or (standing is Standing.OPEN and member.usable(now))


def arrival_of(ask: Ask, weight: Weight, chain: tuple[Digest, ...], arrived: float) -> Arrival:
    """What policies and queue see of a request. `arrived`: on the gateway's clock."""
    return Arrival(
        id=ask.id,
        model=ask.model,
        weight=weight,
        arrived=arrived,
        tenant=ask.tenant,
        route=ask.route,
        priority=ask.priority,
        deadline=ask.deadline,
        chain=chain,
        session=ask.session,
    )


def ticket_of(ask: Ask, weight: Weight, prompt_hash: str, began: float) -> Ticket:
    """Its ticket, as it stands at the door. `began`: epoch seconds."""
    return Ticket(
        ask.id,
        ask.tenant,
        ask.model,
        prompt_hash,
        weight.prompt_tokens,
        weight.max_tokens,
        priority=ask.priority,
        choices=ask.choices,
        predicted_output_tokens=round(weight.output.mean, 1),
        arrived=began,
        replica="",
        route=ask.route,
        weighed_tokens=weight.prompt_tokens,
        exact=weight.exact,
    )


def _pool_load(pool: Pool, now: float) -> dict[str, Any]:
    return {
        "policy": pool.spec.policy,
        "aliases": list(pool.spec.aliases),
        "queued_requests": len(pool.dispatcher.queue),
        "queued_tokens": pool.dispatcher.queue.tokens,
        "imbalance": round(pool.imbalance(), 4),
        "bytes_per_token": None if pool.tokenizer is not None else round(pool.scales.bytes_per_token, 3),
        "replicas": [member.as_dict(now) for member in pool.members.values()],
    }


def expanded(spec: ReplicaSpec) -> list[ReplicaSpec]:
    """One entry for each of `count` replicas; of Ray's, for as many as there are at least."""
    count = max(spec.count, spec.ray.scaling.least) if spec.kind == "ray" else spec.count
    if count == 1:
        return [spec]
    return [replace(spec, name=f"{spec.name}-{index}", count=1) for index in range(count)]
