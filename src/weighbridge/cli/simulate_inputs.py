"""What `weighbridge simulate` is given: a workload, a machine, replicas, fleets to compare, rates to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.cost import StepCost
    from weighbridge.simulator.experiment import Source
    from weighbridge.simulator.fleet import FleetSpec, ReplicaSpec

#: What `--compare` may vary, and how a value is read.
COMPARABLE = ("policy", "batching", "replicas", "engine-profile")


def open_source(
    trace: Path | None,
    workload: str | None,
    limit: int | None,
    scale_prompt: float,
    scale_output: float,
    max_tokens: int | None,
    start: float | None,
    duration: float,
    seed: int,
) -> Source:
    """The workload asked for. Raises BadInput unless it is exactly one."""
    import random

    from weighbridge.simulator import servegen, traces
    from weighbridge.simulator.experiment import RecordedSource, SyntheticSource
    from weighbridge.simulator.workload import Synthetic, from_rows

    if (trace is None) == (workload is None):
        raise BadInput("give one of --trace FILE and --workload SPEC, such as --workload poisson:rate=5")
    if workload is not None:
        spec = Synthetic.parse(workload)
        return SyntheticSource(spec if max_tokens is None else replace(spec, max_tokens=max_tokens))
    assert trace is not None
    options = traces.TraceOptions(
        limit=limit, scale_prompt=scale_prompt, scale_output=scale_output, smear=True
    )
    if trace.is_dir():
        clients = servegen.read_clients(trace)
        rows = servegen.rows(clients, random.Random(f"servegen {seed}"), start=start, seconds=duration)
        rows = traces.changed(rows, replace(options, smear=False))
    else:
        rows = traces.read_rows(trace, options)
    return RecordedSource(from_rows(rows, max_tokens), any(row.blocks for row in rows))


def machine(
    model: str | None,
    device: str | None,
    tp: int,
    weights: str | None,
    step_cost: Path | None,
    fit: Path | None,
    profile: str,
    max_model_len: int,
    source: Source,
) -> tuple[StepCost, int | None, float]:
    """Step cost, KV tokens where the planner knows them, and USD per hour of one replica."""
    from weighbridge.cost import DEFAULT_STEP_COST
    from weighbridge.simulator.step_costs import fit_timings, read_step_cost

    if sum(one is not None for one in (device, step_cost, fit)) > 1:
        raise BadInput("give one of --device, --step-cost and --fit: each says how fast a replica is")
    if step_cost is not None:
        return read_step_cost(step_cost), None, 0.0
    if fit is not None:
        return fit_timings(fit), None, 0.0
    if (model is None) != (device is None):
        raise BadInput("--model and --device go together: how fast a model is depends on both")
    if model is None or device is None:
        return DEFAULT_STEP_COST, None, 0.0
    return _planned(model, device, tp, weights, profile, max_model_len, source)


def _planned(
    model: str,
    device: str,
    tp: int,
    weights: str | None,
    profile: str,
    max_model_len: int,
    source: Source,
) -> tuple[StepCost, int | None, float]:
    from itertools import islice

    from weighbridge.cost.hardware import find_device
    from weighbridge.cost.roofline import decode_share
    from weighbridge.planner.memory import plan_memory
    from weighbridge.planner.request import Deployment
    from weighbridge.planner.source import open_model
    from weighbridge.planner.speed import step_cost

    found = find_device(device)
    deployment = Deployment(engine=profile, tp=tp, weights=weights, max_model_len=max_model_len)
    plan = plan_memory(open_model(model), deployment, found)
    if not plan.fits or plan.kv is None:
        raise BadInput(
            f"{model} does not fit {tp} x {found.name}: {plan.problem}; try a lower --max-model-len",
            param="device",
        )
    sample: Sequence[Any] = list(islice(source.requests(0), 2000))
    prompt = sum(one.prompt_tokens for one in sample) / len(sample)
    output = sum(one.output_tokens for one in sample) / len(sample)
    cost = step_cost(plan, found, decode_share(prompt, output))
    return cost, int(plan.kv.tokens), found.usd_per_hour * tp


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
