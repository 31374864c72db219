"""A fleet to simulate: what its replicas are, how requests find them, and one run of a workload through it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from weighbridge.cost import DEFAULT_STEP_COST, StepCost
from weighbridge.cost.price import FREE, Price
from weighbridge.engine.schedule.scheduler_api import SchedulerOptions, SchedulerSettings
from weighbridge.errors import BadInput
from weighbridge.fleet.api import Capacity
from weighbridge.fleet.limits.tenant import Limiter, TenantLimits
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue, QueueSettings
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies import DEFAULT_POLICY, make_policy
from weighbridge.fleet.policies.policy import Policy
from weighbridge.knobs import knob
from weighbridge.simulator.autoscale import Autoscaling, SimulatedAutoscaler
from weighbridge.simulator.gateway import SimulatedGateway
from weighbridge.simulator.replica import LONGEST_STRIDE, SimulatedReplica, Watcher, Work
from weighbridge.simulator.simulation import Clock, Feed
from weighbridge.simulator.stepping import Stepping, SteppingScheduler, SteppingStatic
from weighbridge.workload.outcomes import Outcome, Outcomes
from weighbridge.workload.quantiles import GapHistogram
from weighbridge.workload.requests import SimulatedRequest

#: Tokens of a KV cache that nobody gave a size.
DEFAULT_KV_TOKENS = 131_072
#: A millisecond-precise engine never waits this long: chunks are limited by the batch, not by a target.
_NO_ITL_TARGET = 1e9


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A `CostSource` that does not learn: the simulated machine is what its step cost says."""

    cost: StepCost


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedReplicaSpec:
    """One replica: how fast, how large, and which engine's rules it follows."""

    cost: StepCost = DEFAULT_STEP_COST
    settings: SchedulerSettings
    price: Price = FREE
    #: Requests the gateway sends there at most; None: as many as run at once. More wait in the replica.
    concurrency: int | None = None
    #: Whether the gateway is told its step cost, as by a replica that reports it.
    tells_speed: bool = True
    #: What the gateway is told instead of the truth, as by a replica that measured badly.
    claims: StepCost | None = None

    def slowed(self, factor: float) -> SimulatedReplicaSpec:
        return replace(self, cost=self.cost.scaled(factor))

    def scheduler(self) -> Stepping:
        settings, cost = self.settings, _Fixed(self.cost)
        if settings.batching == "static":
            return SteppingStatic(settings, cost, settings.static_batch_size, settings.static_timeout)
        return SteppingScheduler(settings, cost)

    @property
    def capacity(self) -> Capacity:
        settings = self.settings
        return Capacity(
            (self.claims or self.cost) if self.tells_speed else None,
            kv_tokens=settings.num_blocks * settings.block_size,
            block_size=settings.block_size,
            max_sequences=self.concurrency or settings.seats,
            max_batch_tokens=settings.max_batch_tokens,
            max_model_len=settings.max_model_len,
            price=self.price,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEngine(SchedulerOptions):
    """The engine of a simulated replica: the scheduler's options under the rules of an engine.

    `weighbridge`, or `vllm` (v1: blocks of 16 tokens, chunks limited by the batch's tokens alone, strict first come
    first served). What a machine would decide is told: the size of the KV cache and of a request.
    """

    profile: str = knob(
        "weighbridge",
        "Whose scheduling rules: weighbridge or vllm.",
        flag="--engine-profile",
        choices=("weighbridge", "vllm"),
    )
    kv_tokens: int | None = knob(None, "KV cache in tokens; none: what the device holds, or 131,072.", min=1)
    max_model_len: int = knob(32_768, "Prompt and answer together, in tokens.", min=2)
    tokens_per_block: int | None = knob(
        None, "Tokens of a KV block; none: the engine's.", flag="--block-size", min=1
    )
    speculate: bool = False  # there is no text to look anything up in
    max_queue_requests: int = 1 << 20

    def settings(self) -> SchedulerSettings:
        """Return the scheduler's settings. Raises BadInput for a cache without a block."""
        as_vllm = self.profile == "vllm"
        size = self.tokens_per_block or (16 if as_vllm else 32)
        tokens = self.kv_tokens or DEFAULT_KV_TOKENS
        if tokens < size:
            raise BadInput(
                f"a KV cache of {tokens} tokens does not hold a block of {size}", param="kv_tokens"
            )
        engine = replace(self, block_size=size)
        if as_vllm:
            engine = replace(engine, itl_target=_NO_ITL_TARGET, ageing_seconds=None)
        return engine.sized(max_model_len=self.max_model_len, num_blocks=tokens // size)


@dataclass(frozen=True, slots=True)
class Act:
    """One line of a script: at `at` seconds `fail`, `drain` or `add` a replica (`replica`: its name).

    `add` takes the place of a replica that failed, or is one more; new ones are like the fleet's first.
    """

    at: float
    what: str
    replica: str

    @staticmethod
    def parse(text: str) -> Act:
        """Read `60:fail:r0`. Raises BadInput otherwise."""
        parts = text.split(":")
        try:
            at, what, name = float(parts[0]), parts[1], parts[2]
        except (IndexError, ValueError):
            at, what, name = -1.0, "", ""
        if at < 0.0 or what not in ("fail", "drain", "add") or not name or len(parts) != 3:
            raise BadInput(
                f"event {text!r}: write SECONDS:fail:NAME, SECONDS:drain:NAME or SECONDS:add:NAME",
                param="event",
            )
        return Act(at, what, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFleet:
    """Replicas and the gateway in front of them."""

    replicas: tuple[SimulatedReplicaSpec, ...]
    policy: str = DEFAULT_POLICY
    queue: QueueSettings = field(default_factory=lambda: QueueSettings(max_requests=1 << 20))
    limits: TenantLimits | None = None
    prefix_index: bool = True
    sample: int | None = None  # see `SimulatedGateway`
    script: tuple[Act, ...] = ()
    autoscale: Autoscaling | None = None  # new replicas are like the first
    stride: int = LONGEST_STRIDE

    def __post_init__(self) -> None:
        if not self.replicas:
            raise BadInput("a fleet needs at least one replica", param="replicas")
        if self.autoscale is not None and len(self.replicas) > self.autoscale.rule.most:
            raise BadInput(
                f"the fleet begins with {len(self.replicas)} replicas, more than autoscaling's "
                f"max={self.autoscale.rule.most}",
                param="autoscale",
            )
        names = {f"r{i}" for i in range(len(self.replicas))}
        for act in sorted(self.script, key=lambda one: one.at):
            if (act.replica in names) == (act.what == "add"):
                state = "is there already" if act.what == "add" else "is not there then"
                raise BadInput(f"event at {act.at:g} s: replica {act.replica!r} {state}", param="event")
            names = names | {act.replica} if act.what == "add" else names - {act.replica}


@dataclass(slots=True)
class Run:
    """What one run of a workload measured."""

    outcomes: Outcomes
    gaps: GapHistogram  # inter-token latency
    work: dict[str, Work]
    present: dict[str, float]  # seconds that each replica was there
    seconds: float  # from the first arrival to the last end
    imbalance: float  # mean over arrivals of (largest - mean) / mean work in flight of a replica
    peak_queue: int
    left_out: int  # requests not sent because the one they follow failed
    sizes: list[tuple[float, int]]  # from when on there were how many replicas, those that start included


class Simulation:
    """One fleet, one workload, one seed."""

    def __init__(
        self,
        spec: SimulatedFleet,
        requests: Iterable[SimulatedRequest],
        seed: int = 0,
        *,
        policy: Policy | None = None,
        watcher: Watcher | None = None,
        observe: Callable[[SimulatedRequest, Outcome, float], None] | None = None,
        clients: int | None = None,
        pause: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Prepare a run. `policy` replaces the spec's; `observe` hears of each request that ended; `clients`: see
        `Feed`."""
        self._spec = spec
        self.clock = Clock()
        self._feed = Feed(self.clock, requests, clients, pause)
        self._watcher = watcher
        self._observe = observe
        self.outcomes = Outcomes()
        self.gateway = self._feed.gateway = self._gateway(policy, seed)
        self.replicas: dict[str, SimulatedReplica] = {}  # all there ever were
        self._present: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._leaving: set[str] = set()  # nothing new goes there; they go when their last work is done
        self._starting = 0  # replicas that take no requests yet
        self._started = 0  # by the autoscaler
        self._sizes: list[tuple[float, int]] = []
        self._last_end = 0.0
        for number, replica in enumerate(spec.replicas):
            self._add(f"r{number}", replica, 0.0)
        for act in spec.script:
            self.clock.at(act.at, lambda now, one=act: self._act(one, now))  # type: ignore[misc]
        if spec.autoscale is not None:
            self.clock.at(0.0, self._autoscaler(spec.autoscale).step)

    def _gateway(self, policy: Policy | None, seed: int) -> SimulatedGateway:
        spec = self._spec
        return SimulatedGateway(
            policy or make_policy(spec.policy, random.Random(f"policy {seed}")),
            self.outcomes,
            queue=GatewayQueue(spec.queue),
            limiter=Limiter(default=spec.limits) if spec.limits else None,
            index=PrefixIndex() if spec.prefix_index else None,
            block_size=spec.replicas[0].settings.block_size,
            sample=spec.sample,
            rng=random.Random(f"sample {seed}"),
            ended=self._ended,
            moved=self.clock.watch,
        )

    def _autoscaler(self, rule: Autoscaling) -> SimulatedAutoscaler:
        return SimulatedAutoscaler(
            rule,
            self.clock,
            self.gateway,
            start=self._begin_start,
            stop=self._drain,
            starting=lambda: self._starting,
        )

    def run(self) -> Run:
        """Run to the end of the last request."""
        self._feed.start()
        self.clock.run()
        self.gateway.give_up(self.clock.now)
        end = self._last_end
        for name, since in self._since.items():
            self._present[name] = self._present.get(name, 0.0) + max(end - since, 0.0)
        gaps = GapHistogram()
        for replica in self.replicas.values():
            gaps.merge(replica.gaps)
        return Run(
            self.outcomes,
            gaps,
            {name: replica.work for name, replica in self.replicas.items()},
            self._present,
            end,
            self.gateway.imbalance,
            self.gateway.peak_queue,
            self._feed.left_out,
            self._sizes,
        )

    def _ended(self, request: SimulatedRequest, outcome: Outcome, now: float) -> None:
        self._last_end = now
        self._feed.ended(request, outcome, now)
        if outcome.replica in self._leaving and not self.gateway.states[outcome.replica].requests:
            self._gone(outcome.replica, now)
            self.gateway.retire(outcome.replica)
        if self._observe is not None:
            self._observe(request, outcome, now)

    def _add(self, name: str, spec: SimulatedReplicaSpec, now: float) -> None:
        replica = SimulatedReplica(
            name, spec.scheduler(), spec.cost, self.gateway, stride=self._spec.stride, watcher=self._watcher
        )
        self.replicas[name if name not in self.replicas else f"{name}@{now:g}"] = replica
        if name not in self._since:
            self._come(name, now)
        state = ReplicaState(name, spec.capacity, self.gateway.index, now)
        self.gateway.add_replica(replica, state, now)

    def _act(self, act: Act, now: float) -> None:
        if act.what == "add" and act.replica in self._leaving:
            self._leaving.discard(act.replica)
            self.gateway.keep(act.replica, now)
        elif act.what == "add":
            number = int(act.replica[1:]) if act.replica[1:].isdecimal() else 0
            self._add(act.replica, self._spec.replicas[number % len(self._spec.replicas)], now)
        elif act.replica not in self.gateway.states:
            return  # the autoscaler was quicker
        elif act.what == "drain":
            self._drain(act.replica, now)
        else:
            self._gone(act.replica, now)
            self.gateway.lose(act.replica, now)

    # -- replicas that are paid for --------------------------------------------------------------------

    def _come(self, name: str, now: float) -> None:
        self._since[name] = now
        self._sizes.append((now, len(self._since)))

    def _gone(self, name: str, now: float) -> None:
        self._leaving.discard(name)
        since = self._since.pop(name, None)
        if since is not None:
            self._present[name] = self._present.get(name, 0.0) + max(now - since, 0.0)
            self._sizes.append((now, len(self._since)))

    def _drain(self, name: str, now: float) -> None:
        self.gateway.drain(name)
        if self.gateway.states[name].requests:
            self._leaving.add(name)
        else:
            self._gone(name, now)
            self.gateway.retire(name)

    def _begin_start(self, now: float) -> None:
        """Start a replica: it is paid for from now on, and takes requests once it has loaded its model."""
        assert self._spec.autoscale is not None
        name = f"auto{self._started}"
        self._started += 1
        self._starting += 1
        self._come(name, now)
        self.clock.at(now + self._spec.autoscale.startup, lambda ready: self._ready(name, ready))

    def _ready(self, name: str, now: float) -> None:
        self._starting -= 1
        self._add(name, self._spec.replicas[0], now)
