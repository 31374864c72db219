"""How fast the simulator is: the Azure trace on 8 replicas, their share on one, a million requests on a thousand.

python benchmarks/simulate_speed.py                  # the trace: 19,366 requests on 8 replicas, every eighth on one
python benchmarks/simulate_speed.py --million        # 1,000 replicas, 1,000,000 requests: some ten minutes
python benchmarks/simulate_speed.py --million --requests 50000
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from weighbridge.cost import StepCost
from weighbridge.simulator.fleet import Run, SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.quantiles import quantiles
from weighbridge.workload.requests import SimulatedRequest
from weighbridge.workload.synthetic import Synthetic, from_rows
from weighbridge.workload.traces import read_rows

#: An 8B model on a 24 GB GPU, in round numbers; eight of them are busy with the trace at its own speed.
COST = StepCost(overhead=0.004, memory=0.012, per_token=6e-5, per_context_token=2e-8, per_sequence=5e-5)


def fleet(replicas: int, policy: str, sample: int | None = None) -> SimulatedFleet:
    settings = SimulatedEngine(enable_prefix_cache=False).settings()
    one = SimulatedReplicaSpec(cost=COST, settings=settings)
    return SimulatedFleet(replicas=(one,) * replicas, policy=policy, prefix_index=False, sample=sample)


def timed(name: str, spec: SimulatedFleet, requests: Iterable[SimulatedRequest]) -> Run:
    began, cpu = time.perf_counter(), time.process_time()
    run = Simulation(spec, requests).run()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    number = len(run.outcomes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = sum(run.outcomes.output_tokens)
    busy = sum(work.busy for work in run.work.values())
    print(
        f"{name}: {number:,} requests, {tokens:,} output tokens in {wall:.1f} s ({cpu:.1f} s of processor), "
        f"{run.seconds:,.0f} s simulated = {run.seconds / wall:,.0f} x real time, {busy / wall:,.0f} busy "
        f"replica-seconds a second, {wall / number * 1e6:.0f} us a request, {peak:.0f} MiB; "
        f"TTFT p99 {quantiles(run.outcomes.ttft, (0.99,))[0] * 1e3:.0f} ms, {sum(run.outcomes.errors.values())} errors"
    )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--policy", default=None)
    options = parser.parse_args()
    if options.million:
        spec = Synthetic.parse(
            f"poisson:rate=800,requests={options.requests},prompt=lognormal:400:0.8,output=lognormal:120:0.7"
        )
        timed(
            "a thousand replicas", fleet(1000, options.policy or "power_of_two", sample=16), spec.generate(0)
        )
        return
    root = Path(__file__).resolve().parents[1]
    data = Path(os.environ.get("WEIGHBRIDGE_DATA", root.parent / "shared" / "data"))
    trace = data / "traces" / "azure_2023_conv.csv"
    if not trace.exists():
        sys.exit(f"no trace at {trace}; set WEIGHBRIDGE_DATA")
    rows = read_rows(trace)
    timed("Azure conv on 8", fleet(8, options.policy or "weigh"), from_rows(rows))
    timed("every eighth of them on 1", fleet(1, options.policy or "weigh"), from_rows(rows[::8]))


if __name__ == "__main__":
    main()
