"""`weighbridge moe simulate`: what a placement of experts does to throughput and p99, before there are GPUs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from weighbridge.cli.moe.inputs import Gpus, SlotSettings, read_loads
from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import counting, print_json
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.planner.experts.local_search import balance
from weighbridge.planner.experts.placement import Devices, ExpertPlacement, Floats, eplb, static_placement
from weighbridge.planner.experts.simulation import ExpertRun, ExpertTraffic, Place, Times, fitted_traffic
from weighbridge.planner.experts.simulation import simulate as run_group


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSettings:
    """The experts, and the loads they get."""

    loads: Path | None = knob(
        None, "Measured tokens per expert, whose skew is taken: JSON, CSV, or of /v1/experts."
    )
    layers: int | None = knob(None, "Without --loads: layers with experts.", min=1)
    experts: int | None = knob(None, "Without --loads: experts of a layer.", min=2)
    top_k: int = knob(8, "Experts of each token.", min=1)
    tokens: int = knob(512, "Tokens of one step, of all GPUs together.", min=1)
    skew: float | None = knob(
        None, "Exponent of the power law of loads; none: the measured one, or 1.", min=0.0
    )
    correlation: float = knob(0.9, "How much a step's loads resemble the last one's, below 1.")
    noise: float = knob(0.2, "How far loads of a step are from their mean (log scale).", min=0.0)
    drift: float = knob(0.0, "Share of experts that trade popularity every 1,000 steps.")

    def traffic(self) -> ExpertTraffic:
        """Raises BadInput unless either measured loads or layers and experts are given."""
        traffic = replace(
            self._told() if self.loads is None else self._measured(self.loads),
            correlation=self.correlation,
            noise=self.noise,
            drift=self.drift,
        )
        traffic.check()
        return traffic

    def _told(self) -> ExpertTraffic:
        if self.layers is None or self.experts is None:
            raise BadInput("give --loads FILE, or --layers and --experts, such as --layers 48 --experts 128")
        skew = 1.0 if self.skew is None else self.skew
        return ExpertTraffic(self.layers, self.experts, self.top_k, self.tokens, skew)

    def _measured(self, loads: Path) -> ExpertTraffic:
        if self.layers is not None or self.experts is not None:
            raise BadInput(
                "--loads says how many layers and experts there are: leave out --layers and --experts"
            )
        counts = read_loads(loads).loads
        if (counts.sum(axis=1) <= 0.0).any():
            raise BadInput(f"{loads}: every layer needs some tokens to show how they spread", param="loads")
        if self.top_k > counts.shape[1]:
            words = f"--top-k {self.top_k}: {loads} has only {counts.shape[1]} experts"
            raise BadInput(words, param="top_k")
        fitted = fitted_traffic(counts, self.top_k, self.tokens)
        return fitted if self.skew is None else replace(fitted, skew=self.skew)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """How long the group runs, and how often its placement is renewed."""

    steps: int = knob(1000, "Steps to run.", min=1, max=1_000_000)
    replace_every: int | None = knob(
        None, "Place anew after so many steps, by the loads seen meanwhile.", min=1
    )
    seed: int = knob(0, "Of loads and drift.", min=0)


@options
def simulate(
    gpus: Gpus,
    *,
    loads: TrafficSettings,
    slots: SlotSettings,
    run: StepSettings,
    times: Times,
    json_output: JsonOutput = False,
) -> None:
    """Run an expert-parallel group under skewed, drifting loads: the slowest GPU sets each step."""
    traffic = loads.traffic()
    devices = slots.devices(gpus, traffic.experts)
    devices.check(traffic.experts)
    outcomes = _outcomes(traffic, devices, times, run, quiet=json_output)
    if json_output:
        print_json(
            {
                "traffic": asdict(traffic),
                "devices": asdict(devices),
                "times": asdict(times),
                "steps": run.steps,
                "seed": run.seed,
                "replace_every": run.replace_every,
                "placements": {name: asdict(outcome) for name, outcome in outcomes.items()},
            }
        )
        return
    _print(traffic, devices, outcomes)


def _outcomes(
    traffic: ExpertTraffic, devices: Devices, times: Times, run: StepSettings, *, quiet: bool
) -> dict[str, ExpertRun]:
    """The same loads on each placement; with `replace_every`, also on those that are renewed."""

    def static(loads: Floats, _: ExpertPlacement | None) -> ExpertPlacement:
        return static_placement(len(loads), loads.shape[1], devices.replicas)

    placers: dict[str, tuple[Place, int | None]] = {
        "in order": (static, None),
        "eplb": (lambda loads, _: eplb(loads, devices), None),
        "balance": (lambda loads, current: balance(loads, devices, current=current), None),
    }
    if run.replace_every is not None:
        for name in ("eplb", "balance"):
            placers[f"{name}, every {run.replace_every}"] = (placers[name][0], run.replace_every)
    outcomes: dict[str, ExpertRun] = {}
    with counting("Simulating", quiet=quiet) as report:
        for name, (place, every) in placers.items():
            rng = np.random.default_rng(run.seed)
            outcomes[name] = run_group(traffic, devices, place, run.steps, rng, times, every)
            report(len(outcomes), len(placers))
    return outcomes


def _print(traffic: ExpertTraffic, devices: Devices, outcomes: dict[str, ExpertRun]) -> None:
    table = Table(
        "placement", "tokens/s", "gain", "step mean ms", "p99 ms", "balancedness", "experts fetched"
    )
    plain = next(iter(outcomes.values()))
    for name, one in outcomes.items():
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


def _sentence(traffic: ExpertTraffic, devices: Devices) -> str:
    extra = devices.replicas - traffic.experts
    return (
        f"{traffic.layers} layers of {traffic.experts} experts, {traffic.top_k} of them for each of "
        f"{traffic.tokens} tokens a step, skew {traffic.skew:.2f}; {devices.gpus} GPUs with {devices.slots} slots, "
        f"{extra} of all {devices.replicas} for copies"
    )
