"""`weighbridge simulate`: try a fleet before there is one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import counting, errors, print_json
from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.cost import StepCost
    from weighbridge.simulator.experiment import Experiment, Source
    from weighbridge.simulator.fleet import FleetSpec, ReplicaSpec

Flag = typer.Option

#: What `--compare` may vary, and how a value is read.
COMPARABLE = ("policy", "batching", "replicas", "engine-profile")


def simulate(
    trace: Annotated[
        Path | None, Flag(help="Azure CSV, Mooncake or plain JSONL, ServeGen directory, or tickets.")
    ] = None,
    workload: Annotated[
        str | None, Flag(help="Such as poisson:rate=5,requests=1000,prompt=lognormal:600:0.9.")
    ] = None,
    model: Annotated[str | None, Flag(help="For --device: catalogue name, config.json, GGUF.")] = None,
    device: Annotated[str | None, Flag(help="A device of `weighbridge plan --list-devices`.")] = None,
    tp: Annotated[int, Flag(min=1, help="With --device: GPUs of one replica.")] = 1,
    weights: Annotated[str | None, Flag(help="With --device: bf16, fp8, awq ...")] = None,
    step_cost: Annotated[Path | None, Flag(help="JSON of `weighbridge calibrate`.")] = None,
    fit: Annotated[Path | None, Flag(help="CSV: tokens, sequences, context_tokens, seconds.")] = None,
    engine_profile: Annotated[str, Flag(help="weighbridge or vllm.")] = "weighbridge",
    replicas: Annotated[int, Flag(min=1, help="How many.")] = 1,
    speeds: Annotated[str | None, Flag(help="Relative speed of each replica, such as 1,1,0.5.")] = None,
    policy: Annotated[str, Flag(help="How the gateway chooses a replica.")] = "weigh",
    batching: Annotated[str, Flag(help="continuous or static.")] = "continuous",
    static_batch_size: Annotated[int, Flag(min=1, help="With --batching static.")] = 16,
    static_timeout: Annotated[float, Flag(min=0.0, help="Seconds a static batch waits to fill.")] = 0.1,
    kv_tokens: Annotated[int | None, Flag(min=1, help="KV cache of a replica, in tokens.")] = None,
    max_model_len: Annotated[int, Flag(min=2, help="Prompt and answer together.")] = 32_768,
    max_batch_tokens: Annotated[int, Flag(min=1, help="Tokens of one iteration.")] = 2048,
    max_sequences: Annotated[int, Flag(min=1, help="Requests in one batch.")] = 256,
    block_size: Annotated[int | None, Flag(min=1, help="Tokens of a KV block; none: the engine's.")] = None,
    prefix_cache: Annotated[bool, Flag(help="Share equal prompt beginnings.")] = True,
    rate: Annotated[
        float | None, Flag(min=1e-6, help="Requests a second, instead of the workload's.")
    ] = None,
    limit: Annotated[int | None, Flag(min=1, help="Only the trace's first requests.")] = None,
    scale_prompt: Annotated[float, Flag(min=0.0, help="Factor on the trace's prompts.")] = 1.0,
    scale_output: Annotated[float, Flag(min=0.0, help="Factor on the trace's outputs.")] = 1.0,
    max_tokens: Annotated[
        int | None, Flag(min=1, help="What clients allow; none: the longest output's size.")
    ] = None,
    start: Annotated[
        float | None, Flag(min=0.0, help="ServeGen: from this second; none: the busiest.")
    ] = None,
    duration: Annotated[float, Flag(min=1.0, help="ServeGen: for so many seconds.")] = 600.0,
    price: Annotated[float | None, Flag(min=0.0, help="USD per replica-hour; none: the device's.")] = None,
    event: Annotated[
        list[str] | None, Flag(help="SECONDS:fail|drain|add:NAME, replicas are r0, r1 ...; may repeat.")
    ] = None,
    tokens_per_minute: Annotated[int | None, Flag(min=1, help="Limit of each tenant.")] = None,
    max_queue: Annotated[int, Flag(min=0, help="Requests that may wait in the gateway.")] = 1 << 20,
    slo: Annotated[str, Flag(help="What counts as good.")] = "ttft=1s,tpot=100ms",
    seed: Annotated[int, Flag(min=0, help="First seed.")] = 0,
    seeds: Annotated[int, Flag(min=1, help="How many, for confidence intervals.")] = 1,
    compare: Annotated[
        str | None, Flag(help="policy=weigh,round_robin or another of batching, replicas, engine-profile.")
    ] = None,
    sweep: Annotated[str | None, Flag(help="rate=1,2,4 or rate=auto: find the knee.")] = None,
    html: Annotated[Path | None, Flag(help="Write timelines and curves to this file.")] = None,
    json_output: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Run a workload through a simulated fleet: the real scheduler, policies and queue in virtual time."""
    from weighbridge.fleet.limits import TenantLimits
    from weighbridge.fleet.queue import QueueSettings
    from weighbridge.simulator.experiment import Experiment
    from weighbridge.simulator.fleet import Act, FleetSpec, ReplicaSpec, engine_settings
    from weighbridge.simulator.report import Targets

    source = open_source(
        trace, workload, limit, scale_prompt, scale_output, max_tokens, start, duration, seed
    )
    cost, planned_tokens, hourly = machine(
        model, device, tp, weights, step_cost, fit, engine_profile, max_model_len, source
    )
    settings = engine_settings(
        engine_profile,
        kv_tokens=kv_tokens or planned_tokens or 131_072,
        max_model_len=max_model_len,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        block_size=block_size,
        prefix_cache=prefix_cache
        and source.shares,  # where nothing is shared, a cache finds nothing: save time
    )
    from weighbridge.cost.price import Price

    one = ReplicaSpec(
        cost=cost,
        settings=settings,
        batching=batching,
        static_batch_size=static_batch_size,
        static_timeout=static_timeout,
        price=Price(usd_per_hour=hourly if price is None else price),
    )
    one.scheduler()  # a wrong `batching` is said before anything runs
    fleet = FleetSpec(
        replicas=_replicas(one, replicas, speeds),
        policy=policy,
        queue=QueueSettings(max_requests=max_queue),
        limits=TenantLimits(tokens_per_minute=tokens_per_minute) if tokens_per_minute else None,
        prefix_index=source.shares,
        script=tuple(Act.parse(text) for text in event or ()),
    )
    experiment = Experiment(
        fleet=fleet,
        source=source,
        targets=Targets.parse(slo),
        seeds=range(seed, seed + seeds),
        rate=rate,
    )
    _check_policy(policy)
    began = time.perf_counter()
    result = _result(experiment, compare, sweep, max_model_len, json_output)
    result = {"step_cost": cost.as_dict(), "kv_tokens": settings.num_blocks * settings.block_size, **result}
    if html is not None:
        from weighbridge.simulator.page import write_page

        write_page(html, experiment, result)
    if json_output:
        print_json(result)
        return
    show(result)
    errors.print(f"[dim]simulated in {time.perf_counter() - began:.1f} s[/]")


