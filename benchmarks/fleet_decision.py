"""How long one decision takes: each policy over 64 replicas with streams and prompts under way, one core.

python benchmarks/fleet_decision.py            # microseconds, median and 99th percentile of 2,000 decisions
"""

from __future__ import annotations

import random
import time

from weighbridge.cost.step import StepCost
from weighbridge.cost.weight import OutputEstimate, Weight
from weighbridge.fleet.api import Arrival, Capacity
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies import POLICIES, make_policy

REPLICAS, DECISIONS, LIVE = 64, 2000, 1500
COST = StepCost(overhead=0.003, memory=0.010, per_token=6e-5, per_context_token=6e-8, per_sequence=2e-5)


def arrival(number: int, rng: random.Random) -> Arrival:
    prompt = rng.randrange(64, 4000)
    prefix = rng.randrange(32)
    shared = [f"{prefix} {depth}".encode().ljust(32) for depth in range(32)]
    own = [f"{number} {depth}".encode().ljust(32) for depth in range(max(prompt // 16 - 32, 0))]
    weight = Weight(prompt, 1024, OutputEstimate(200.0, 150, 500))
    return Arrival(f"q{number}", "m", weight, 0.0, chain=tuple((shared + own)[: prompt // 16]))


def measure(name: str) -> list[float]:
    """Seconds of each decision; crediting and streaming go on in between and are not counted."""
    rng, index, now = random.Random(0), PrefixIndex(), 0.0
    states = {
        f"r{n}": ReplicaState(f"r{n}", Capacity(COST, kv_tokens=200_000), index) for n in range(REPLICAS)
    }
    policy, candidates = make_policy(name, rng), list(states.values())
    live: list[tuple[str, str]] = []
    seconds = []
    for number in range(LIVE + DECISIONS):
        request = arrival(number, rng)
        begun = time.perf_counter()
        choice = policy.choose(request, candidates, now)
        seconds.append(time.perf_counter() - begun)
        states[choice.replica].credit(request, choice.cached_tokens, now)
        live.append((choice.replica, request.id))
        for replica, request_id in live[-200:-100]:
            states[replica].tokens(request_id, 1, now)
        if len(live) > LIVE:
            replica, request_id = live.pop(0)
            states[replica].release(request_id, now)
        now += 0.004
    return sorted(seconds[LIVE:])


def main() -> None:
    print(f"{REPLICAS} replicas, {LIVE} requests in flight: microseconds per decision")
    for name in POLICIES:
        seconds = measure(name)
        middle, tail = seconds[len(seconds) // 2], seconds[int(0.99 * len(seconds))]
        print(f"{name:22} p50 {middle * 1e6:7.1f}   p99 {tail * 1e6:7.1f}")


if __name__ == "__main__":
    main()
