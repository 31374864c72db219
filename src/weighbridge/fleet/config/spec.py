"""What an operator says about a fleet: models, their replicas, tenants, limits. Plain data, checked when loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weighbridge.cost.price import FREE, Price
from weighbridge.cost.step import StepCost
from weighbridge.fleet.abilities.ability import Ability
from weighbridge.fleet.config.command import places_of
from weighbridge.fleet.config.keeping import KeepSettings
from weighbridge.fleet.config.on_demand import OnDemandSettings
from weighbridge.fleet.limits.tenant import NO_LIMITS, TenantLimits
from weighbridge.fleet.load.scaling import ScalingSettings
from weighbridge.fleet.reliability.breaker import BreakerSettings
from weighbridge.fleet.reliability.hedge import HedgeSettings
from weighbridge.fleet.reliability.retry import RetrySettings
from weighbridge.fleet.replica import Timeouts
from weighbridge.secret import Secret
from weighbridge.wire.client import Trust

#: Where a model is that is not beyond the boundary.
EDGE = "edge"
#: What a replica may be: exactly one of these keys is in its entry.
KINDS = ("url", "process", "engine", "ray")
#: Those that are started here, under whatever name we like.
STARTED_HERE = frozenset({"process", "engine", "ray"})


@dataclass(frozen=True, slots=True)
class CapacitySpec:
    """What is known beforehand of a replica; None: it reports it, or it is learned."""

    step_cost: StepCost | None = None
    kv_tokens: int | None = None
    max_sequences: int = 256
    max_batch_tokens: int = 2048
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class LimitSpec:
    """Limits of a replica, such as those of an account at a cloud API. None: not limited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    usd_per_day: float | None = None


@dataclass(frozen=True, slots=True)
class SharedLimitsSpec:
    """The Redis that holds the limits of several gateways. `prefix` sets fleets in one Redis apart; `timeout`:
    seconds after which a request goes on with the limits of its own gateway."""

    redis: Secret
    prefix: str = "weighbridge"
    timeout: float = 0.25


@dataclass(frozen=True, slots=True)
class PeersSpec:
    """What gateways that name the same Redis tell each other beside limits. `name`: this gateway's; None: made anew."""

    redis: Secret
    prefix: str = "weighbridge"
    timeout: float = 0.25
    name: str | None = None
    members: bool = True  # replicas that were added, drained or removed at run time
    tenants: bool = True  # keys that were made or revoked, and limits that were set, at run time
    learned: bool = True  # how quick replicas are, and what their prefix caches hold
    streams: int = 0  # bytes in Redis for streams that can be picked up at another gateway; 0: none are


