"""What `weighbridge simulate` is given: a workload, a machine, replicas, fleets to compare, rates to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.cost import StepCost
    from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
    from weighbridge.simulator.experiment import Source
    from weighbridge.simulator.fleet import FleetSpec, ReplicaSpec

#: What `--compare` may vary, and how a value is read.
COMPARABLE = ("policy", "batching", "replicas", "engine-profile")


@dataclass(frozen=True, slots=True)
class WorkloadFlags:
    """What arrives, as it was asked for."""

    trace: Path | None
    workload: str | None
    limit: int | None
    scale_prompt: float
    scale_output: float
    max_tokens: int | None
    start: float | None
    duration: float
    seed: int

    @property
    def words(self) -> str:
        if self.trace is None:
            return str(self.workload)
        first = f", its first {self.limit:,} requests" if self.limit else ""
        scaled = [
            f"{name} x {factor:g}"
            for name, factor in (("prompts", self.scale_prompt), ("outputs", self.scale_output))
            if factor != 1.0
        ]
        return ", ".join([f"{self.trace.name}{first}", *scaled])


@dataclass(frozen=True, slots=True)
class MachineFlags:
    """How fast a replica is, as it was asked for, and what it costs."""

    model: str | None
    device: str | None
    tp: int
    weights: str | None
    step_cost: Path | None
    fit: Path | None
    price: float | None


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """The engine of a replica."""

    profile: str
    batching: str
    static_batch_size: int
    static_timeout: float
    kv_tokens: int | None
    max_model_len: int
    max_batch_tokens: int
    max_sequences: int
    block_size: int | None
    prefix_cache: bool


@dataclass(frozen=True, slots=True)
class FleetFlags:
    """Replicas and gateway."""

    replicas: int
    speeds: str | None
    policy: str
    events: tuple[str, ...]
    autoscale: str | None
    tokens_per_minute: int | None
    max_queue: int


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica: its speed, KV tokens where the planner knows them, price, and all that in words."""

    cost: StepCost
    words: str
    kv_tokens: int | None = None
    usd_per_hour: float = 0.0
    price_source: str = "no price: give --price"


def open_source(asked: WorkloadFlags) -> Source:
    """The workload asked for. Raises BadInput unless it is exactly one."""
    import random

    from weighbridge.simulator.experiment import RecordedSource, SyntheticSource
    from weighbridge.workload import servegen, traces
    from weighbridge.workload.synthetic import Synthetic, from_rows

    if (asked.trace is None) == (asked.workload is None):
        raise BadInput("give one of --trace FILE and --workload SPEC, such as --workload poisson:rate=5")
    if asked.workload is not None:
        if asked.limit is not None or asked.scale_prompt != 1.0 or asked.scale_output != 1.0:
            raise BadInput(
                "--limit, --scale-prompt and --scale-output change a --trace; write requests=, prompt= and "
                "output= into --workload"
            )
        spec = Synthetic.parse(asked.workload)
        return SyntheticSource(
            spec if asked.max_tokens is None else replace(spec, max_tokens=asked.max_tokens)
        )
    assert asked.trace is not None
    options = traces.TraceOptions(
        limit=asked.limit, scale_prompt=asked.scale_prompt, scale_output=asked.scale_output, smear=True
    )
    if asked.trace.is_dir():
        clients = servegen.read_clients(asked.trace)
        rng = random.Random(f"servegen {asked.seed}")
        rows = servegen.rows(clients, rng, start=asked.start, seconds=asked.duration)
        rows = traces.changed(rows, replace(options, smear=False))
    else:
        rows = traces.read_rows(asked.trace, options)
    return RecordedSource(from_rows(rows, asked.max_tokens), any(row.blocks for row in rows))


