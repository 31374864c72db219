"""`weighbridge simulate`: try a fleet before there is one."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Annotated, Any

import typer

from weighbridge.cli.options import Panel, options
from weighbridge.cli.simulate.inputs import (
    FleetSettings,
    Machine,
    MachineSettings,
    RunSettings,
    WorkloadSettings,
    check_policy,
    fleet_of,
    fleets_to_compare,
    machine_of,
    open_source,
    rates_of,
)
from weighbridge.cli.simulate.show import show
from weighbridge.cli.terminal import counting, errors, print_json
from weighbridge.errors import BadInput
from weighbridge.pages.html import check_page
from weighbridge.simulator.experiment import Experiment
from weighbridge.simulator.fleet import SimulatedEngine
from weighbridge.simulator.page import write_page
from weighbridge.simulator.side_by_side import mapping


@options
def simulate(
    *,
    workload: Annotated[WorkloadSettings, Panel("What arrives")],
    speed: Annotated[MachineSettings, Panel("How fast and dear a replica is")],
    engine: Annotated[SimulatedEngine, Panel("The engine of a replica")],
    wanted: Annotated[FleetSettings, Panel("The fleet")],
    run: Annotated[RunSettings, Panel("What is asked")],
    json_output: Annotated[
        bool, typer.Option("--json", help="Print JSON.", rich_help_panel="What is asked")
    ] = False,
) -> None:
    """Run a workload through a simulated fleet: the real scheduler, policies and queue in virtual time."""
    check_policy(wanted.policy)
    source = open_source(workload, run.seed)
    machine = machine_of(speed, engine, source)
    experiment = Experiment(
        fleet=fleet_of(wanted, engine, machine, source),
        source=source,
        targets=run.slo,
        seeds=range(run.seed, run.seed + run.seeds),
        rate=workload.rate,
    )
    check_page(run.html)
    began = time.perf_counter()
    result = {
        "setup": _setup(experiment, workload, wanted, machine, run.compare),
        "price": {"usd_per_replica_hour": machine.usd_per_hour, "source": machine.price_source},
        "step_cost": machine.cost.as_dict(),
        "kv_tokens": experiment.fleet.replicas[0].capacity.kv_tokens,
        **_result(experiment, run, engine, quiet=json_output),
    }
    if run.html is not None:
        write_page(run.html, experiment, result)
    if json_output:
        print_json(result)
        return
    show(result)
    errors.print(f"[dim]simulated in {time.perf_counter() - began:.1f} s[/]")


def _setup(
    experiment: Experiment,
    workload: WorkloadSettings,
    wanted: FleetSettings,
    machine: Machine,
    compare: str | None,
) -> dict[str, str]:
    """In words: what ran on what, and what the targets and the price are."""
    fleet, targets = experiment.fleet, experiment.targets
    number = f"autoscaled ({wanted.autoscale})" if wanted.autoscale else f"{len(fleet.replicas)}"
    speeds = f" at speeds {wanted.speeds}" if wanted.speeds else ""
    setup = {
        "workload": workload.words,
        "replicas": f"{number} of {machine.words}{speeds}, {fleet.replicas[0].settings.batching} batching",
        "gateway": f"policy {fleet.policy}",
        "targets": f"TTFT {targets.ttft_s * 1e3:,.0f} ms, TPOT {targets.tpot_s * 1e3:,.0f} ms",
    }
    if compare is not None:
        setup["compared"] = compare
        if compare.startswith("policy="):
            del setup["gateway"]
    if machine.usd_per_hour:
        setup["price"] = f"{machine.usd_per_hour:,.2f} USD per replica-hour, {machine.price_source}"
    return setup


def _result(
    experiment: Experiment, run: RunSettings, engine: SimulatedEngine, *, quiet: bool
) -> dict[str, Any]:
    """The figures. Raises BadInput for what cannot be compared or swept, and where no request fits."""
    if run.compare is not None and run.sweep is not None:
        raise BadInput("give --compare or --sweep, not both")
    single = run.compare is None and run.sweep is None and len(experiment.seeds) == 1
    processes = 1 if single else run.jobs or os.cpu_count() or 1
    with mapping(processes) as mapper, counting("Simulating", quiet=quiet) as report:
        experiment = replace(experiment, report=report, mapper=mapper)
        if run.compare is not None:
            return {"compare": experiment.compare(fleets_to_compare(run.compare, experiment.fleet, engine))}
        if run.sweep is not None:
            rates = rates_of(run.sweep)
            return {"sweep": experiment.find_knee() if rates is None else experiment.sweep(rates)}
        result = experiment.run()
    if result["failed"] == result["requests"] and set(result["errors"]) == {"never_fits"}:
        raise BadInput(
            "no request fits: prompt and allowed answer together exceed --max-model-len "
            f"{engine.max_model_len} or the KV cache; raise it or --kv-tokens, or give a lower --max-tokens"
        )
    return result
