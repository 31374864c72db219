"""The simulator against vLLM 0.19 on two GPUs: recorded requests of LLMServingSim 2.0 (MIT), Llama-3.1-8B.

    python benchmarks/simulate_vllm.py            # needs WEIGHBRIDGE_DATA, or ../shared/data beside the repository

300 requests at 10 a second on an RTX 4090 (whose cache of 41,408 tokens is the bottleneck) and an RTX PRO 6000
(limited to 128 sequences). The step cost is tuned on every second request; the others are predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from evidence.tune import disagreement, tune
from weighbridge.cost import StepCost
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.outcomes import Outcome
from weighbridge.workload.requests import SimulatedRequest, Span

#: Where tuning begins: bandwidth and arithmetic of the data sheets, 16 GB of weights, 128 KiB a token.
SYSTEMS = {
    "RTX4090": (
        StepCost(overhead=0.002, memory=0.018, per_token=1.0e-4, per_context_token=1.5e-7, per_sequence=2e-5),
        {"kv_tokens": 41_408, "max_sequences": 256},
    ),
    "RTXPRO6000": (
        StepCost(overhead=0.002, memory=0.010, per_token=6e-5, per_context_token=8e-8, per_sequence=2e-5),
        {"kv_tokens": 500_000, "max_sequences": 128},
    ),
}


def data() -> Path:
    root = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("WEIGHBRIDGE_DATA", root.parent / "shared" / "data")) / "simulator"


def recorded(system: str) -> tuple[list[SimulatedRequest], np.ndarray]:
    """Requests, and for each (TTFT, TPOT, end to end) as measured, in seconds."""
    lines = (data() / f"llmservingsim_{system}_Llama-3.1-8B_requests.jsonl").read_text().splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["queued_ts"])
    requests, measured = [], []
    for number, row in enumerate(rows):
        output = row["output_toks"]
        at = row["queued_ts"] - rows[0]["queued_ts"]
        requests.append(
            SimulatedRequest(
                f"r{number}", at, (Span(2 * number + 1, row["input_toks"]),), output, 8192, 2 * number + 2
            )
        )
        first, last = row["first_token_ts"] - row["queued_ts"], row["last_token_ts"] - row["queued_ts"]
        measured.append((first, (last - first) / max(output - 1, 1), last))
    return requests, np.array(measured)


def predicted(cost: StepCost, requests: list[SimulatedRequest], limits: dict[str, int]) -> np.ndarray:
    settings = SimulatedEngine(
        profile="vllm", max_model_len=32_768, enable_prefix_cache=False, **limits
    ).settings()
    replica = SimulatedReplicaSpec(cost=cost, settings=settings, concurrency=1 << 30)
    found: dict[str, tuple[float, float, float]] = {}

    def ended(request: SimulatedRequest, outcome: Outcome, now: float) -> None:
        first, last = outcome.first - outcome.arrived, outcome.finished - outcome.arrived
        found[request.id] = (first, (last - first) / max(outcome.output_tokens - 1, 1), last)

    fleet = SimulatedFleet(replicas=(replica,), policy="round_robin", prefix_index=False)
    Simulation(fleet, requests, observe=ended).run()
    return np.array([found[one.id] for one in requests])


def figures(latencies: np.ndarray) -> list[float]:
    """Mean, median and 90 % quantile of each of the three."""
    return [f(latencies[:, i]) for i in range(3) for f in (np.mean, np.median, lambda c: np.quantile(c, 0.9))]


def evaluate(system: str, evaluations: int = 80) -> dict[str, Any]:
    """Tune on the even requests, compare on the odd ones."""
    start, limits = SYSTEMS[system]
    requests, measured = recorded(system)

    def loss(cost: StepCost) -> float:
        simulated = predicted(cost, requests, limits)
        pairs = list(zip(figures(simulated[::2]), figures(measured[::2]), strict=True))
        return disagreement([(float(p), float(m)) for p, m in pairs])

    cost = tune(start, loss, evaluations)
    simulated = predicted(cost, requests, limits)
    names = [f"{kind} {what}" for kind in ("TTFT", "TPOT", "e2e") for what in ("mean", "p50", "p90")]
    held_out = zip(names, figures(simulated[1::2]), figures(measured[1::2]), strict=True)
    each = np.abs(simulated[1::2] / measured[1::2] - 1.0)
    return {
        "step_cost": cost.as_dict(),
        "held_out": {
            n: {"simulated": float(s), "measured": float(m), "error": float(s / m - 1)}
            for n, s, m in held_out
        },
        "median_error_of_a_request": dict(
            zip(("TTFT", "TPOT", "e2e"), np.median(each, axis=0).tolist(), strict=True)
        ),
        "tuning_loss": math.sqrt(loss(cost)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=80)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not data().is_dir():
        sys.exit(f"no data at {data()}; set WEIGHBRIDGE_DATA")
    results = {}
    for system in SYSTEMS:
        began = time.perf_counter()
        results[system] = evaluate(system, options.evaluations)
        if options.json:
            continue
        print(f"\n{system}: held-out half, ms   ({time.perf_counter() - began:.0f} s)")
        for name, one in results[system]["held_out"].items():
            simulated, measured = one["simulated"] * 1e3, one["measured"] * 1e3
            print(f"  {name:<10} simulated {simulated:>9.1f}  measured {measured:>9.1f}  {one['error']:+.1%}")
        print(f"  step cost {results[system]['step_cost']}")
    if options.json:
        json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
