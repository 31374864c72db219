"""One endpoint over many replicas: models by name, limits by tenant, one journey per request."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.usage import Charge
from weighbridge.cost.weight import Weight
from weighbridge.engine.memory.prefix import Digest
from weighbridge.errors import BadInput, Draining, Refused, UnknownModel, some_of, words_of
from weighbridge.fleet.abilities.ability import NOTHING, Needs, needs_of, read_bytes
from weighbridge.fleet.api import Arrival
from weighbridge.fleet.autoscale import Autoscale
from weighbridge.fleet.config.difference import FleetTransition, each, expanded
from weighbridge.fleet.config.spec import EDGE, FleetSpec, ReplicaSpec
from weighbridge.fleet.desk import Standing
from weighbridge.fleet.dispatch import TICK
from weighbridge.fleet.journey import CannotGoOn, FleetJourney
from weighbridge.fleet.limits.periods import calendar
from weighbridge.fleet.limits.rates import Rate
from weighbridge.fleet.limits.shared import SharedLimits
from weighbridge.fleet.limits.spare import SpareRoom
from weighbridge.fleet.limits.tenant import Limiter
from weighbridge.fleet.load.weigher import Counter
from weighbridge.fleet.member import Member
from weighbridge.fleet.pool import Build, Pool, PoolRules
from weighbridge.ticket import Ticket, TicketStore
from weighbridge.wire.ask import Ask, Placement, new_id
from weighbridge.wire.body import LONG_BODY, apart
from weighbridge.wire.journey import Journey, RouteLike

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two looks at whether there is any hope for who comes next. Those who wait are looked after by the
#: dispatcher: a gateway that has nothing to do does next to nothing.
IDLE_TICK = 0.5


class Misplaced(Refused):
    """The caller wants its request kept at the edge, and named a model that is not there."""

    status = 403
    kind = "permission_error"
    code = "residency_forbids"


class Gateway:
    """`start` on the event loop that serves; `admit` each request; `drain`, then `close`.

    `tokenizers` are those of the models by name; `on_finished` hears every request that has ended by its ticket.
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
        standing: Callable[[ReplicaSpec], Sequence[str]] = lambda spec: (),
    ) -> None:
        self.spec = spec
        self.tickets = tickets if tickets is not None else TicketStore(path=spec.tickets)
        self.draining = False
        self.open_journeys = 0
        self.on_finished: list[Callable[[Ticket], None]] = []
        self.on_charged: list[Callable[[Ticket, Charge], None]] = []  # of requests that are no legs of others
        self.unheard = 0  # times that one of them failed
        self.on_close: list[Callable[[], None]] = []
        self.clock = clock
        self.routes: dict[str, RouteLike] = {}  # between models, addressed as models themselves
        self._lengths = OutputLengths()
        limits = {tenant.name: tenant.limits for tenant in spec.tenants}
        self.limiter = Limiter(limits, spec.default_limits, calendar(clock))
        self.shared_limits = _shared_limits(spec, self.limiter, clock)
        rules = PoolRules(spec.queue, spec.health, spec.retry, spec.breaker)
        rng = random.Random(seed)
        self.pools: dict[str, Pool] = {}
        for model in spec.models:
            tokenizer = (tokenizers or {}).get(model.name)
            pool = Pool(model, rules, self._lengths, build, tokenizer, rng, clock)
            self.pools[model.name] = pool
        self._name_pools()
        self._standing = standing  # replicas of an entry that run already, by name
        self._scalers: list[Autoscale] = []
        self._ticking: asyncio.Task[None] | None = None

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Add the configured replicas; they are used as soon as they answer."""
        for pool in self.pools.values():
            for replica in pool.spec.replicas if pool.on_demand is None else ():
                for one in expanded(replica):
                    pool.add(one)
                if replica.kind == "ray" and replica.ray.scaling.most > replica.ray.scaling.least:
                    await self._adopt(pool, replica)
                    self._scalers.append(Autoscale(pool, replica))
        self._ticking = asyncio.create_task(self._tick())

    async def _adopt(self, pool: Pool, entry: ReplicaSpec) -> None:
        """Take in what a gateway before us had started beyond the least there are to be."""
        named = replace(entry, names=(pool.spec.name, *pool.spec.aliases))
        for name in await asyncio.to_thread(self._standing, named):
            if name not in pool.members:
                log.info("%s: %s runs already", pool.spec.name, name)
                pool.add(replace(entry, name=name, count=1))

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
        for ended in self.on_close:
            ended()
        await asyncio.to_thread(self.tickets.close)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK if self._scalers else IDLE_TICK)
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
            pool = next(iter(self._names.values()), None)
        if pool is None:
            known = ", ".join([*self._names, *self.routes])
            if not name:
                raise BadInput(f"the field 'model' is required; this gateway has {known}", param="model")
            raise UnknownModel(
                f"the model {name!r} does not exist here; this gateway has {known}", param="model"
            )
        return pool

    async def admit(self, ask: Ask) -> Journey:
        """Accept a request for a model or a route. Raises Refused or BadInput; the caller closes the journey."""
        if not ask.model and not self._names and len(self.routes) == 1:
            ask.model = next(iter(self.routes))
        route = self.routes.get(ask.model)
        if route is None:
            return await self.run(ask)
        if self.draining:
            raise Draining("the gateway is shutting down and takes no new requests; try another one")
        if ask.sent:
            raise CannotGoOn(
                "the gateway that served it is gone, and an answer of a route cannot go on elsewhere"
            )
        return await route.admit(ask)

    async def run(self, ask: Ask, pool: Pool | None = None) -> FleetJourney:
        """Weigh a request for a model and reserve it in its tenant's limits. Raises like `admit`.

        `pool`: the model that a route has chosen, also where clients may not name it.
        """
        if self.draining:
            raise Draining("the gateway is shutting down and takes no new requests; try another one")
        pool = self.pool(ask.model) if pool is None else pool
        is_edge = pool.spec.placement == EDGE
        if ask.placement is Placement.ONLY_CLOUD and is_edge:
            message = "placement: this gateway chooses by load alone; use only_edge or prefer_edge"
            raise BadInput(message, param="weighbridge")
        if ask.placement is Placement.ONLY_EDGE and not is_edge:
            raise Misplaced(
                f"only_edge was asked for, but the model {pool.spec.name!r} is beyond the edge; name another one"
            )
        return await self._journey(ask, pool)

    async def leg(self, ask: Ask, pool: Pool) -> FleetJourney:
        """A part of a request that was let in before: draining does not stop it, and nobody but its owner has its
        ticket. Raises Refused or BadInput where the tenant's limits have no room for it."""
        return await self._journey(ask, pool, is_leg=True)

    async def _journey(self, ask: Ask, pool: Pool, *, is_leg: bool = False) -> FleetJourney:
        ask.model = pool.spec.name
        arrived, began = self.clock(), time.time()
        size = read_bytes(ask.fields)
        if size < LONG_BODY:
            needs = needs_of(ask.path, ask.fields)
        else:
            needs = await apart(size, needs_of, ask.path, ask.fields)
        pool.check_able(needs, self._who_can)
        weight, weighed = await pool.scales.weigh(ask)
        if not is_leg:
            self.claim_id(ask)
        ticket = ticket_of(ask, weight, began)
        ticket.placement = pool.spec.placement
        if ask.trace is not None:
            ask.trace.holds(ticket)
        if not is_leg:
            self.tickets.add(ticket)
        try:
            await self._reserve(pool, ask, weight)
        except (Refused, BadInput) as error:
            if not is_leg:
                self._turned_away(ticket, "refused", words_of(error))
            raise
        except asyncio.CancelledError:
            if not is_leg:
                self._turned_away(ticket, "abort")
            raise
        self.open_journeys += 1
        chain = () if ask.scores_prompt else weighed.chain
        arrival = arrival_of(ask, weight, chain, arrived, needs)
        settled = self._leg_settled if is_leg else self._settled
        charged = None if self.shared_limits is None else self._charged
        return FleetJourney(pool, ask, arrival, weighed, ticket, settled, charged)

    def _who_can(self, needs: Needs) -> list[str]:
        """The models that clients may name of which a replica is known to have all of `needs`."""
        return [name for name, pool in self.pools.items() if name in self._names and pool.is_known_to(needs)]

    def claim_id(self, ask: Ask) -> None:
        """Give a request another id where its client proposed one that was used before."""
        if self.tickets.get(ask.id) is not None or self.limiter.holds(ask.id):
            ask.id = new_id()

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

    def spare_room(self, name: str, each: int) -> SpareRoom:
        """How many requests of the last class for a model, or a route, may be under way now. Raises UnknownModel."""
        if not name and not self._names and len(self.routes) == 1:
            name = next(iter(self.routes))
        route = self.routes.get(name)
        return (self.pool(name) if route is None else self.pools[route.counted_as]).spare_room(each)

    def rates(self, tenant: str) -> tuple[Rate, ...]:
        """What is left of a tenant's limits by the minute, as whoever would refuse its next request counts."""
        if self.shared_limits is not None and (shared := self.shared_limits.rates(tenant)) is not None:
            return shared
        return self.limiter.rates(tenant, self.clock())

    def _turned_away(self, ticket: Ticket, reason: str, error: str | None = None) -> None:
        ticket.finished, ticket.finish_reason, ticket.error = time.time(), reason, error
        self.finished(ticket)

    def _settled(self, journey: FleetJourney) -> None:
        """Settle a request that has ended: its place among the open ones, its limits and its ticket."""
        self._leg_settled(journey)
        for heard in self.on_charged:
            heard(journey.ticket, journey.charge)
        self.finished(journey.ticket)

    async def _charged(self, journey: FleetJourney, usd: float) -> None:
        """Tell the other gateways what an answer took whose end is about to go."""
        assert self.shared_limits is not None
        await self.shared_limits.charge(journey.ticket.tenant, journey.ticket.id, _used(journey), usd)

    def _leg_settled(self, journey: FleetJourney) -> None:
        ticket = journey.ticket
        self.open_journeys -= 1
        used = _used(journey)
        self.limiter.settle(ticket.id, used, ticket.cost_usd, self.clock())
        if self.shared_limits is not None:
            self.shared_limits.settle(ticket.tenant, ticket.id, used, ticket.cost_usd)

    def finished(self, ticket: Ticket) -> None:
        """Write the ticket of a request that has ended, and tell everybody who listens, once."""
        self.tickets.finish(ticket)
        self.tell(ticket)

    def tell(self, ticket: Ticket) -> None:
        """Tell the listeners of a ticket. One that fails costs no request: it is counted, and the log says so once."""
        for heard in self.on_finished:
            try:
                heard(ticket)
            except Exception:
                if not self.unheard:
                    log.exception("%r failed on a finished request; later failures are only counted", heard)
                self.unheard += 1

    def configured(self) -> dict[str, tuple[Pool, ReplicaSpec]]:
        """The configuration's own replicas by name, and whose they are."""
        return {name: (pool, one) for pool in self.pools.values() for name, one in each(pool.spec).items()}

    def become(self, wanted: FleetTransition) -> list[str]:
        """Have replicas come, go and change as a configuration that was read again says; open requests go on.

        Return what could not be done, in words.
        """
        failed = []
        for change in wanted.models:
            pool = self.pools[change.spec.name]
            pool.spec = change.spec
            for name in change.removed:
                pool.dismiss(name)
            for one in (*change.changed, *change.added):
                try:
                    pool.replace(one) if one.name in pool.members else pool.add(one)
                except BadInput as error:
                    failed.append(f"replica {one.name}: {error}")
        self._name_pools()
        return failed

    def _name_pools(self) -> None:
        """Have each pool found by the names that clients may use."""
        self._names: dict[str, Pool] = {}
        for pool in self.pools.values():
            for name in () if pool.spec.only_routes else (pool.spec.name, *pool.spec.aliases):
                self._names[name] = pool

    # -- what is seen from outside ---------------------------------------------------------------------

    def member(self, name: str) -> tuple[Pool, Member]:
        """A replica by name, whatever its model. Raises BadInput."""
        for pool in self.pools.values():
            if name in pool.members:
                return pool, pool.members[name]
        known = some_of([name for pool in self.pools.values() for name in pool.members])
        raise BadInput(f"there is no replica {name!r}; there are: {known or 'none'}")

    @property
    def ready(self) -> bool:
        """Whether every model that clients may name has a replica that is up, or that the next request would try; of
        those that are loaded on demand, whether the ones that are kept are there."""
        now = self.clock()
        return all(
            any(_takes_requests(member, now) for member in pool.members.values())
            if pool.on_demand is None
            else pool.on_demand.is_ready
            for pool in self.pools.values()
            if not pool.spec.only_routes
        )

    def load(self, in_full: bool = True) -> dict[str, Any]:
        """The whole fleet, as `/v1/load` shows it; the sums on top are what a replica reports of itself, so a
        gateway can stand behind another. Not `in_full`: these alone."""
        now = self.clock()
        states = [member.state for pool in self.pools.values() for member in pool.members.values()]
        queues = [pool.dispatcher.queue for pool in self.pools.values()]
        total = sum(state.capacity.kv_tokens or 0 for state in states)
        told: dict[str, Any] = {
            "queued_requests": sum(len(queue) for queue in queues),
            "running_requests": sum(state.requests for state in states),
            "queued_tokens": sum(queue.tokens for queue in queues),
            "running_tokens": round(sum(state.outstanding_tokens for state in states)),
            "kv_blocks_total": total,
            "kv_blocks_used": min(sum(state.kv_tokens for state in states), total),
            "block_size": 1,
            "draining": self.draining,
        }
        if in_full:
            told["models"] = {name: _pool_load(pool, now) for name, pool in self.pools.items()}
        return told


def _shared_limits(spec: FleetSpec, local: Limiter, clock: Callable[[], float]) -> SharedLimits | None:
    shared = spec.shared_limits
    if shared is None:
        return None
    return SharedLimits(shared.redis, local, prefix=shared.prefix, timeout=shared.timeout, clock=clock)


def _takes_requests(member: Member, now: float) -> bool:
    standing = member.standing(now)
    return standing is Standing.UP or (standing is Standing.OPEN and member.usable(now))


def arrival_of(
    ask: Ask, weight: Weight, chain: tuple[Digest, ...], arrived: float, needs: Needs = NOTHING
) -> Arrival:
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
        needs=needs,
        among=ask.among,
    )


def _used(journey: FleetJourney) -> int:
    """Tokens that count in the limits of its tenant."""
    charged = journey.charge.usage
    return charged.output_tokens + (charged.prompt_tokens if journey.ticket.attempts else 0)


def ticket_of(ask: Ask, weight: Weight, began: float) -> Ticket:
    """Its ticket, as it stands at the door. `began`: epoch seconds."""
    return Ticket(
        ask.id,
        ask.tenant,
        ask.model,
        ask.prompt_hash,
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