@dataclass(frozen=True, slots=True)
class RaySpec:
    """Resources of each actor, how many there may be, and when there should be more or fewer.

    `bundles`: resources that are reserved together, by a placement group of this `strategy`; the actor is in the first.
    `keep`: actors outlive the gateway. `waits_for_nodes`: the cluster brings nodes as they are asked for.
    """

    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    bundles: tuple[Mapping[str, float], ...] = ()
    strategy: str = "PACK"
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    address: str | None = None
    namespace: str = "weighbridge"
    keep: bool = True
    waits_for_nodes: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica, or `count` alike. `target` is a URL without its account, or the model that a local replica loads."""

    name: str
    kind: str
    target: str
    dialect: str = "openai"
    model: str | None = None  # what this server calls the model; None: whatever the client asked for
    key: Secret | None = None
    account: Secret | None = None  # `user:password` of its URL
    headers: Mapping[str, Secret] = field(default_factory=dict)
    price: Price = FREE
    capacity: CapacitySpec = field(default_factory=CapacitySpec)
    limits: LimitSpec = field(default_factory=LimitSpec)
    timeouts: Timeouts = field(default_factory=Timeouts)
    trust: Trust = field(default_factory=Trust)
    probe: bool = True  # ask for its health; off for APIs that must only be called for work
    probe_path: str | None = None
    prefix: str | None = None  # what its paths begin with, in place of /v1; None: as its dialect has it
    api_version: str | None = None  # Azure's: paths by deployment, with this version
    abilities: Mapping[Ability, bool] = field(default_factory=dict)  # as stated; others are learned
    names: tuple[str, ...] = ()  # what clients call its model; filled in by the model
    traces: bool | None = None  # it is told of distributed traces; None: if it is an engine of ours
    kv_events: str | None = None  # where it publishes what its prefix cache stores and removes, over ZeroMQ
    kv_replay: str | None = None  # where it sends such events again
    stream_usage: bool = True  # it understands `stream_options.include_usage`
    count: int = 1
    threads: int | None = None
    options: tuple[str, ...] = ()  # of `weighbridge serve`, for replicas that are started here
    command: tuple[str, ...] = ()  # what starts another engine, with places (see `config.command`)
    env: Mapping[str, Secret] = field(default_factory=dict)  # of that command, beside our own
    ray: RaySpec = field(default_factory=RaySpec)

    @property
    def brings_tokenizer(self) -> bool:
        """Whether the model that it loads is one of ours on this machine."""
        return self.kind in ("process", "engine") and not self.command

    @property
    def knows_key(self) -> bool:
        """Whether what is started is told the key that it will be sent."""
        return "key" in places_of([*self.command, *(value.reveal() for value in self.env.values())])


@dataclass(frozen=True, slots=True)
class DiscoverySpec:
    """Where replicas of a model are found: a name in DNS, or a service of Kubernetes (`NAMESPACE/SERVICE`).

    `template`: what is so of each of them but its name and address. `port`: of DNS a number, None: SRV records say it;
    of Kubernetes the name or number of the service's port, None: the first.
    """

    name: str
    template: ReplicaSpec
    dns: str | None = None
    kubernetes: str | None = None
    port: int | str | None = None
    scheme: str = "http"
    interval: float = 30.0
    server: tuple[str, int] | None = None  # the name server that is asked; None: the system's
    api: str | None = None  # of Kubernetes; None: that of the cluster that the gateway runs in
    account: Path | None = None  # the directory of the service account; None: where a pod has it


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model and its replicas. `aliases` are further names that clients may use for it.

    `only_routes`: clients reach it through routes and never by a name of its own. `placement` is what answers and
    tickets say of where it is: "edge", or "cloud" for what a route has beyond the boundary.
    """

    name: str
    replicas: tuple[ReplicaSpec, ...]
    aliases: tuple[str, ...] = ()
    tokenizer: Path | None = None
    policy: str = "weigh"
    resume: bool = False  # a stream whose replica dies goes on elsewhere, re-prefilled
    keep_streams: bool = False  # a stream whose client is gone goes on, and can be picked up
    hedge: HedgeSettings = field(default_factory=HedgeSettings)
    default_max_tokens: int = 1024
    thinking_tokens: int | None = (
        None  # that servers may count beyond max_tokens and not show; None: if they are paid
    )
    only_routes: bool = False
    placement: str = EDGE
    retry: RetrySettings | None = None  # None: that of the whole fleet
    keep: bool = False  # loaded at start and never displaced, where models are loaded on demand
    keep_alive: float | None = (
        None  # seconds without a request after which it is unloaded there; None: as all are
    )
    memory: int | None = None  # bytes that it takes there; None: as the planner works out
    discover: tuple[DiscoverySpec, ...] = ()


@dataclass(frozen=True, slots=True)
class KeySpec:
    """An API key of a tenant; `expires`: epoch seconds."""

    secret: Secret
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class TenantSpec:
    name: str
    keys: tuple[KeySpec, ...] = ()
    limits: TenantLimits = NO_LIMITS
    priority: int | None = None  # the best class its requests may ask for; None: 0, and of a gateway any


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """The queue in the gateway: bounded in requests and in tokens of work."""

    max_requests: int = 4096
    max_tokens: int | None = None
    max_wait: float = 600.0
    tenant_patience: float = (
        0.5  # seconds after which a tenant without a place may crowd in where seats are shared
    )


@dataclass(frozen=True, slots=True)
class HealthSpec:
    """Active probes: every `interval` seconds; down after `failures` in a row. A replica that comes back gets
    its full share only after `slow_start` seconds."""

    interval: float = 1.0
    failures: int = 3
    slow_start: float = 10.0


@dataclass(frozen=True, slots=True)
class FleetSpec(KeepSettings):
    """The whole of weighbridge.yaml. What it has in common with a single server is inherited."""

    models: tuple[ModelSpec, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    handover: Path | None = None  # where the process that comes after this one asks for its listening socket
    takeover: bool = False  # from the command line: take the one of the process that is there
    admin_key: Secret | None = None
    tenants: tuple[TenantSpec, ...] = ()
    default_limits: TenantLimits = NO_LIMITS
    shared_limits: SharedLimitsSpec | None = None
    peers: PeersSpec | None = None
    queue: QueueSpec = field(default_factory=QueueSpec)
    health: HealthSpec = field(default_factory=HealthSpec)
    retry: RetrySettings = field(default_factory=RetrySettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    tickets: Path | None = None
    changes_file: Path | None = (
        None  # what operators change at run time; None: it lasts until the gateway ends
    )
    max_body: int = 8 << 20
    drain_timeout: float = 30.0
    on_demand: OnDemandSettings | None = None  # None: all that is started here is started at once

    def is_on_demand(self, model: ModelSpec) -> bool:
        """Whether a model is loaded when somebody asks for it: all of it is processes of this machine."""
        return self.on_demand is not None and all(one.kind == "process" for one in model.replicas)
