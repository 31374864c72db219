"""The replicas of one model: how requests are weighed for it, placed, tried, hedged and settled."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.price import Price
from weighbridge.cost.usage import Charge, Usage
from weighbridge.errors import BadInput, WeighbridgeError, some_of, wording, words_of
from weighbridge.fleet.abilities.ability import NOTHING, Needs
from weighbridge.fleet.abilities.elsewhere import MOST_REFUSALS, SILENTLY_LACKED, nobody_can, refused_by_all
from weighbridge.fleet.abilities.known import KnownAbilities
from weighbridge.fleet.abilities.refusal import RefusalKind
from weighbridge.fleet.abilities.told import KNOWN_OF
from weighbridge.fleet.api import Arrival, OnDemand, OutlivesUs, Replica
from weighbridge.fleet.attempt import AttemptFailed, Attempts
from weighbridge.fleet.config.command import SERVED_NAME, places_of
from weighbridge.fleet.config.spec import EDGE, STARTED_HERE, HealthSpec, ModelSpec, QueueSpec, ReplicaSpec
from weighbridge.fleet.desk import NOBODY, Patience, Standing
from weighbridge.fleet.dispatch import Dispatcher
from weighbridge.fleet.health import Watch
from weighbridge.fleet.kv.blocks import KnownBlocks
from weighbridge.fleet.kv.feed import KvFeed
from weighbridge.fleet.kv.following import Following
from weighbridge.fleet.limits.spare import SpareRoom, SpareSeat, spare_room
from weighbridge.fleet.limits.tenant import Limiter, TenantLimits
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue, QueueSettings
from weighbridge.fleet.load.scaling import Pulse
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.load.varieties import Varieties
from weighbridge.fleet.load.weigher import Counter, Scales, Weighed
from weighbridge.fleet.member import Member, capacity_of
from weighbridge.fleet.meter import Meter
from weighbridge.fleet.policies import make_policy
from weighbridge.fleet.reliability.breaker import BreakerSettings, CircuitBreaker
from weighbridge.fleet.reliability.hedge import Hedger
from weighbridge.fleet.reliability.retry import EarnedBudget, RetrySettings
from weighbridge.fleet.replica import ReplicaError
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask
from weighbridge.wire.journey import Answered

log = logging.getLogger("weighbridge.fleet")

#: Tokens of one block in the gateway's own account of what replicas have cached: small beside any prefix worth
#: sharing, large enough that naming the blocks of 16 KiB of prompt takes 0.1 ms.
BLOCK_SIZE = 64
#: The same where a replica tells of its blocks, which are as small as this in vLLM.
FINE_BLOCK_SIZE = 16
#: Refusals that name what is lacking.
CLEAR = frozenset({RefusalKind.ABILITY, RefusalKind.ENDPOINT})
#: The option of `weighbridge serve` that names what is served.
#: Seconds for which a context learned from a refusal counts.
CONTEXT_REMEMBERED = 600.0
#: Seconds in which a cancelled copy must be gone from the replica's own account of itself.
STOP_WITHIN = 3.0
#: Seconds that requests have to end at a replica whose entry was changed.
LAST_WORK = 600.0


@dataclass(frozen=True, slots=True)
class JourneyEnd:
    """How a request ended. `member`: whoever answered, or was at work on it; `answered`: with no error."""

    charge: Charge
    meter: Meter
    member: Member | None
    answered: bool


@dataclass(frozen=True, slots=True)
class PoolRules:
    """What all pools of a gateway share."""

    queue: QueueSpec
    health: HealthSpec
    retry: RetrySettings
    breaker: BreakerSettings


Build = Callable[[ReplicaSpec], Replica]


class Pool:
    """One model. `build` makes the adapter of a replica."""

    def __init__(
        self,
        spec: ModelSpec,
        rules: PoolRules,
        lengths: OutputLengths,
        build: Build,
        tokenizer: Counter | None,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self.spec = spec
        self.clock = clock
        self.retry = retry = spec.retry or rules.retry
        self.retries = EarnedBudget(retry.budget, retry.burst, retry.burst)
        self.hedger = Hedger(spec.hedge)
        self.attempts = Attempts(clock, rules.health.slow_start)
        self.tokenizer = tokenizer
        self.on_demand: OnDemand | None = None  # its replicas come and go as they are needed
        self.pulse = Pulse()
        self.lost_copies = {"stopped": 0, "unconfirmed": 0}
        self._rules = rules
        self._build = build
        self._lengths = lengths
        self._index = PrefixIndex()
        tells = any(replica.kv_events for replica in spec.replicas)
        self._block_size = FINE_BLOCK_SIZE if tells else BLOCK_SIZE
        self._feeds: dict[str, KvFeed] = {}
        self._contexts: Varieties[int | None] = (
            Varieties()
        )  # tokens that each replica takes; None: any number
        self._prices: Varieties[Price] = Varieties()
        line = rules.queue
        queue = GatewayQueue(
            QueueSettings(
                max_requests=line.max_requests,
                max_tokens=line.max_tokens,
                tenant_patience=line.tenant_patience,
            )
        )
        patience = Patience(rules.queue.max_wait, for_held=retry.longest_wait)
        self.dispatcher = Dispatcher(spec.name, make_policy(spec.policy, rng), queue, patience, clock)
        self.scales = Scales(
            lengths,
            tokenizer,
            block_size=self._block_size,
            default_max_tokens=spec.default_max_tokens,
            longest=self.longest_context,
            family=" ".join([spec.name, *(one.model or "" for one in spec.replicas)]),
        )
        self._watch = Watch(
            rules.health, clock, self._look_again, lambda _: self.dispatcher.pump(), self._let_go
        )
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def members(self) -> Mapping[str, Member]:
        return self.dispatcher.members

    @property
    def prefixes(self) -> PrefixIndex:
        """What replicas are believed to hold."""
        return self._index

    def longest_context(self) -> int | None:
        """Tokens that the roomiest replica takes; None while one of them may take any number."""
        longest: int | None = None
        for limit in self._contexts:
            if limit is None:
                return None
            longest = limit if longest is None or limit > longest else longest
        return longest

    def dearest(self, prompt_tokens: int, output_tokens: int) -> float:
        """US dollars that a request costs at most, wherever it goes."""
        return max([price.at_most(prompt_tokens, output_tokens) for price in self._prices], default=0.0)

    def spare_room(self, each: int) -> SpareRoom:
        """How many requests of the last class may be under way now, `each` of one replica at most."""
        now, beyond = self.clock(), self.spec.placement != EDGE
        if self.on_demand is not None and self.on_demand.is_hopeful and not self.members:
            return SpareRoom(each, each)  # none: who waits for it has it loaded
        seats = [
            SpareSeat(
                one.state.capacity.max_sequences,
                not beyond
                and one.state.requests - one.state.spare_requests + one.state.others.queued_requests > 0,
                one.spec.dialect == "weighbridge",
            )
            for one in self.members.values()
            if one.usable(now) and one.state.healthy
        ]
        return spare_room(seats, each, len(self.dispatcher.queue) > 0)

    def resume_wanted(self, ask: Ask) -> bool:
        return self.spec.resume if ask.resume is None else ask.resume

    # -- replicas come and go --------------------------------------------------------------------------

    def add(self, spec: ReplicaSpec) -> Member:
        """Add a replica, which is probed from now on. Raises BadInput for a name that is taken."""
        if spec.name in self.members:
            raise BadInput(
                f"a replica called {spec.name!r} is there already; choose another name", param="name"
            )
        spec = self._named(spec)
        return self._joined(spec, self._build(spec))

    def _joined(self, spec: ReplicaSpec, adapter: Replica) -> Member:
        """A member that is spoken to by `adapter`, among the others from now on."""
        now = self.clock()
        state = ReplicaState(
            spec.name, capacity_of(spec, self._block_size), self._index, now, self._rules.health.slow_start
        )
        if spec.kv_events is not None:
            state.kv = Following(KnownBlocks(self._block_size))
            self._feeds[spec.name] = KvFeed(spec.name, spec.kv_events, spec.kv_replay, state.kv, self.clock)
        member = Member(
            spec,
            adapter,
            state,
            CircuitBreaker(self._rules.breaker),
            account=_account(spec),
            abilities=KnownAbilities(spec.abilities, KNOWN_OF.get(spec.dialect, {})),
        )
        self.dispatcher.desk.join(member, now)
        self._prices.set(spec.name, spec.price)
        self._contexts.set(spec.name, _context(member))
        self._watch.start(member)
        self.dispatcher.pump()
        return member

    def replace(self, spec: ReplicaSpec) -> Member:
        """Have a replica be as in `spec` from now on. What it was sent before goes on, for `LAST_WORK` seconds at most.
        Raises BadInput, and then nothing has changed."""
        name, spec = spec.name, self._named(spec)
        old, adapter = self._member(name), self._build(spec)
        self._watch.drop(name)
        self.dispatcher.desk.leave(name)
        if (old.spec.target, old.spec.model, old.spec.kind) != (spec.target, spec.model, spec.kind):
            self._index.remove_replica(name)
        feed = self._feeds.pop(name, None)
        member = self._joined(spec, adapter)
        member.draining, old.draining = old.draining, True
        self._keep(self._ended(old, feed))
        return member

    def dismiss(self, name: str) -> None:
        """Send nothing more to a replica, and remove it once nothing runs there, after `LAST_WORK` seconds at most."""
        if name in self.members:
            self.drain(name)
            self._keep(self._dismissed(name))

    async def _dismissed(self, name: str) -> None:
        await self.remove(name, LAST_WORK)

    async def _ended(self, old: Member, feed: KvFeed | None) -> None:
        """Close the way to a replica that another one stands for, once nothing runs there."""
        until = self.clock() + LAST_WORK
        try:
            while old.state.requests and self.clock() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        finally:
            await old.replica.close()
            if feed is not None:
                await feed.close()

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside, and wait for it at the end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _named(self, spec: ReplicaSpec) -> ReplicaSpec:
        """The replica with the names of its model; what is started here is called as its clients call it."""
        spec = replace(spec, names=(self.spec.name, *self.spec.aliases))
        if spec.kind not in STARTED_HERE or spec.model is not None:
            return spec
        if spec.command:
            return replace(spec, model=self.spec.name if "name" in places_of(spec.command) else spec.target)
        options = spec.options
        given = options.index(SERVED_NAME) + 1 if SERVED_NAME in options else len(options)
        return replace(spec, model=options[given] if given < len(options) else self.spec.name)

    def drain(self, name: str) -> Member:
        """Send nothing more there; what runs goes on."""
        member = self._member(name)
        member.draining = True
        self._look_again(member)
        return member

    def undrain(self, name: str) -> Member:
        member = self._member(name)
        member.draining = False
        self._look_again(member)
        self.dispatcher.pump()
        return member

    async def remove(self, name: str, timeout: float) -> bool:
        """Drain for at most `timeout` seconds, then close. False when requests were cut off."""
        member = self.drain(name)
        until = self.clock() + timeout
        drained = True
        while drained and member.state.requests:
            drained = self.clock() < until
            await asyncio.sleep(0.02)
        await self._watch.stop(name)
        await (member.replica.end() if isinstance(member.replica, OutlivesUs) else member.replica.close())
        if name in self._feeds:
            await self._feeds.pop(name).close()
        self.dispatcher.desk.leave(name)
        self._prices.discard(name)
        self._contexts.discard(name)
        self._index.remove_replica(name)
        return drained

    async def close(self) -> None:
        await self._watch.stop_all()
        for task in list(self._tasks):
            task.cancel()
        closings = [member.replica.close() for member in self.members.values()]
        closings += [feed.close() for feed in self._feeds.values()]
        for outcome in await asyncio.gather(*closings, *self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("closing a replica failed: %r", outcome)

    def _look_again(self, member: Member) -> None:
        """Something about a replica changed that nobody here was told."""
        if member.name in self.members:
            self._contexts.set(member.name, _context(member))
        self.dispatcher.desk.touch(member.name, self.clock())

    def _let_go(self, member: Member) -> None:
        """Try elsewhere what waits at a replica that is gone, where there is another one."""
        now = self.clock()
        if member.waiting and any(
            other.state.healthy and other.usable(now)
            for other in self.members.values()
            if other is not member
        ):
            member.let_go()

    def _member(self, name: str) -> Member:
        try:
            return self.members[name]
        except KeyError:
            known = some_of(list(self.members)) or "none"
            raise BadInput(f"{self.spec.name!r} has no replica {name!r}; there are: {known}") from None

    # -- who can ---------------------------------------------------------------------------------------

    def check_able(self, needs: Needs, others: Callable[[Needs], Sequence[str]]) -> None:
        """Raise NobodyCan unless a replica may have all of `needs`. `others`: models that have what is lacking."""
        if self.all_lack(needs):
            now, members = self.clock(), self.members
            known = [(name, member.abilities) for name, member in members.items()]
            raise nobody_can(self.spec.name, needs, known, others, now)

    def all_lack(self, needs: Needs) -> bool:
        """Whether each of its replicas is known to lack one of `needs`."""
        now, members = self.clock(), self.members
        for member in members.values():  # mostly the first has them
            if not member.abilities.lacks(needs, now):
                return False
        return bool(members)

    def is_known_to(self, needs: Needs) -> bool:
        """Whether one of its replicas is known to have all of `needs`."""
        now = self.clock()
        return any(member.abilities.has_all(needs, now) for member in self.members.values())

    def unsure(self, needs: Needs) -> Set[str]:
        """Who must not be asked as long as others are known to have what a server may lack without a word."""
        silent = needs & SILENTLY_LACKED
        if not silent:
            return NOBODY
        now, members = self.clock(), self.members
        sure = {
            name
            for name, one in members.items()
            if one.abilities.has_all(silent, now) and one.usable(now) and one.state.healthy
        }
        return members.keys() - sure if sure else NOBODY

    def refused(self, failure: AttemptFailed, asked: Sequence[str], arrival: Arrival) -> Set[str]:
        """Take note of a refusal, and return who may serve the request instead."""
        refusal, member, now = failure.refusal, failure.member, self.clock()
        assert refusal is not None
        if refusal.kind is RefusalKind.MODEL and not refusal.adapter:
            log.warning("replica %s: %s", member.name, member.misnamed(now))
        if len(asked) >= MOST_REFUSALS or (refusal.kind is RefusalKind.UNCLEAR and not self._may_ask(asked)):
            return NOBODY
        others = {
            name: one
            for name, one in self.members.items()
            if name not in asked and one.usable(now) and one.state.healthy and one.can_ever(arrival, now)
        }
        if refusal.kind is RefusalKind.CONTEXT:
            limit = refusal.context or member.state.capacity.max_model_len
            return {name for name, one in others.items() if _is_roomier(one, limit)}
        return others.keys()

    def _may_ask(self, asked: Sequence[str]) -> bool:
        """Whether a refusal that may be the request's own fault is put to one more replica."""
        return len(asked) == 1 and self.retries.spend()

    def all_refused(self, failures: Sequence[AttemptFailed]) -> WeighbridgeError:
        """What the client is told when nobody is left to ask: what they lack, or the first one's own words."""
        last, now = failures[-1].refusal, self.clock()
        lacked = NOTHING if last is None else last.lacks
        named = all(
            one.refusal is not None and one.refusal.kind in CLEAR and one.refusal.lacks == lacked
            for one in failures
        )
        asked = {one.member.name for one in failures}
        lacked = NOTHING if len(self.members) == 1 else lacked
        rest = [(n, m) for n, m in self.members.items() if n not in asked]
        if lacked and named and all(member.abilities.lacks(lacked, now) for _, member in rest):
            reasons = [words_of(one) for one in failures]
            reasons += [
                wording("{}: lacks it {}", n, m.abilities.why(next(iter(lacked)), now)) for n, m in rest
            ]
            return refused_by_all(self.spec.name, lacked, reasons, ())
        answer = failures[0].answer
        assert answer is not None
        return Answered(answer.status, answer.body, answer.headers)

    def proved(self, failures: Sequence[AttemptFailed], now: float) -> None:
        """Believe what replicas claimed of themselves, now that another one has served the very same request."""
        for one in failures:
            refusal = one.refusal
            if refusal is None:
                continue
            if refusal.kind in CLEAR or (refusal.kind is RefusalKind.UNCLEAR and len(refusal.lacks) == 1):
                one.member.abilities.refuse(refusal.lacks, now, words_of(one))
                log.info("%s; it is not sent such requests for a while", one)

    def learn_contexts(self, failures: Sequence[AttemptFailed], tokens: int) -> None:
        """Believe the limits that replicas named when they refused a request that then took `tokens` elsewhere."""
        for one in failures:
            limit = one.refusal.context if one.refusal is not None else None
            member = one.member
            known = member.state.capacity.max_model_len
            if limit is None or known is not None or not member.longest_served <= limit < tokens:
                continue
            self._set_context(member, limit)
            loop = asyncio.get_running_loop()
            loop.call_later(CONTEXT_REMEMBERED, self._forget_context, member, limit)

    def _set_context(self, member: Member, limit: int | None) -> None:
        member.state.update_capacity(replace(member.state.capacity, max_model_len=limit))
        self._look_again(member)

    def _forget_context(self, member: Member, limit: int) -> None:
        """Let a longer request try again, unless the replica itself has told its context meanwhile."""
        if member.state.capacity.max_model_len == limit and member.told.context != limit:
            self._set_context(member, None)

    # -- hedges ----------------------------------------------------------------------------------------

    def lost(self, member: Member) -> None:
        """See to it that a replica has really stopped a copy that was cancelled."""
        self._keep(self._verify_stopped(member))

    async def _verify_stopped(self, member: Member) -> None:
        """Wait, for `STOP_WITHIN` seconds at most, until the replica counts no more than we know to be there."""
        deadline = self.clock() + STOP_WITHIN
        while self.clock() < deadline:
            await asyncio.sleep(0.1)
            try:
                report = await member.replica.probe()
            except ReplicaError:
                continue
            if report.running_requests + report.queued_requests <= member.state.requests:
                self.lost_copies["stopped"] += 1
                return
        self.lost_copies["unconfirmed"] += 1
        log.warning("a cancelled copy may still run on %s", member.name)

    # -- settling --------------------------------------------------------------------------------------

    def settle(
        self,
        ask: Ask,
        arrival: Arrival,
        weighed: Weighed,
        ticket: Ticket,
        end: JourneyEnd,
        error: str | None,
    ) -> None:
        """Write down what a request really took, and learn from it."""
        usage, meter = end.charge.usage, end.meter
        ticket.finished = time.time()
        ticket.output_tokens = usage.output_tokens
        ticket.cached_tokens = 0 if meter.hide_cached else usage.cached_tokens
        ticket.error = ticket.error or error
        ended = meter.complete and not meter.failed and end.answered
        ticket.finish_reason = meter.finish or "stop" if ended else "error" if ticket.error else "abort"
        if end.member is not None:
            self._count(end.member, usage, ended)
            ticket.cost_usd = end.member.cost(usage)
            ticket.cost_estimated = end.charge.estimated and ticket.cost_usd > 0
        if meter.usage is not None:
            ticket.prompt_tokens = usage.prompt_tokens
            if usage.prompt_tokens == meter.usage.prompt_tokens:  # it is believed
                self.scales.settle(weighed, usage.prompt_tokens)
        if ended and usage.output_tokens:
            self._lengths.observe(ask.tenant, ask.model, ask.route, usage.output_tokens // ask.choices)

    def _count(self, member: Member, usage: Usage, ended: bool) -> None:
        counts = member.counts
        counts.finished += ended
        counts.prompt_tokens += usage.prompt_tokens
        counts.cached_tokens += usage.cached_tokens
        counts.output_tokens += usage.output_tokens
        if ended:
            member.longest_served = max(member.longest_served, usage.prompt_tokens + usage.output_tokens)
        counts.usd += member.cost(usage)

    def imbalance(self) -> float:
        """Coefficient of variation of outstanding tokens over the replicas that are up; 0 is even."""
        now = self.clock()
        loads = [m.state.outstanding_tokens for m in self.members.values() if m.standing(now) is Standing.UP]
        mean = sum(loads) / len(loads) if loads else 0.0
        if mean <= 0.0:
            return 0.0
        return float((sum((load - mean) ** 2 for load in loads) / len(loads)) ** 0.5 / mean)


def _is_roomier(member: Member, limit: int | None) -> bool:
    """Whether it takes more than `limit` tokens, as far as is known."""
    own = _context(member)
    return own is None or limit is None or own > limit


def _context(member: Member) -> int | None:
    """Tokens that a replica takes, as far as is known; None: any number."""
    capacity = member.state.capacity
    limits = [one for one in (capacity.max_model_len, capacity.kv_tokens) if one is not None]
    return min(limits, default=None)


def _account(spec: ReplicaSpec) -> Limiter | None:
    """The rate limits of a cloud account as a limiter with one tenant; None without limits."""
    limits = spec.limits
    if limits.tokens_per_minute is None and limits.requests_per_minute is None and limits.usd_per_day is None:
        return None
    return Limiter(
        default=TenantLimits(
            tokens_per_minute=limits.tokens_per_minute,
            requests_per_minute=limits.requests_per_minute,
            usd_per_day=limits.usd_per_day,
        )
    )
