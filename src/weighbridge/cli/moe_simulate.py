"""`weighbridge moe simulate`: what a placement of experts does to throughput and p99, before there are GPUs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import counting, print_json
from weighbridge.errors import BadInput

if TYPE_CHECKING:
    from weighbridge.planner.experts.placement import Devices, Floats, Placement
    from weighbridge.planner.experts.simulation import Outcome, Place, Times, Traffic

Flag = typer.Option


def simulate(
    gpus: Annotated[int, Flag(help="Devices that share the experts.")],
    loads: Annotated[
        Path | None,
        Flag(help="Measured tokens per expert, whose skew is taken: JSON, CSV, or of /v1/experts."),
    ] = None,
    layers: Annotated[int | None, Flag(min=1, help="Without --loads: layers with experts.")] = None,
    experts: Annotated[int | None, Flag(min=2, help="Without --loads: experts of a layer.")] = None,
    top_k: Annotated[int, Flag(min=1, help="Experts of each token.")] = 8,
    tokens: Annotated[int, Flag(min=1, help="Tokens of one step, of all GPUs together.")] = 512,
    replicas: Annotated[
        int | None, Flag(help="Expert slots in all; none: one per expert, filled up to the GPUs.")
    ] = None,
    nodes: Annotated[int, Flag(help="Machines the GPUs are in.")] = 1,
    groups: Annotated[int, Flag(help="Groups of experts that are routed together.")] = 1,
    skew: Annotated[
        float | None, Flag(min=0.0, help="Exponent of the power law of loads; none: the measured one, or 1.")
    ] = None,
    correlation: Annotated[
        float, Flag(help="How much a step's loads resemble the last one's, below 1.")
    ] = 0.9,
    noise: Annotated[
        float, Flag(min=0.0, help="How far loads of a step are from their mean (log scale).")
    ] = 0.2,
    drift: Annotated[float, Flag(help="Share of experts that trade popularity every 1,000 steps.")] = 0.0,
    steps: Annotated[int, Flag(min=1, max=1_000_000, help="Steps to run.")] = 1000,
    replace_every: Annotated[
        int | None, Flag(min=1, help="Place anew after so many steps, by the loads seen meanwhile.")
    ] = None,
    other_ms: Annotated[float, Flag(min=0.0, help="A step beside its experts, in ms.")] = 5.0,
    token_us: Annotated[float, Flag(min=0.0, help="One token in one expert, in us.")] = 1.0,
    expert_us: Annotated[float, Flag(min=0.0, help="Reading one expert's weights, in us.")] = 6.3,
    seed: Annotated[int, Flag(min=0, help="Of loads and drift.")] = 0,
    json_output: Annotated[bool, Flag("--json", help="Print JSON.")] = False,
) -> None:
    """Run an expert-parallel group under skewed, drifting loads: the slowest GPU sets each step."""
    from weighbridge.planner.experts.placement import Devices
    from weighbridge.planner.experts.simulation import Times

    traffic = _traffic(loads, layers, experts, top_k, tokens, skew)
    traffic = replace(traffic, correlation=correlation, noise=noise, drift=drift)
    traffic.check()
    slots = replicas if replicas is not None else -(-traffic.experts // max(gpus, 1)) * gpus
    devices = Devices(gpus, slots, nodes, groups)
    devices.check(traffic.experts)
    times = Times(other_ms * 1e-3, token_us * 1e-6, expert_us * 1e-6)
    found = _outcomes(traffic, devices, times, steps, replace_every, seed, quiet=json_output)
    if json_output:
        print_json(
            {
                "traffic": asdict(traffic),
                "devices": asdict(devices),
                "times": asdict(times),
                "steps": steps,
                "seed": seed,
                "replace_every": replace_every,
                "placements": {name: asdict(outcome) for name, outcome in found.items()},
            }
        )
        return
    _print(traffic, devices, found)


def _traffic(
    loads: Path | None, layers: int | None, experts: int | None, top_k: int, tokens: int, skew: float | None
) -> Traffic:
    """Raises BadInput unless either measured loads or layers and experts are given."""
    from weighbridge.planner.experts.report import parse_loads
    from weighbridge.planner.experts.simulation import Traffic, fitted_traffic

    if loads is None:
        if layers is None or experts is None:
            raise BadInput("give --loads FILE, or --layers and --experts, such as --layers 48 --experts 128")
        return Traffic(layers, experts, top_k, tokens, 1.0 if skew is None else skew)
    if layers is not None or experts is not None:
        raise BadInput("--loads says how many layers and experts there are: leave out --layers and --experts")
    try:
        text = loads.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--loads {loads} cannot be read: {error}", param="loads") from error
    counts = parse_loads(text, str(loads)).loads
    if (counts.sum(axis=1) <= 0.0).any():
        raise BadInput(f"{loads}: every layer needs some tokens to show how they spread", param="loads")
    if top_k > counts.shape[1]:
        raise BadInput(f"--top-k {top_k}: {loads} has only {counts.shape[1]} experts", param="top_k")
    fitted = fitted_traffic(counts, top_k, tokens)
    return fitted if skew is None else replace(fitted, skew=skew)


def _outcomes(
    traffic: Traffic,
    devices: Devices,
    times: Times,
    steps: int,
    replace_every: int | None,
    seed: int,
    *,
    quiet: bool,
) -> dict[str, Outcome]:
    """The same loads on each placement; with `replace_every`, also on those that are renewed."""
    import numpy as np

    from weighbridge.planner.experts.local_search import balance
    from weighbridge.planner.experts.placement import eplb, static_placement
    from weighbridge.planner.experts.simulation import simulate as run

    def static(loads: Floats, _: Placement | None) -> Placement:
        return static_placement(len(loads), loads.shape[1], devices.replicas)

    placers: dict[str, tuple[Place, int | None]] = {
        "in order": (static, None),
        "eplb": (lambda loads, _: eplb(loads, devices), None),
        "balance": (lambda loads, current: balance(loads, devices, current=current), None),
    }
    if replace_every is not None:
        for name in ("eplb", "balance"):
            placers[f"{name}, every {replace_every}"] = (placers[name][0], replace_every)
    found: dict[str, Outcome] = {}
    with counting("Simulating", quiet=quiet) as report:
        for name, (place, every) in placers.items():
            rng = np.random.default_rng(seed)
            found[name] = run(traffic, devices, place, steps, rng, times, every)
            report(len(found), len(placers))
    return found


def _print(traffic: Traffic, devices: Devices, found: dict[str, Outcome]) -> None:
    table = Table(
        "placement", "tokens/s", "gain", "step mean ms", "p99 ms", "balancedness", "experts fetched"
    )
    plain = next(iter(found.values()))
    for name, one in found.items():
        table.add_row(
            name,
            f"{one.tokens_per_second:,.0f}",
            "" if one is plain else f"{one.tokens_per_second / plain.tokens_per_second - 1.0:+.1%}",
            f"{one.mean_step * 1e3:.2f}",
            f"{one.p99_step * 1e3:.2f}",
            f"{one.balancedness:.3f}",
            f"{one.fetched_experts:,}" if one.fetched_experts else "",
        )
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    console.print(table)
    console.print(_sentence(traffic, devices), soft_wrap=True)


def _sentence(traffic: Traffic, devices: Devices) -> str:
    extra = devices.replicas - traffic.experts
    return (
        f"{traffic.layers} layers of {traffic.experts} experts, {traffic.top_k} of them for each of "
        f"{traffic.tokens} tokens a step, skew {traffic.skew:.2f}; {devices.gpus} GPUs with {devices.slots} slots, "
        f"{extra} of all {devices.replicas} for copies"
    )