def machine(asked: MachineFlags, engine: EngineFlags, source: Source) -> Machine:
    """How fast a replica is and what it costs. Raises BadInput unless one thing says so."""
    if asked.price is not None and not asked.price < 1e9:
        raise BadInput("--price: write USD per replica-hour, such as 2.5", param="price")
    if asked.device is None and (asked.tp != 1 or asked.weights is not None):
        raise BadInput("--tp and --weights say how --model runs on --device: give both, or leave them out")
    found = _machine(asked, engine, source)
    if asked.price is None:
        return found
    return replace(found, usd_per_hour=asked.price, price_source="as given with --price")


def _machine(asked: MachineFlags, engine: EngineFlags, source: Source) -> Machine:
    from weighbridge.cost import DEFAULT_STEP_COST
    from weighbridge.simulator.step_costs import fit_timings, read_step_cost

    if sum(one is not None for one in (asked.device, asked.step_cost, asked.fit)) > 1:
        raise BadInput("give one of --device, --step-cost and --fit: each says how fast a replica is")
    if asked.step_cost is None and asked.fit is None and (asked.model is None) != (asked.device is None):
        raise BadInput("--model and --device go together: how fast a model is depends on both")
    if asked.step_cost is not None:
        return Machine(read_step_cost(asked.step_cost), f"step cost of {asked.step_cost.name}")
    if asked.fit is not None:
        return Machine(fit_timings(asked.fit), f"step cost fitted to {asked.fit.name}")
    if asked.model is None or asked.device is None:
        return Machine(DEFAULT_STEP_COST, "the default step cost (a 135M model on two server cores)")
    return _planned(asked.model, asked.device, asked, engine, source)


def _planned(model: str, device: str, asked: MachineFlags, engine: EngineFlags, source: Source) -> Machine:
    from itertools import islice

    from weighbridge.cost.hardware import find_device
    from weighbridge.cost.roofline import decode_share
    from weighbridge.planner.memory.memory import plan_memory
    from weighbridge.planner.memory.request import Deployment
    from weighbridge.planner.memory.source import open_model
    from weighbridge.planner.search.speed import step_cost

    found = find_device(device)
    deployment = Deployment(
        engine=engine.profile, tp=asked.tp, weights=asked.weights, max_model_len=engine.max_model_len
    )
    plan = plan_memory(open_model(model), deployment, found)
    where = f"{asked.tp} x {found.name}" if asked.tp > 1 else found.name
    if not plan.fits or plan.kv is None:
        raise BadInput(
            f"{model} does not fit {where}: {plan.problem}; `weighbridge plan` says what would make it fit",
            param="device",
        )
    sample: Sequence[Any] = list(islice(source.requests(0), 2000))
    prompt = sum(one.prompt_tokens for one in sample) / len(sample)
    output = sum(one.output_tokens for one in sample) / len(sample)
    return Machine(
        step_cost(plan, found, decode_share(prompt, output)),
        f"{plan.model.name} in {plan.stored.format} on {where}",
        int(plan.kv.tokens),
        found.usd_per_hour * asked.tp,
        found.price_note,
    )


def fleet_of(asked: FleetFlags, engine: EngineFlags, machine: Machine, source: Source) -> FleetSpec:
    """The fleet asked for. Raises BadInput for what no fleet can be."""
    from weighbridge.cost.price import Price
    from weighbridge.fleet.limits.tenant import TenantLimits
    from weighbridge.fleet.load.queue import QueueSettings
    from weighbridge.simulator.autoscale import Autoscaling
    from weighbridge.simulator.fleet import Act, FleetSpec, ReplicaSpec

    one = ReplicaSpec(
        cost=machine.cost,
        settings=_settings(engine, machine, source),
        batching=engine.batching,
        static_batch_size=engine.static_batch_size,
        static_timeout=engine.static_timeout,
        price=Price(usd_per_hour=machine.usd_per_hour),
    )
    one.scheduler()  # a wrong `batching` is said before anything runs
    scaling = Autoscaling.parse(asked.autoscale) if asked.autoscale is not None else None
    number = max(asked.replicas, scaling.rule.least) if scaling else asked.replicas
    limit = asked.tokens_per_minute
    return FleetSpec(
        replicas=replicas_of(one, number, asked.speeds),
        policy=asked.policy,
        queue=QueueSettings(max_requests=asked.max_queue),
        limits=TenantLimits(tokens_per_minute=limit) if limit else None,
        prefix_index=source.shares,
        script=tuple(Act.parse(text) for text in asked.events),
        autoscale=scaling,
    )


