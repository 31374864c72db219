"""`weighbridge simulate`: try a fleet before there is one."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from weighbridge.cli import simulate_flags as flags
from weighbridge.cli.simulate_inputs import (
    EngineFlags,
    FleetFlags,
    Machine,
    MachineFlags,
    WorkloadFlags,
    check_page,
    check_policy,
    fleet_of,
    fleets_to_compare,
    machine,
    open_source,
    rates_of,
)
from weighbridge.cli.simulate_show import show
from weighbridge.cli.terminal import counting, errors, print_json
from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.simulator.experiment import Experiment


# fmt: off
def simulate(
    trace: flags.Trace = None, workload: flags.Workload = None, rate: flags.Rate = None, limit: flags.Limit = None,
    scale_prompt: flags.ScalePrompt = 1.0, scale_output: flags.ScaleOutput = 1.0, max_tokens: flags.MaxTokens = None,
    start: flags.Start = None, duration: flags.Duration = 600.0,
    model: flags.Model = None, device: flags.Device = None, tp: flags.TensorParallel = 1,
    weights: flags.Weights = None, step_cost: flags.StepCostFile = None, fit: flags.Fit = None,
    price: flags.Price = None,
    engine_profile: flags.Profile = "weighbridge", batching: flags.Batching = "continuous",
    static_batch_size: flags.StaticBatch = 16, static_timeout: flags.StaticTimeout = 0.1,
    kv_tokens: flags.KvTokens = None, max_model_len: flags.MaxModelLen = 32_768,
    max_batch_tokens: flags.MaxBatchTokens = 2048, max_sequences: flags.MaxSequences = 256,
    block_size: flags.BlockSize = None, prefix_cache: flags.PrefixCache = True,
    replicas: flags.Replicas = 1, speeds: flags.Speeds = None, policy: flags.Policy = "weigh",
    event: flags.Events = None, autoscale: flags.Autoscale = None,
    tokens_per_minute: flags.TokensPerMinute = None, max_queue: flags.MaxQueue = 1 << 20,
    slo: flags.Slo = "ttft=1s,tpot=100ms", seed: flags.Seed = 0, seeds: flags.Seeds = 1,
    compare: flags.Compare = None, sweep: flags.Sweep = None, jobs: flags.Jobs = None, html: flags.Html = None,
    json_output: flags.Json = False,
) -> None:
    """Run a workload through a simulated fleet: the real scheduler, policies and queue in virtual time."""
    arriving = WorkloadFlags(
        trace, workload, limit, scale_prompt, scale_output, max_tokens, start, duration, seed
    )
    engine = EngineFlags(
        engine_profile, batching, static_batch_size, static_timeout, kv_tokens, max_model_len, max_batch_tokens,
        max_sequences, block_size, prefix_cache,
    )
    wanted = FleetFlags(replicas, speeds, policy, tuple(event or ()), autoscale, tokens_per_minute, max_queue)
    speed = MachineFlags(model, device, tp, weights, step_cost, fit, price)
    experiment, found = _experiment(arriving, speed, engine, wanted, slo, range(seed, seed + seeds), rate)
    check_page(html)
    began = time.perf_counter()
    result = {
        "setup": _setup(experiment, arriving, wanted, found, compare),
        "price": {"usd_per_replica_hour": found.usd_per_hour, "source": found.price_source},
        "step_cost": found.cost.as_dict(),
        "kv_tokens": experiment.fleet.replicas[0].capacity.kv_tokens,
        **_result(experiment, compare, sweep, jobs, max_model_len, json_output),
    }
    if html is not None:
        from weighbridge.simulator.page import write_page

        write_page(html, experiment, result)
    if json_output:
        print_json(result)
        return
    show(result)
    errors.print(f"[dim]simulated in {time.perf_counter() - began:.1f} s[/]")
# fmt: on


def _experiment(
    arriving: WorkloadFlags,
    speed: MachineFlags,
    engine: EngineFlags,
    wanted: FleetFlags,
    slo: str,
    seeds: range,
    rate: float | None,
) -> tuple[Experiment, Machine]:
    """What is to be simulated, and the machine in it; whatever is wrong is said before anything runs."""
    from weighbridge.simulator.experiment import Experiment
    from weighbridge.simulator.report import Targets

    check_policy(wanted.policy)
    source = open_source(arriving)
    found = machine(speed, engine, source)
    fleet = fleet_of(wanted, engine, found, source)
    return Experiment(fleet=fleet, source=source, targets=Targets.parse(slo), seeds=seeds, rate=rate), found


def _setup(
    experiment: Experiment, arriving: WorkloadFlags, wanted: FleetFlags, found: Machine, compare: str | None
) -> dict[str, str]:
    """In words: what ran on what, and what the targets and the price are."""
    fleet, targets = experiment.fleet, experiment.targets
    rate = f", at {experiment.rate:g} requests/s" if experiment.rate is not None else ""
    number = f"autoscaled ({wanted.autoscale})" if wanted.autoscale else f"{len(fleet.replicas)}"
    speeds = f" at speeds {wanted.speeds}" if wanted.speeds else ""
    setup = {
        "workload": f"{arriving.words}{rate}",
        "replicas": f"{number} of {found.words}{speeds}, {fleet.replicas[0].batching} batching",
        "gateway": f"policy {fleet.policy}",
        "targets": f"TTFT {targets.ttft * 1e3:,.0f} ms, TPOT {targets.tpot * 1e3:,.0f} ms",
    }
    if compare is not None:
        setup["compared"] = compare
        if compare.startswith("policy="):
            del setup["gateway"]
    if found.usd_per_hour:
        setup["price"] = f"{found.usd_per_hour:,.2f} USD per replica-hour, {found.price_source}"
    return setup


def _result(
    experiment: Experiment,
    compare: str | None,
    sweep: str | None,
    jobs: int | None,
    max_model_len: int,
    quiet: bool,
) -> dict[str, Any]:
    from weighbridge.simulator.side_by_side import mapping

    if compare is not None and sweep is not None:
        raise BadInput("give --compare or --sweep, not both")
    single = compare is None and sweep is None and len(experiment.seeds) == 1
    processes = 1 if single else jobs or os.cpu_count() or 1
    with mapping(processes) as mapper, counting("Simulating", quiet=quiet) as report:
        experiment = replace(experiment, report=report, mapper=mapper)
        if compare is not None:
            return {
                "compare": experiment.compare(fleets_to_compare(compare, experiment.fleet, max_model_len))
            }
        if sweep is not None:
            rates = rates_of(sweep)
            return {"sweep": experiment.find_knee() if rates is None else experiment.sweep(rates)}
        result = experiment.run()
    if result["failed"] == result["requests"] and set(result["errors"]) == {"never_fits"}:
        raise BadInput(
            f"no request fits: prompt and allowed answer together exceed --max-model-len {max_model_len} or the KV "
            "cache; raise it or --kv-tokens, or give a lower --max-tokens"
        )
    return result
