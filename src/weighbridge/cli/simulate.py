"""`weighbridge simulate`: try a fleet before there is one."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weighbridge.cli.simulate_inputs import (
    check_policy,
    fleets_to_compare,
    machine,
    open_source,
    rates_of,
    replicas_of,
)
from weighbridge.cli.simulate_show import show
from weighbridge.cli.terminal import counting, errors, print_json
from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.simulator.experiment import Experiment

Flag = typer.Option


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
    autoscale: Annotated[
        str | None,
        Flag(help="min=2,max=8[,high=5,low=1,up=2,down=60,settle=10,startup=30]: the fleet's own rule."),
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
    from weighbridge.simulator.autoscale import Autoscaling
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
    scaling = Autoscaling.parse(autoscale) if autoscale is not None else None
    one.scheduler()  # a wrong `batching` is said before anything runs
    fleet = FleetSpec(
        replicas=replicas_of(one, max(replicas, scaling.rule.least) if scaling else replicas, speeds),
        policy=policy,
        queue=QueueSettings(max_requests=max_queue),
        limits=TenantLimits(tokens_per_minute=tokens_per_minute) if tokens_per_minute else None,
        prefix_index=source.shares,
        script=tuple(Act.parse(text) for text in event or ()),
        autoscale=scaling,
    )
    experiment = Experiment(
        fleet=fleet,
        source=source,
        targets=Targets.parse(slo),
        seeds=range(seed, seed + seeds),
        rate=rate,
    )
    check_policy(policy)
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
            rates = rates_of(sweep)
            return {"sweep": experiment.find_knee() if rates is None else experiment.sweep(rates)}
        return experiment.run()
