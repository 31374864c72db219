"""What `weighbridge simulate` is given: a workload, a machine, replicas, fleets to compare, rates to try."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from weighbridge.cost import DEFAULT_STEP_COST, StepCost
from weighbridge.cost.hardware import find_device
from weighbridge.cost.price import Price
from weighbridge.cost.roofline import decode_share
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
from weighbridge.errors import BadInput
from weighbridge.fleet.limits.tenant import TenantLimits
from weighbridge.fleet.load.queue import QueueSettings
from weighbridge.fleet.policies import make_policy
from weighbridge.knobs import knob
from weighbridge.planner.memory.memory import plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.search.speed import step_cost
from weighbridge.simulator.autoscale import Autoscaling
from weighbridge.simulator.experiment import RecordedSource, RequestSource, SyntheticSource
from weighbridge.simulator.fleet import Act, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec
from weighbridge.simulator.step_costs import fit_timings, read_step_cost
from weighbridge.workload import servegen, traces
from weighbridge.workload.slo import USUAL, Slo, parse_slo
from weighbridge.workload.synthetic import Synthetic, from_rows

#: What `--compare` may vary, and how a value is read.
COMPARABLE = ("policy", "batching", "replicas", "engine-profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings:
    """What arrives."""

    trace: Path | None = knob(None, "Azure CSV, Mooncake or plain JSONL, ServeGen directory, or tickets.")
    workload: str | None = knob(
        None,
        "Synthetic, such as poisson:rate=5,requests=1000 with prompt=LENGTHS and output=LENGTHS, each such as "
        "200 or lognormal:600:0.9. Also gamma, constant, bursts, heavy_tail, shared_prefix, sessions, agents.",
    )
    rate: float | None = knob(None, "Requests a second, instead of the workload's.", min=1e-6)
    limit: int | None = knob(None, "Only the trace's first requests.", min=1)
    scale_prompt: float = knob(1.0, "Factor on the trace's prompts.", min=0.0)
    scale_output: float = knob(1.0, "Factor on the trace's outputs.", min=0.0)
    max_tokens: int | None = knob(None, "What clients allow; none: the longest output's size.", min=1)
    start: float | None = knob(None, "ServeGen: from this second; none: the busiest.", min=0.0)
    duration: float = knob(600.0, "ServeGen: for so many seconds.", min=1.0)

    @property
    def words(self) -> str:
        """The workload in words, for the report."""
        rate = f", at {self.rate:g} requests/s" if self.rate is not None else ""
        if self.trace is None:
            return f"{self.workload}{rate}"
        first = f", its first {self.limit:,} requests" if self.limit else ""
        scaled = [
            f"{name} x {factor:g}"
            for name, factor in (("prompts", self.scale_prompt), ("outputs", self.scale_output))
            if factor != 1.0
        ]
        return ", ".join([f"{self.trace.name}{first}", *scaled]) + rate


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """How fast a replica is, and what it costs."""

    model: str | None = knob(None, "With --device: a catalogue name, config.json, directory or GGUF file.")
    device: str | None = knob(None, "A device of `weighbridge plan --list-devices`.")
    tp: int = knob(1, "With --device: GPUs of one replica.", min=1)
    weights: str | None = knob(None, "With --device: bf16, fp8, awq ...")
    step_cost: Path | None = knob(None, "Instead of a device: JSON of `weighbridge calibrate --json`.")
    fit: Path | None = knob(None, "Instead: CSV of timings (tokens, sequences, context_tokens, seconds).")
    price: float | None = knob(None, "USD per replica-hour; none: the device's.", min=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Replicas and the gateway in front of them."""

    replicas: int = knob(1, "How many.", min=1)
    speeds: str | None = knob(None, "Relative speed of each replica, such as 1,1,0.5.")
    policy: str = knob("weigh", "How the gateway chooses a replica; a name that is none prints them all.")
    events: tuple[Act, ...] = knob(
        (),
        "SECONDS:fail|drain|add:NAME, replicas are r0, r1 ...; may repeat.",
        flag="--event",
        parse=Act.parse,
    )
    autoscale: str | None = knob(
        None,
        "The fleet's own rule: min=2,max=8 and, where wanted, high=5, low=1 (seconds of queued work), up=2, "
        "down=60, settle=10, startup=30 (seconds).",
    )
    tokens_per_minute: int | None = knob(None, "Limit of each tenant.", min=1)
    max_queue: int = knob(1 << 20, "Requests that may wait in the gateway.", min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What is to be found out."""

    slo: Slo = knob(USUAL, "What counts as good.", parse=parse_slo, written="ttft=1s,tpot=100ms")
    seed: int = knob(0, "First seed.", min=0)
    seeds: int = knob(1, "How many, for confidence intervals.", min=1)
    compare: str | None = knob(
        None, "policy=weigh,round_robin or another of batching, replicas, engine-profile."
    )
    sweep: str | None = knob(None, "rate=1,2,4 or rate=auto: find the knee.")
    jobs: int | None = knob(None, "Runs side by side; none: one for each core.", min=1)
    html: Path | None = knob(None, "Write timelines and curves to this file.")


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica: its speed, KV tokens where the planner knows them, price, and all that in words."""

    cost: StepCost
    words: str
    kv_tokens: int | None = None
    usd_per_hour: float = 0.0
    price_source: str = "no price: give --price"


def open_source(asked: WorkloadSettings, seed: int) -> RequestSource:
    """The workload asked for. Raises BadInput unless it is exactly one."""
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
        rng = random.Random(f"servegen {seed}")
        rows = servegen.rows(clients, rng, start=asked.start, seconds=asked.duration)
        rows = traces.changed(rows, replace(options, smear=False))
    else:
        rows = traces.read_rows(asked.trace, options)
    return RecordedSource(from_rows(rows, asked.max_tokens), any(row.blocks for row in rows))


def machine_of(asked: MachineSettings, engine: SimulatedEngine, source: RequestSource) -> Machine:
    """How fast a replica is and what it costs. Raises BadInput unless one thing says so."""
    if asked.price is not None and not asked.price < 1e9:
        raise BadInput("--price: write USD per replica-hour, such as 2.5", param="price")
    if asked.device is None and (asked.tp != 1 or asked.weights is not None):
        raise BadInput("--tp and --weights say how --model runs on --device: give both, or leave them out")
    found = _machine(asked, engine, source)
    if asked.price is None:
        return found
    return replace(found, usd_per_hour=asked.price, price_source="as given with --price")


def _machine(asked: MachineSettings, engine: SimulatedEngine, source: RequestSource) -> Machine:
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


def _planned(
    model: str, device: str, asked: MachineSettings, engine: SimulatedEngine, source: RequestSource
) -> Machine:
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


def fleet_of(
    asked: FleetSettings, engine: SimulatedEngine, machine: Machine, source: RequestSource
) -> SimulatedFleet:
    """The fleet asked for. Raises BadInput for what no fleet can be."""
    one = SimulatedReplicaSpec(
        cost=machine.cost,
        settings=replace(
            engine,
            kv_tokens=engine.kv_tokens or machine.kv_tokens,
            # where nothing is shared, a cache finds nothing: save the time
            enable_prefix_cache=engine.enable_prefix_cache and source.shares,
        ).settings(),
        price=Price(usd_per_hour=machine.usd_per_hour),
    )
    scaling = Autoscaling.parse(asked.autoscale) if asked.autoscale is not None else None
    number = max(asked.replicas, scaling.rule.least) if scaling else asked.replicas
    limit = asked.tokens_per_minute
    return SimulatedFleet(
        replicas=replicas_of(one, number, asked.speeds),
        policy=asked.policy,
        queue=QueueSettings(max_requests=asked.max_queue),
        limits=TenantLimits(tokens_per_minute=limit) if limit else None,
        prefix_index=source.shares,
        script=asked.events,
        autoscale=scaling,
    )


def check_policy(name: str) -> None:
    make_policy(name, random.Random(0))


def replicas_of(
    one: SimulatedReplicaSpec, number: int, speeds: str | None
) -> tuple[SimulatedReplicaSpec, ...]:
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


def fleets_to_compare(text: str, fleet: SimulatedFleet, engine: SimulatedEngine) -> dict[str, SimulatedFleet]:
    """`policy=weigh,round_robin`: a fleet for each value. Raises BadInput for what cannot be compared."""
    name, _, values = text.partition("=")
    found: dict[str, SimulatedFleet] = {}
    for value in filter(None, (one.strip() for one in values.split(","))):
        first = fleet.replicas[0]
        if name == "policy":
            check_policy(value)
            found[value] = replace(fleet, policy=value)
        elif name == "batching":
            found[value] = _with_settings(fleet, replace(first.settings, batching=value))
        elif name == "replicas" and value.isdecimal() and int(value):
            found[value] = replace(fleet, replicas=(first,) * int(value))
        elif name in ("engine-profile", "engine_profile"):
            settings = replace(
                engine,
                profile=value,
                kv_tokens=first.settings.num_blocks * first.settings.block_size,
                tokens_per_block=None,
                enable_prefix_cache=first.settings.enable_prefix_cache,
            ).settings()
            found[value] = _with_settings(fleet, settings)
        else:
            found.clear()
            break
    if not found:
        raise BadInput(
            f"--compare {text!r}: write NAME=VALUE,VALUE with one of {', '.join(COMPARABLE)}", param="compare"
        )
    return found


def _with_settings(fleet: SimulatedFleet, settings: SchedulerSettings) -> SimulatedFleet:
    return replace(fleet, replicas=tuple(replace(one, settings=settings) for one in fleet.replicas))
