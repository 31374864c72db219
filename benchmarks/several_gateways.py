"""What it costs that several gateways decide, each by what it knows: simulated replicas, virtual time.

    python benchmarks/several_gateways.py                                # 160 replicas; 1, 5 and 20 gateways; all mixes
    python benchmarks/several_gateways.py --replicas 1600 --gateways 1,20 --loads 0.8 --mixes plain --seconds 20
    python benchmarks/several_gateways.py --mixes shared_prefix --deaf   # gateways that tell each other nothing

The desks, policies, prefix indices, what is told on the board and how often replicas are probed are the product's own
(`weighbridge.simulator.sharing`). Requests arrive as a Poisson process and come to a gateway drawn at random. Loads are
shares of what the fleet does when everything waits from the start (measured per mix, at eight replicas). Seeds are
shared: each number of gateways has the same requests, so that ratios are of pairs. What arrives in the first fifth is
left out.

- `p50`, `p99`: of the time to the first token, in ms, and as a ratio to one gateway
- `crowded`: share of requests sent to a replica that another gateway had sent something to less than 0.1 s before, and
  what it would be if each were sent anywhere
- `imbalance`: (largest - mean) / mean requests at a replica, each second
- `commands`, `news`: Redis commands and bytes of news read in a second, of all gateways together; `probes`: in a second
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fleet_policies import COST
from weighbridge.fleet.pool import BLOCK_SIZE
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.simulator.sharing import AS_LIVE, UNAWARE, SharedSimulation, SharingPace
from weighbridge.workload.synthetic import Synthetic

MIXES = {
    "plain": "poisson:prompt=lognormal:700:0.9,output=lognormal:150:0.8",
    "shared_prefix": "shared_prefix:prefixes=200,prefix=1536,prompt=lognormal:200:0.7,output=lognormal:120:0.7",
    "sessions": "sessions:turns=5,think=3,prompt=lognormal:300:0.7,output=lognormal:150:0.7",
}
WARM_UP = 0.2
#: Replicas by which it is measured how much one does, and requests for each.
FEW, FOR_EACH = 8, 150


@dataclass(frozen=True)
class Job:
    mix: str
    load: float
    replicas: int
    gateways: int
    seconds: float
    rate: float  # requests a second, of the fleet
    seed: int
    deaf: bool
    learns: bool


def fleet(mix: str, replicas: int, *, learns: bool = False) -> SimulatedFleet:
    shares = mix != "plain"  # elsewhere a cache would find nothing: save the time
    engine = SimulatedEngine(
        kv_tokens=200_000, max_sequences=96, enable_prefix_cache=shares, tokens_per_block=BLOCK_SIZE
    )
    one = SimulatedReplicaSpec(cost=COST, settings=engine.settings(), tells_speed=not learns)
    return SimulatedFleet(replicas=(one,) * replicas, prefix_index=shares)


def capacity(mix: str) -> float:
    """Requests a second of one replica, when all wait from the start."""
    spec = replace(Synthetic.parse(MIXES[mix]), requests=FEW * FOR_EACH, rate=1e6, think=0.0)
    run = Simulation(fleet(mix, FEW), spec.generate(0)).run()
    return len(run.outcomes) / run.seconds / FEW


def measure(job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    spec = replace(Synthetic.parse(MIXES[job.mix]), rate=job.rate, requests=round(job.rate * job.seconds))
    sharing = SharingPace(look=None, probe=None) if job.deaf else AS_LIVE
    requests = spec.generate(job.seed)
    simulation = SharedSimulation(
        fleet(job.mix, job.replicas, learns=job.learns), requests, job.gateways, job.seed, sharing
    )
    run = simulation.run()
    simulation.check_integrity()
    kept = run.outcomes.arrived_from(WARM_UP * job.seconds)
    first = np.quantile(kept.ttft, (0.5, 0.99)) * 1e3
    prompts = max(sum(kept.prompt_tokens), 1)
    return {
        "mix": job.mix,
        "load": job.load,
        "replicas": job.replicas,
        "gateways": job.gateways,
        "seed": job.seed,
        "requests": len(kept),
        "errors": sum(run.outcomes.errors.values()),
        "p50_ms": float(first[0]),
        "p99_ms": float(first[1]),
        "hits": sum(kept.cached_tokens) / prompts,
        "crowded": run.crowded,
        "by_chance": 1.0 - math.exp(-job.rate / job.replicas * (1.0 - 1.0 / job.gateways) * UNAWARE),
        "imbalance": run.imbalance,
        "commands": sum(run.commands.values()) / run.seconds,
        "news_bytes": run.news_bytes.get("read", 0) / run.seconds,
        "probes": run.probes / run.seconds,
        "wall": time.perf_counter() - began,
    }


def shown(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each mix, load and number of gateways: medians over the seeds, ratios of pairs."""
    alone = {(row["mix"], row["load"], row["seed"]): row for row in rows if row["gateways"] == 1}
    groups: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mix"], row["load"], row["gateways"]), []).append(row)
    heads = ("mix", "load", "gateways", "p50, ms", "p99, ms", "ratios", "cached", "crowded", "imbalance")
    heads += ("commands/s", "news, KB/s", "probes/s")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for (mix, load, gateways), group in groups.items():
        middle = {name: float(np.median([row[name] for row in group])) for name in group[0] if name != "mix"}
        pairs = [(row, alone.get((mix, load, row["seed"]))) for row in group]
        ratios = [
            [row[name] / one[name] for row, one in pairs if one is not None] for name in ("p50_ms", "p99_ms")
        ]
        told = " / ".join(f"{np.median(some):.2f}" for some in ratios if some)
        print(
            f"| {mix} | {load:g} | {gateways} | {middle['p50_ms']:.0f} | {middle['p99_ms']:.0f} | {told} "
            f"| {middle['hits']:.0%} | {middle['crowded']:.0%} ({middle['by_chance']:.0%}) | {middle['imbalance']:.2f} "
            f"| {middle['commands']:.1f} | {middle['news_bytes'] / 1e3:.0f} | {middle['probes']:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=160)
    parser.add_argument("--gateways", default="1,5,20")
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--loads", default="0.6,0.8,0.9")
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of the simulation, in which requests come"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--deaf", action="store_true", help="no probes, no news: each knows what it sent")
    parser.add_argument("--learns", action="store_true", help="replicas do not tell their speeds")
    parser.add_argument("--jobs", type=int, default=1, help="simulations side by side")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    jobs = []
    for mix in options.mixes.split(","):
        each = capacity(mix)
        for load in map(float, options.loads.split(",")):
            rate = each * load * options.replicas
            for gateways in map(int, options.gateways.split(",")):
                case = (mix, load, options.replicas, gateways, options.seconds, rate)
                jobs += [Job(*case, seed, options.deaf, options.learns) for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = []
        for row in pool.map(measure, jobs):
            rows.append(row)
            told = f"# {row['mix']} {row['load']:g}, {row['gateways']} gateways: p50 {row['p50_ms']:.0f} ms, p99 "
            print(f"{told}{row['p99_ms']:.0f} ms, after {row['wall']:.0f} s", flush=True)
    shown(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