def _settings(engine: EngineFlags, machine: Machine, source: Source) -> SchedulerSettings:
    from weighbridge.simulator.fleet import engine_settings

    return engine_settings(
        engine.profile,
        kv_tokens=engine.kv_tokens or machine.kv_tokens or 131_072,
        max_model_len=engine.max_model_len,
        max_batch_tokens=engine.max_batch_tokens,
        max_sequences=engine.max_sequences,
        block_size=engine.block_size,
        # where nothing is shared, a cache finds nothing: save the time
        prefix_cache=engine.prefix_cache and source.shares,
    )


def check_page(path: Path | None) -> None:
    """A page that cannot be written is said before an hour is simulated."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise BadInput(f"--html {path}: give a file in a directory that exists", param="html")


def check_policy(name: str) -> None:
    import random

    from weighbridge.fleet.policies import make_policy

    make_policy(name, random.Random(0))


def replicas_of(one: ReplicaSpec, number: int, speeds: str | None) -> tuple[ReplicaSpec, ...]:
    if speeds is None:
        return (one,) * number
    try:
        factors = [float(part) for part in speeds.split(",")]
        if not all(0.0 < factor < 1e6 for factor in factors):
            raise ValueError(speeds)
    except ValueError:
        raise BadInput(f"--speeds {speeds!r}: write a factor for each replica, such as 1,1,0.5") from None
    if number not in (1, len(factors)):
        raise BadInput(f"--speeds names {len(factors)} replicas, --replicas {number}; give one of them")
    return tuple(one.slowed(1.0 / factor) for factor in factors)


def rates_of(text: str) -> list[float] | None:
    """The rates of `rate=1,2,4`; None for `rate=auto`."""
    name, _, values = text.partition("=")
    if name == "rate" and values == "auto":
        return None
    try:
        rates = [float(value) for value in values.split(",")]
        if name != "rate" or not all(0.0 < rate < 1e9 for rate in rates):
            raise ValueError(text)
    except ValueError:
        raise BadInput(f"--sweep {text!r}: write rate=1,2,4 or rate=auto", param="sweep") from None
    return rates


def fleets_to_compare(text: str, fleet: FleetSpec, max_model_len: int) -> dict[str, FleetSpec]:
    """`policy=weigh,round_robin`: a fleet for each value. Raises BadInput for what cannot be compared."""
    from weighbridge.simulator.fleet import engine_settings

    name, _, values = text.partition("=")
    found: dict[str, FleetSpec] = {}
    for value in filter(None, (one.strip() for one in values.split(","))):
        first = fleet.replicas[0]
        if name == "policy":
            check_policy(value)
            found[value] = replace(fleet, policy=value)
        elif name == "batching":
            changed = tuple(replace(one, batching=value) for one in fleet.replicas)
            changed[0].scheduler()
            found[value] = replace(fleet, replicas=changed)
        elif name == "replicas" and value.isdecimal() and int(value):
            found[value] = replace(fleet, replicas=(first,) * int(value))
        elif name in ("engine-profile", "engine_profile"):
            pool = first.settings.num_blocks * first.settings.block_size
            settings = engine_settings(
                value,
                kv_tokens=pool,
                max_model_len=max_model_len,
                max_batch_tokens=first.settings.max_batch_tokens,
                max_sequences=first.settings.max_sequences,
                prefix_cache=first.settings.enable_prefix_cache,
            )
            found[value] = replace(
                fleet, replicas=tuple(replace(r, settings=settings) for r in fleet.replicas)
            )
        else:
            found.clear()
            break
    if not found:
        raise BadInput(
            f"--compare {text!r}: write NAME=VALUE,VALUE with one of {', '.join(COMPARABLE)}", param="compare"
        )
    return found