def _result(
    experiment: Experiment, compare: str | None, sweep: str | None, max_model_len: int, quiet: bool
) -> dict[str, Any]:
    if compare is not None and sweep is not None:
        raise BadInput("give --compare or --sweep, not both")
    with counting("Simulating", quiet=quiet) as report:
        experiment = replace(experiment, report=report)
        if compare is not None:
            return {
                "compare": experiment.compare(fleets_to_compare(compare, experiment.fleet, max_model_len))
            }
        if sweep is not None:
            rates = _rates(sweep)
            return {"sweep": experiment.find_knee() if rates is None else experiment.sweep(rates)}
        return experiment.run()


def _check_policy(name: str) -> None:
    import random

    from weighbridge.fleet.policies import make_policy

    make_policy(name, random.Random(0))


def _replicas(one: ReplicaSpec, number: int, speeds: str | None) -> tuple[ReplicaSpec, ...]:
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


def _rates(text: str) -> list[float] | None:
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
            _check_policy(value)
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


# -- shown ---------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    if "compare" in result:
        console.print(_table(result["compare"]))
    elif "sweep" in result:
        points = {f"{point['rate']:.3g}/s": point for point in result["sweep"]["points"]}
        console.print(_table(points))
        knee, share = result["sweep"]["knee_rps"], result["sweep"]["served_share"]
        said = "no rate tried" if knee is None else f"up to {knee:.3g} requests/s"
        console.print(f"{said} keeps {share:.0%} of the requests within the targets")
    else:
        console.print(_one(result))
        console.print(_sentence(result), soft_wrap=True)


def _one(result: dict[str, Any]) -> Table:
    table = Table("ms", "mean", "p50", "p90", "p95", "p99")
    rows = {
        "TTFT": "ttft_ms",
        "TPOT": "tpot_ms",
        "ITL": "itl_ms",
        "total": "e2e_ms",
        "in gateway": "gateway_wait_ms",
    }
    for name, key in rows.items():
        cells = [_number(result, key, column) for column in ("mean", "p50", "p90", "p95", "p99")]
        table.add_row(name, *cells)
    return table


def _number(result: dict[str, Any], key: str, column: str) -> str:
    if column not in result[key]:
        return ""
    interval = result.get("intervals", {}).get(key, {}).get(column)
    half = interval["high"] - interval["mean"] if interval else 0.0
    value = f"{result[key][column]:.1f}"
    return f"{value} ± {half:.1f}" if half else value


def _sentence(result: dict[str, Any]) -> str:
    said = (
        f"{result['requests']:.0f} requests in {result['seconds']:.1f} s: {result['output_tokens_per_s']:.1f} output "
        f"tokens/s, {result['goodput_rps']:.2f} requests/s within the targets ({result['good_share']:.1%}); machines "
        f"{result['utilization']:.0%} busy, KV {result['kv_occupancy']:.0%} full, {result['prefix_hit_rate']:.1%} of "
        f"prompt tokens from caches, {result['preemptions']:.0f} preemptions"
    )
    if result["usd"]:
        said += f", {result['usd_per_million_output_tokens']:.2f} USD per million output tokens"
    if result["failed"]:
        said += f"; {result['failed']:.0f} failed ({', '.join(result['errors'])})"
    return said


def _table(results: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        "", "TTFT p50", "p95", "p99 ms", "TPOT p50", "p99 ms", "e2e p99 s", "tok/s", "good", "hits", "busy"
    )
    for name, one in results.items():
        table.add_row(
            name,
            _number(one, "ttft_ms", "p50"),
            _number(one, "ttft_ms", "p95"),
            _number(one, "ttft_ms", "p99"),
            _number(one, "tpot_ms", "p50"),
            _number(one, "tpot_ms", "p99"),
            f"{one['e2e_ms']['p99'] / 1e3:.2f}",
            f"{one['output_tokens_per_s']:.0f}",
            f"{one['good_share']:.1%}",
            f"{one['prefix_hit_rate']:.1%}",
            f"{one['utilization']:.0%}",
        )
    return table
