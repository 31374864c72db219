"""The simulator against this engine: four loads recorded, two to calibrate on, the other two predicted.

    python benchmarks/simulate_engine.py --record loads.json     # serves the default model; the machine alone, 4 min
    python benchmarks/simulate_engine.py --predict loads.json

Calibration sees the latencies of two loads, nothing else: the step cost, and what a request takes outside the
engine, are tuned until the simulator meets them. Nothing of the other two loads is used.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weighbridge.bench import serve, workload
from weighbridge.cost import StepCost
from weighbridge.simulator.fleet import FleetSpec, ReplicaSpec, Simulation, engine_settings
from weighbridge.simulator.measures import quantiles
from weighbridge.simulator.requests import SimulatedRequest, Span
from weighbridge.simulator.tune import disagreement, minimize

#: (clients or None, requests a second or None, requests, prompt tokens, output tokens)
LOADS: dict[str, tuple[int | None, float | None, int, int, int]] = {
    "closed loop of 12, 200 to 96": (12, None, 60, 200, 96),
    "Poisson 2.0/s, 400 to 48": (None, 2.0, 70, 400, 48),
    "closed loop of 4, 100 to 64": (4, None, 40, 100, 64),
    "Poisson 3.0/s, 150 to 64": (None, 3.0, 100, 150, 64),
}
CALIBRATION = tuple(LOADS)[:2]
KV_TOKENS = 60_000


def arrivals(load: tuple[int | None, float | None, int, int, int]) -> list[workload.Arrival]:
    _, rate, number, prompt, output = load
    equal = workload.closed(number, prompt, output)
    return equal if rate is None else workload.poisson(equal, rate, random.Random(f"load {rate}"))


# -- recording -----------------------------------------------------------------------------------------


def record(path: Path, port: int) -> None:
    command = [sys.executable, "-m", "weighbridge", "serve", "--port", str(port), "--no-speculate"]
    server = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, server)
        _run(url, (8, None, 16, 200, 32), seed=99)  # kernels warm, memory faulted in
        recorded: dict[str, Any] = {}
        for number, (name, load) in enumerate(LOADS.items()):
            recorded[name] = {"measured": _run(url, load, seed=number)}
            print(name, json.dumps(recorded[name]["measured"]), flush=True)
        path.write_text(json.dumps(recorded, indent=1))
    finally:
        server.terminate()
        server.wait(30)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            sys.exit("the server did not start")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    sys.exit("the server did not start in time")


def _run(url: str, load: tuple[int | None, float | None, int, int, int], seed: int) -> dict[str, float]:
    options = serve.ServeOptions(url, None, arrivals(load), concurrency=load[0], seed=1000 + seed)
    report = serve.run(options)
    good = report.good
    assert len(good) == len(report.outcomes), "a request failed"
    return figures([one.ttft for one in good], [one.tpot or 0.0 for one in good], load, report.seconds)


def figures(
    ttft: Sequence[float],
    tpot: Sequence[float],
    load: tuple[int | None, float | None, int, int, int],
    seconds: float,
) -> dict[str, float]:
    first, each = quantiles(ttft, (0.5, 0.95)), quantiles(tpot, (0.5, 0.95))
    return {
        "TTFT p50": first[0],
        "TTFT p95": first[1],
        "TPOT p50": each[0],
        "TPOT p95": each[1],
        "output tokens/s": load[2] * load[4] / seconds,
    }


# -- prediction ----------------------------------------------------------------------------------------


def simulate(
    cost: StepCost, wire: float, load: tuple[int | None, float | None, int, int, int]
) -> dict[str, float]:
    """`wire`: mean seconds of a request outside the engine, before its first token; no two take the same."""
    rng = random.Random("wire")
    requests = [
        SimulatedRequest(
            f"r{i}",
            one.at,
            (Span(2 * i + 1, one.prompt_tokens),),
            one.output_tokens,
            one.output_tokens,
            2 * i + 2,
        )
        for i, one in enumerate(arrivals(load))
    ]
    settings = engine_settings("weighbridge", kv_tokens=KV_TOKENS, max_model_len=8192, prefix_cache=False)
    fleet = FleetSpec(
        replicas=(ReplicaSpec(cost=cost, settings=settings),), policy="round_robin", prefix_index=False
    )
    run = Simulation(fleet, requests, clients=load[0], pause=lambda: rng.expovariate(1.0 / wire)).run()
    ttft = [float(seconds) + wire for seconds in run.outcomes.ttft]
    return figures(ttft, [float(seconds) for seconds in run.outcomes.tpot], load, run.seconds + wire)


def calibrate(recorded: dict[str, Any]) -> tuple[StepCost, float]:
    """From the latencies of the two calibration loads alone, beginning at a guess of the model's size."""

    def candidate(point: Sequence[float]) -> tuple[StepCost, float]:
        memory, per_token, per_pair, per_sequence, wire = (math.exp(x) for x in point)
        return StepCost(0.002, memory, per_token, per_pair, per_sequence), wire

    def loss(point: Sequence[float]) -> float:
        cost, wire = candidate(point)
        pairs = []
        for name in CALIBRATION:
            found, measured = simulate(cost, wire, LOADS[name]), recorded[name]["measured"]
            pairs += [(found[key], measured[key]) for key in measured]
        return disagreement(pairs)

    start = [math.log(x) for x in (0.006, 0.0007, 1e-6, 2e-4, 0.003)]
    return candidate(minimize(loss, start, 0.5, 300))


def predict(path: Path) -> dict[str, Any]:
    recorded = json.loads(path.read_text())
    cost, wire = calibrate(recorded)
    results: dict[str, Any] = {"step_cost": cost.as_dict(), "wire_ms": wire * 1e3, "loads": {}}
    for name, load in LOADS.items():
        found, measured = simulate(cost, wire, load), recorded[name]["measured"]
        results["loads"][name] = {
            key: {
                "simulated": found[key],
                "measured": measured[key],
                "error": found[key] / measured[key] - 1.0,
            }
            for key in measured
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path)
    parser.add_argument("--predict", type=Path)
    parser.add_argument("--port", type=int, default=8377)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.record is not None:
        record(options.record, options.port)
    if options.predict is not None:
        results = predict(options.predict)
        if options.json:
            json.dump(results, sys.stdout, indent=1)
            return
        print(f"step cost {results['step_cost']}\non the wire {results['wire_ms']:.1f} ms")
        for name, rows in results["loads"].items():
            print(f"\n{name}   ({'calibration' if name in CALIBRATION else 'predicted'})")
            for key, one in rows.items():
                factor = 1.0 if "tokens" in key else 1e3
                simulated, measured = one["simulated"] * factor, one["measured"] * factor
                print(
                    f"  {key:<16} simulated {simulated:>8.1f}  measured {measured:>8.1f}  {one['error']:+.1%}"
                )
    if options.record is None and options.predict is None:
        parser.error("give --record FILE, --predict FILE or both")


if __name__ == "__main__":
    main()
