"""One replica in a fleet: how it is spoken to, what is known of it, whether it may be sent something now."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.errors import BadInput, RateLimited, some_of, words_of
from weighbridge.fleet.abilities.known import KnownAbilities
from weighbridge.fleet.abilities.told import KNOWN_OF, MOST_NAMES, NOTHING_TOLD, Told, is_named
from weighbridge.fleet.api import Arrival, Call, Capacity, Replica, Report
from weighbridge.fleet.config.callee import callee_of, may_trace, passed_on
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.desk import Standing
from weighbridge.fleet.limits.tenant import Limiter
from weighbridge.fleet.load.dialects import DIALECTS
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.reliability.breaker import BreakerState, CircuitBreaker
from weighbridge.ticket.trace import SentCall, named
from weighbridge.wire.ask import Ask

#: Seconds that a replica which does not know its model is left alone, and at most, doubled each time.
FAULT_PAUSE, LONGEST_FAULT_PAUSE = 5.0, 60.0
#: Names of served models that are shown of one replica.
SHOWN_NAMES = 8
CHAT = "/v1/chat/completions"
#: The two names of a limit of tokens in a chat.
OLDER, NEWER = "max_tokens", "max_completion_tokens"


@dataclass(slots=True)
class Counts:
    """What happened at a replica since it joined."""

    requests: int = 0
    finished: int = 0
    failures: int = 0
    retries: int = 0  # of its failures, those tried again elsewhere
    hedges: int = 0  # second copies it was sent
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0


@dataclass(slots=True, eq=False)
class Member:
    """`seen` is set by every sign of life: a probe, a first byte, a chunk."""

    spec: ReplicaSpec
    replica: Replica
    state: ReplicaState
    breaker: CircuitBreaker
    heard: bool = False  # it has answered at least once, or is trusted to be there
    draining: bool = False  # by our own decision
    held_until: float = 0.0
    held_why: str = ""
    failed_probes: int = 0
    last_error: str = ""
    last_report: Report | None = None
    account: Limiter | None = None  # rate limits of a cloud account
    alive_at: float = float("-inf")
    waiting: set[asyncio.Timeout] = field(default_factory=set)  # tries of which nothing has come yet
    abilities: KnownAbilities = field(default_factory=KnownAbilities)
    told: Told = NOTHING_TOLD
    adapters: frozenset[str] = frozenset()  # over its model, that its pages have ever listed
    fault: str = ""  # what is wrong with its configuration, in words
    fault_until: float = 0.0
    faults: int = 0  # in a row, found by refusals
    was_named: bool = False  # its pages have listed the model that is configured
    longest_served: int = 0  # tokens, prompt and output, of the longest request that it has answered
    counts: Counts = field(default_factory=Counts)
    joined: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_quiet(self) -> bool:
        """Whether nothing happens there, as far as is known: no request of anybody's, and its last probe went well."""
        return not (self.state.requests or self.state.others.queued_requests or self.failed_probes)

    def usable(self, now: float) -> bool:
        """Whether it may be sent anything at all now; whether there is room is the state's to say."""
        if not self.heard or self.draining or now < self.held_until or now < self.fault_until:
            return False
        return self.breaker.allows(now)

    def is_idle_and_well(self, now: float) -> bool:
        """Whether it has nothing to do, its last probe was answered, and no request to it failed of late."""
        return self.is_quiet and self.state.healthy and self.breaker.is_well and self.usable(now)

    def accepts(self, arrival: Arrival, now: float) -> bool:
        """Usable, and with room for this one. Asked of every replica for every request, so it is written flat."""
        if not self.heard or self.draining or now < self.held_until or now < self.fault_until:
            return False
        if arrival.needs and self.abilities.lacks(arrival.needs, now):
            return False
        if self.breaker.open_until is not None and not self.breaker.allows(now):
            return False
        limit = self.spec.limits.concurrent_requests
        if limit is not None and self.state.requests >= limit:
            return False
        return self.state.accepts(arrival, now)

    def takes_turns(self, arrival: Arrival, now: float) -> bool:
        """Whether it may be sent `arrival` beyond its seats, because it shares them among tenants by itself.

        One that asks for a key and does not know us for a gateway takes everything for the work of one tenant: the
        key's.
        """
        if self.spec.dialect != "weighbridge" or not self._believes_tenants():
            return False
        limit = self.spec.limits.concurrent_requests
        room = limit is None or self.state.requests < limit
        return room and self.usable(now) and self.can_ever(arrival, now) and self.state.open_to(arrival)

    def can_ever(self, arrival: Arrival, now: float) -> bool:
        """Whether it could serve `arrival` if it had nothing else to do."""
        if arrival.among is not None and self.spec.name not in arrival.among:
            return False
        return self.state.fits(arrival) and not self.abilities.lacks(arrival.needs, now)

    def _believes_tenants(self) -> bool:
        """Whether it takes our word on whose a request is; one that does not say so, if it asks for no key."""
        told = self.last_report.believes_tenants if self.last_report is not None else None
        return self.spec.key is None if told is None else told

    def standing(self, now: float) -> Standing:
        if self.draining or self.state.draining or self.state.tells_draining:
            return Standing.DRAINING
        if not self.heard:
            return Standing.STARTING
        if not self.state.healthy:
            return Standing.DOWN
        if now < self.fault_until:
            return Standing.FAULTY
        if self.breaker.state(now) is not BreakerState.CLOSED:
            return Standing.OPEN
        return Standing.HELD if now < self.held_until else Standing.UP

    def why(self, now: float) -> str:
        """What stands against it now, in words; empty when nothing does."""
        if now < self.fault_until:
            return self.fault
        if now < self.held_until:
            return self.held_why
        return "" if self.standing(now) is Standing.UP else self.last_error or self.standing(now).value

    def reserve(self, arrival: Arrival, now: float) -> bool:
        """Set the request aside in the replica's own rate limits, as a cloud account has them."""
        if self.account is None:
            return True
        try:
            tokens = round(arrival.weight.expected_tokens)
            usd = self.cost(Usage(arrival.weight.prompt_tokens, round(arrival.weight.output.mean)))
            self.account.reserve(self.name, arrival.id, tokens, usd, now)
        except RateLimited as error:
            self.hold(now + min(error.retry_after or 1.0, 5.0), words_of(error))
            return False
        except BadInput:
            return False  # larger than the whole limit, or already there
        return True

    def sent(self, now: float) -> None:
        """Take note that a request is on its way there."""
        self.breaker.sent(now)
        self.counts.requests += 1

    def settle(self, arrival: Arrival, produced: int, now: float) -> None:
        """Take note that a request is over there, after `produced` output tokens."""
        if self.account is not None:
            self.account.settle(arrival.id, arrival.weight.prompt_tokens + produced, 0.0, now)

    def cost(self, usage: Usage) -> float:
        """US dollars that a request costs here."""
        return self.spec.price.usd(usage)

    def keeps_apart(self, ask: Ask) -> bool:
        """Whether its prefix cache is told to keep this request apart from those of another salt.

        Who is not told whose a request is gets no salt either: it would be a name.
        """
        return not ask.anonymous and DIALECTS[self.spec.dialect].takes_salt

    def call(self, ask: Ask, remaining_ms: float | None) -> Call:
        """The request as this server understands it."""
        extension: dict[str, Any] | None = None
        if self.spec.dialect == "weighbridge":
            extension = {"priority": ask.priority, "speculative": ask.speculative}
            if not ask.anonymous:
                extension["tenant"] = ask.tenant
            if remaining_ms is not None:
                extension["deadline_ms"] = remaining_ms
        name, dialect = self.model_name(ask), DIALECTS[self.spec.dialect]
        if dialect.max_tokens_only:
            ask = _with_max_tokens(ask, OLDER)
        elif (
            ask.path == CHAT and dialect.reasoners is not None and dialect.reasoners.match(_asked(ask, name))
        ):
            ask = _with_max_tokens(ask, NEWER)
        salt = ask.cache_salt if self.keeps_apart(ask) else ""
        body = ask.body(name, extension, ask_usage=self.spec.stream_usage, cache_salt=salt)
        headers = ask.headers
        if headers:
            headers = passed_on(self.spec, headers, anonymous=ask.anonymous)
        return Call(ask.path, body, headers, ask.stream)

    def traced(self, ask: Ask, number: int) -> SentCall | None:
        """The span of a call that is about to be made; None where no trace is made."""
        if ask.trace is None:
            return None
        model = self.model_name(ask) or ask.model
        return ask.trace.call(callee_of(self.spec), model, number, time.time())

    def with_trace(self, call: Call, ask: Ask, sent: SentCall) -> Call:
        """A call that tells the replica of its span, where it may be told."""
        if not may_trace(self.spec, anonymous=ask.anonymous):
            return call
        return replace(call, headers=named(sent, call.headers))

    def model_name(self, ask: Ask) -> str | None:
        """What it is asked for; None: what the client wrote, which it serves as far as is known."""
        if self.asks_for_adapter(ask):
            return None
        if self.spec.model is not None or not self.told.models:
            return self.spec.model
        asked = _asked(ask, None)
        if asked and is_named(asked, self.told.models):
            return None
        return next((name for name in self.spec.names if is_named(name, self.told.models)), None)

    def asks_for_adapter(self, ask: Ask) -> bool:
        """Whether a request names an alias that is an adapter over the model there, or was one."""
        return bool(self.adapters) and _asked(ask, None) in self.adapters.intersection(self.spec.names[1:])

    @property
    def expected_names(self) -> tuple[str, ...]:
        """What the configuration takes its model to be called there."""
        return self.spec.names if self.spec.model is None else (self.spec.model,)

    def misnamed(self, now: float) -> str:
        """Take note that it does not know the model under the name it was sent; return what is wrong, in words."""
        self.faults += 1
        self.fault = self._other_model()
        self.fault_until = now + min(FAULT_PAUSE * 2 ** min(self.faults - 1, 8), LONGEST_FAULT_PAUSE)
        return self.fault

    def _other_model(self) -> str:
        wanted = some_of([repr(name) for name in self.expected_names])
        serves = some_of([repr(name) for name in self.told.models], most=3) or "no such model"
        return f"serves {serves} and not {wanted}: start it with that model, or write under `model:` what it calls it"

    def _check_name(self, now: float) -> None:
        """Look whether the model that is configured is among those that its pages list."""
        names = self.told.models
        if not names or not self.expected_names:
            return
        if any(is_named(name, names) for name in self.expected_names):
            if self.fault_until == math.inf or now < self.fault_until:
                self.fault_until = 0.0
            self.fault, self.was_named, self.faults = "", True, 0
        elif DIALECTS[self.spec.dialect].checks_names or self.was_named:
            self.fault, self.fault_until = self._other_model(), math.inf

    def hold(self, until: float, why: str) -> None:
        """Send nothing before `until`; the longest wish counts."""
        if until > self.held_until:
            self.held_until, self.held_why = until, why

    def alive(self, now: float, slow_start: float) -> None:
        """Take note of a sign of life. One that was down, or is new, warms up for `slow_start` seconds."""
        self.alive_at = now
        self.failed_probes = 0
        if self.state.healthy and self.heard:
            return
        if not self.heard:
            self.heard = True
        else:
            self.state.started_at, self.state.slow_start = now, slow_start
            self.abilities.started_anew()
        self.state.healthy = True

    def let_go(self) -> None:
        """End all tries of which nothing has come yet: whoever waits for them is tried elsewhere."""
        for limit in tuple(self.waiting):
            limit.reschedule(0.0)
        self.waiting.clear()

    def learn(self, report: Report) -> None:
        """Take in what it says of itself: its load, and of its capacity what the configuration left open."""
        self.last_report = report
        if report.told is not None and report.told != self.told:
            self._take_in(report.told)
            self.state.experience.seats.tell(report.told.seats)
        if report.told is not None:
            self._check_name(report.at)
        given = self.spec.capacity
        cost = None if given.step_cost is not None else report.step_cost
        tokens = None if given.kv_tokens is not None else report.kv_tokens_total
        longest = None if given.max_model_len is not None else report.max_model_len or self.told.context
        told = report.step_cost, report.kv_tokens_total, report.max_model_len
        if (cost, tokens, longest) != told:  # mostly nothing is, and a copy takes as long as all the rest
            report = replace(report, step_cost=cost, kv_tokens_total=tokens, max_model_len=longest)
        self.state.report(report)

    def _take_in(self, told: Told) -> None:
        """Learn from its pages what it can."""
        self.told = told
        if len(self.adapters) < MOST_NAMES:
            self.adapters |= told.adapters
        self.abilities.tell({**KNOWN_OF.get(self.spec.dialect, {}), **told.can})

    def as_dict(self, now: float) -> dict[str, Any]:
        """Plain JSON, for `/v1/load`, `/admin/replicas` and the terminal."""
        state, counts = self.state, self.counts
        return {
            "name": self.name,
            "kind": self.spec.kind,
            "target": self.spec.target,
            "dialect": self.spec.dialect,
            "standing": self.standing(now).value,
            "why": str(self.why(now)),
            "requests": state.requests,
            "uncomputed_tokens": round(state.uncomputed_tokens),
            "remaining_output_tokens": round(state.remaining_output),
            "outstanding_tokens": round(state.outstanding_tokens),
            "others_requests": state.others.queued_requests,
            "kv_tokens": state.kv_tokens,
            "kv_tokens_total": state.capacity.kv_tokens,
            "prefixes": "guessed" if state.kv is None else state.kv.in_words(now),
            "kv_events": None if state.kv is None else asdict(state.kv.account),
            "step_cost": None if state.step_cost is None else state.step_cost.as_dict(),
            "speed": "told" if state.believed else state.experience.in_words(told=state.tells),
            "seats": state.experience.seats.count,
            "prediction_error": round(state.experience.score.error, 3)
            if state.experience.score.count
            else None,
            "breaker": self.breaker.state(now).value,
            "slots": self.told.seats,
            "serves": list(self.told.models[:SHOWN_NAMES]),
            "context": state.capacity.max_model_len,
            "abilities": self.abilities.as_dict(now),
            "server": self.told.version,
            "last_report_age": None if self.last_report is None else round(now - self.last_report.at, 3),
            "finished": counts.finished,
            "failures": counts.failures,
            "retries": counts.retries,
            "hedges": counts.hedges,
            "prompt_tokens": counts.prompt_tokens,
            "cached_tokens": counts.cached_tokens,
            "output_tokens": counts.output_tokens,
            "usd": round(counts.usd, 6),
        }


def _with_max_tokens(ask: Ask, name: str) -> Ask:
    """The request with its limit of tokens under `name` alone; where it has two, the one with the newer name holds."""
    limit = ask.fields.get(NEWER) or ask.fields.get(OLDER)
    if limit is None:
        return ask
    fields = {key: raw for key, raw in ask.fields.items() if key not in (NEWER, OLDER)}
    return replace(ask, fields={**fields, name: limit})


def _asked(ask: Ask, name: str | None) -> str:
    """The model that the server is asked for: `name`, or what the client wrote."""
    if name is not None:
        return name
    raw = ask.fields.get("model")
    asked = None if raw is None else msgspec.json.decode(raw)
    return asked if isinstance(asked, str) else ""


def capacity_of(spec: ReplicaSpec, block_size: int) -> Capacity:
    """What is known before a replica has spoken: what the configuration says."""
    given = spec.capacity
    return Capacity(
        step_cost=given.step_cost,
        kv_tokens=given.kv_tokens,
        block_size=block_size,
        max_sequences=given.max_sequences,
        max_batch_tokens=given.max_batch_tokens,
        max_model_len=given.max_model_len,
        price=spec.price,
    )
