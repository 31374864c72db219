"""How long a decision takes: weigh the arrival against every replica, credit it, later release it.

    python benchmarks/gateway/decision.py [--replicas 64] [--json FILE]

The gateway's own dispatcher with all its checks (health, breaker, room), replicas under a mixed load, prompts of
which half share a long prefix.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.step import DEFAULT_STEP_COST
from weighbridge.cost.weight import Weight
from weighbridge.fleet.api import Arrival, Replica
from weighbridge.fleet.config.spec import CapacitySpec, ReplicaSpec
from weighbridge.fleet.desk import Patience
from weighbridge.fleet.dispatch import Dispatcher, Lease
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.member import Member, capacity_of
from weighbridge.fleet.policies import POLICIES, make_policy
from weighbridge.fleet.pool import BLOCK_SIZE
from weighbridge.fleet.reliability.breaker import BreakerSettings, CircuitBreaker

IN_FLIGHT_EACH = 16


class Nowhere:
    """A replica nobody calls."""

    def __init__(self, name: str) -> None:
        self.name = name


def dispatcher(policy: str, replicas: int) -> Dispatcher:
    index = PrefixIndex()
    made = Dispatcher("m", make_policy(policy, random.Random(1)), GatewayQueue(), Patience(), time.monotonic)
    for number in range(replicas):
        capacity = CapacitySpec(step_cost=DEFAULT_STEP_COST)
        spec = ReplicaSpec(f"r{number}", "url", "http://nowhere", capacity=capacity)
        state = ReplicaState(spec.name, capacity_of(spec, BLOCK_SIZE), index, time.monotonic())
        replica: Replica = Nowhere(spec.name)  # type: ignore[assignment]
        member = Member(spec, replica, state, CircuitBreaker(BreakerSettings()), heard=True)
        made.members[spec.name] = member
    return made


def arrivals(count: int, rng: random.Random) -> list[Arrival]:
    lengths = OutputLengths()
    for _ in range(500):
        lengths.observe("t", "m", "", int(rng.lognormvariate(5.0, 1.0)) + 1)
    estimate = lengths.estimate("t", "m", "", 1024)
    shared = [rng.randbytes(32) for _ in range(128)]
    made = []
    for number in range(count):
        tokens = int(rng.lognormvariate(6.5, 1.0)) + 16
        own = tuple(rng.randbytes(32) for _ in range(tokens // BLOCK_SIZE))
        chain = (*shared[: len(own) // 2], *own[len(own) // 2 :]) if number % 2 else own
        made.append(Arrival(str(number), "m", Weight(tokens, 1024, estimate), 0.0, chain=chain))
    return made


async def measure(policy: str, replicas: int, count: int = 3000) -> dict[str, float]:
    """Microseconds of `place`, with `IN_FLIGHT_EACH` requests on every replica."""
    made, rng = dispatcher(policy, replicas), random.Random(2)
    running: list[Lease] = []
    taken: list[float] = []
    for arrival in arrivals(count + replicas * IN_FLIGHT_EACH, rng):
        began = time.perf_counter()
        lease = await made.place(arrival)
        taken.append(1e6 * (time.perf_counter() - began))
        running.append(lease)
        if len(running) > replicas * IN_FLIGHT_EACH:
            lease = running.pop(rng.randrange(len(running)))
            now = time.monotonic()
            lease.first_byte(now)
            lease.tokens(rng.randrange(1, 200), now)
            lease.release(now)
    taken = sorted(taken[replicas * IN_FLIGHT_EACH :])
    return {"p50_us": round(statistics.median(taken), 1), "p99_us": round(taken[int(0.99 * len(taken))], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    found = {}
    for policy in POLICIES:
        found[policy] = asyncio.run(measure(policy, arguments.replicas))
        print(
            f"{policy:22} p50 {found[policy]['p50_us']:7.1f} us   p99 {found[policy]['p99_us']:7.1f} us",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"replicas": arguments.replicas, "decision": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
