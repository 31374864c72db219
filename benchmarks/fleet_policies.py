"""Policies side by side on simulated replicas, one in four of them half as fast, in virtual time.

    python benchmarks/fleet_policies.py --fast                     # two seeds, 1,200 requests: about a minute
    python benchmarks/fleet_policies.py                            # all mixes, loads, policies; five seeds
    python benchmarks/fleet_policies.py --mixes azure --loads 0.9 --policies weigh,round_robin --json
    python benchmarks/fleet_policies.py --mixes azure --policies weigh --untold   # speeds that have to be learned
    python benchmarks/fleet_policies.py --replicas 128 --requests 12000 --policies weigh,weigh_all   # a large fleet

The scheduler, prefix cache, policies, queue and length estimates are the product's own. Loads are shares of
what the fleet does when everything waits from the start (measured per mix). Each seed has its own requests:
another stretch of the trace, or another draw. The first fifth of the arrivals is left out: the fleet fills up.
The Azure trace is found through WEIGHBRIDGE_DATA or beside the repository; without it that mix is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleet_finish import FINISHES
from fleet_rivals import RIVALS
from gateway.decision import WeighAll
from weighbridge.cost import StepCost
from weighbridge.fleet.policies import DEFAULT_POLICY, POLICIES
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.simulator.report import over_seeds, summary
from weighbridge.workload.requests import SimulatedRequest
from weighbridge.workload.slo import Slo
from weighbridge.workload.synthetic import Synthetic, from_rows
from weighbridge.workload.traces import read_rows

#: An 8B model in bf16 on a data-centre GPU, in round numbers: 16 GB of weights at 1.6 TB/s, 16,000 prompt
#: tokens a second, 128 KiB of keys and values per token.
COST = StepCost(overhead=0.003, memory=0.010, per_token=6e-5, per_context_token=6e-8, per_sequence=2e-5)
TARGETS = Slo(1.0, 0.08, 0.95)
WARM_UP = 0.2
REPLICAS = 8

MIXES = {
    "azure": "",
    "bursty": "bursts:burst=24,prompt=lognormal:700:0.9,output=lognormal:150:0.8",
    "heavy_tail": "heavy_tail",
    "shared_prefix": "shared_prefix:prefixes=24,prefix=1500,prompt=lognormal:200:0.7,output=lognormal:120:0.7",
    "sessions": "sessions:turns=5,think=3,prompt=lognormal:300:0.7,output=lognormal:150:0.7",
}


def fleet(policy: str, mix: str, replicas: int = REPLICAS, *, told: bool = True) -> SimulatedFleet:
    shares = mix in ("shared_prefix", "sessions")  # elsewhere a cache would find nothing: save the time
    settings = SimulatedEngine(kv_tokens=200_000, max_sequences=96, enable_prefix_cache=shares).settings()
    fast = SimulatedReplicaSpec(cost=COST, settings=settings, tells_speed=told)
    slow = replicas // 4
    fleet = (fast,) * (replicas - slow) + (fast.slowed(2.0),) * slow
    return SimulatedFleet(replicas=fleet, policy=policy, prefix_index=shares)


def azure_place() -> Path:
    root = Path(__file__).resolve().parents[1]
    data = Path(os.environ.get("WEIGHBRIDGE_DATA", root.parent / "shared" / "data"))
    return data / "traces" / "azure_2023_conv.csv"


def azure_trace() -> Path | None:
    path = azure_place()
    return path if path.exists() else None


def mixes_here(names: list[str]) -> list[str]:
    """Those that can be run here; the sentence about the one whose trace is missing goes to standard error."""
    if "azure" not in names or azure_trace() is not None:
        return names
    others = [one for one in names if one != "azure"]
    print(f"azure is left out: there is no trace at {azure_place()}; set WEIGHBRIDGE_DATA", file=sys.stderr)
    if not others:
        sys.exit(1)
    return others


def requests_of(mix: str, seed: int, number: int) -> list[SimulatedRequest]:
    """`number` requests at their natural times; another stretch or draw for each seed."""
    if mix != "azure":
        return list(replace(Synthetic.parse(MIXES[mix]), requests=number).generate(seed))
    path = azure_trace()
    assert path is not None
    rows = read_rows(path)
    start = seed * number % max(len(rows) - number, 1)
    return from_rows(rows[start : start + number])


def at_rate(requests: Iterable[SimulatedRequest], rate: float | None) -> list[SimulatedRequest]:
    """The same requests, `rate` a second on average; None: all at once."""
    requests = list(requests)
    first, last = requests[0].at, max(one.at for one in requests)
    factor = 0.0 if rate is None else (len(requests) / rate) / max(last - first, 1e-9)
    return [replace(one, at=(one.at - first) * factor) for one in requests]


def capacity(mix: str, number: int) -> float:
    """Requests a second when all wait from the start. Turns of a session follow without thinking."""
    requests = [replace(one, think=0.0) for one in at_rate(requests_of(mix, 0, number), None)]
    run = Simulation(fleet("least_tokens", mix), requests).run()
    return len(run.outcomes) / run.seconds


Job = tuple[str, str, float, float, int, int, int, bool]


def measure(job: Job) -> dict[str, Any]:
    mix, policy, load, rate, seed, number, replicas, told = job
    began = time.perf_counter()
    requests = at_rate(requests_of(mix, seed, number), rate * load)
    made = {**RIVALS, **FINISHES, WeighAll.name: WeighAll}.get(policy)
    rival = made(random.Random(seed)) if made else None
    spec = fleet(DEFAULT_POLICY if rival else policy, mix, replicas, told=told)
    run = Simulation(spec, requests, seed, policy=rival).run()
    figures = summary(run, spec, TARGETS, warm_up=WARM_UP * requests[-1].at)
    return {"job": job, "wall": time.perf_counter() - began, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="two seeds, 1,200 requests")
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--loads", default="0.6,0.8,0.9")
    parser.add_argument("--policies", default=",".join([*POLICIES, *RIVALS]))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="where they begin; others to choose by")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument(
        "--replicas", type=int, default=REPLICAS, help="loads are shares of so many times the capacity of 8"
    )
    parser.add_argument("--untold", action="store_true", help="no replica tells its speed: it is learned")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.fast:
        options.seeds, options.requests = min(options.seeds, 2), min(options.requests, 1200)
    mixes, policies = options.mixes.split(","), options.policies.split(",")
    known = {"mix": MIXES, "policy": [*POLICIES, *RIVALS, *FINISHES, WeighAll.name]}
    for kind, names in (("mix", mixes), ("policy", policies)):
        for unknown in set(names) - set(known[kind]):
            parser.error(f"{unknown!r} is no {kind}: use {', '.join(known[kind])}")
    mixes = mixes_here(mixes)
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        for mix in mixes:
            rate = capacity(mix, min(options.requests, 3000)) * options.replicas / REPLICAS
            for load in (float(one) for one in options.loads.split(",")):
                key = f"{mix} at {load:.0%}"
                seeds = range(options.first_seed, options.first_seed + options.seeds)
                size = (options.requests, options.replicas, not options.untold)
                jobs = [(mix, p, load, rate, s, *size) for p in policies for s in seeds]
                found = list(pool.map(measure, jobs))
                results[key] = {"capacity_rps": rate}
                for policy in policies:
                    own = [one for one in found if one["job"][1] == policy]
                    results[key][policy] = over_seeds([_plain(one) for one in own])
                if not options.json:
                    show(key, rate, policies, results[key], sum(one["wall"] for one in found))
    if options.json:
        json.dump(results, sys.stdout, indent=1)


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key not in ("job", "wall")}


def show(key: str, rate: float, policies: list[str], results: dict[str, Any], wall: float) -> None:
    print(f"\n{key} of {rate:.1f} requests/s   (mean over seeds ± half the 95 % interval; {wall:.0f} s)")
    columns = ("TTFT p50 ms", "p95", "p99", "e2e p50 s", "p99", "good", "imbalance", "hits")
    print(f"{'policy':<20}" + "".join(f"{name:>17}" for name in columns))
    for policy in policies:
        one = results[policy]
        cells = [
            _cell(one, "ttft_ms", "p50", 1.0, ".0f"),
            _cell(one, "ttft_ms", "p95", 1.0, ".0f"),
            _cell(one, "ttft_ms", "p99", 1.0, ".0f"),
            _cell(one, "e2e_ms", "p50", 1e-3, ".2f"),
            _cell(one, "e2e_ms", "p99", 1e-3, ".2f"),
            _cell(one, "good_share", None, 100.0, ".1f"),
            _cell(one, "imbalance", None, 1.0, ".2f"),
            _cell(one, "prefix_hit_rate", None, 100.0, ".1f"),
        ]
        print(f"{policy:<20}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def _cell(one: dict[str, Any], key: str, name: str | None, factor: float, form: str) -> str:
    interval = one["intervals"][key] if name is None else one["intervals"][key][name]
    half = (interval["high"] - interval["mean"]) * factor
    return f"{interval['mean'] * factor:{form}}±{half:{form}}"


if __name__ == "__main__":
    main()
