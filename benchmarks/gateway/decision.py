"""How long a decision takes: weigh the arrival against the replicas, credit it, later release it.

    python benchmarks/gateway/decision.py [--replicas 8,64,256,1000] [--policies weigh,weigh_all] [--full] [--json FILE]

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
from weighbridge.fleet.desk import Desk, Patience
from weighbridge.fleet.dispatch import Dispatcher, Lease
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.member import Member, capacity_of
from weighbridge.fleet.policies import POLICIES, make_policy
from weighbridge.fleet.policies.weigh import Weigh
from weighbridge.fleet.pool import BLOCK_SIZE
from weighbridge.fleet.reliability.breaker import BreakerSettings, CircuitBreaker

IN_FLIGHT_EACH = 16
#: Measured requests in flight beside these.
LEASES = 200


class Nowhere:
    """A replica nobody calls."""

    def __init__(self, name: str) -> None:
        self.name = name


class WeighAll:
    """`weigh` where every replica of a fleet of any size is looked at for every request."""

    name = "weigh_all"

    def __init__(self, rng: random.Random) -> None:
        self.choose = Weigh(rng).choose


def dispatcher(policy: str, replicas: int, seats: int = 256) -> Dispatcher:
    index, rng = PrefixIndex(), random.Random(1)
    chosen = WeighAll(rng) if policy == WeighAll.name else make_policy(policy, rng)
    made = Dispatcher("m", chosen, GatewayQueue(), Patience(), time.monotonic)
    for number in range(replicas):
        capacity = CapacitySpec(step_cost=DEFAULT_STEP_COST, max_sequences=seats)
        spec = ReplicaSpec(f"r{number}", "url", "http://nowhere", capacity=capacity)
        state = ReplicaState(spec.name, capacity_of(spec, BLOCK_SIZE), index, time.monotonic())
        replica: Replica = Nowhere(spec.name)  # type: ignore[assignment]
        member = Member(spec, replica, state, CircuitBreaker(BreakerSettings()), heard=True)
        made.desk.join(member, time.monotonic())
    return made


def arrivals(count: int, rng: random.Random, name: str = "") -> list[Arrival]:
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
        made.append(Arrival(f"{name}{number}", "m", Weight(tokens, 1024, estimate), 0.0, chain=chain))
    return made


async def measure(policy: str, replicas: int, count: int = 2000) -> dict[str, float]:
    """Microseconds (CPU time) of a place and of giving it back."""
    made, rng = dispatcher(policy, replicas), random.Random(2)
    fill(made, rng)
    placing, ending = [], []
    running: list[Lease] = []
    for arrival in arrivals(count, rng):
        began = time.thread_time()
        lease = await made.place(arrival)
        placing.append(1e6 * (time.thread_time() - began))
        running.append(lease)
        if len(running) > LEASES:
            lease = running.pop(rng.randrange(len(running)))
            lease.first_byte(time.monotonic())
            lease.tokens(rng.randrange(1, 200), time.monotonic())
            began = time.thread_time()
            lease.release(time.monotonic())
            ending.append(1e6 * (time.thread_time() - began))
    return {**quantiles("place", placing), **quantiles("release", ending)}


async def measure_full(replicas: int, count: int = 300) -> dict[str, float]:
    """Microseconds from the end of a request to the lease of the one that waited for its place, all seats taken."""
    rng = random.Random(3)
    made: Desk[Member] = Desk("m", make_policy("weigh", rng), GatewayQueue(), Patience())
    for member in dispatcher("weigh", replicas, seats=IN_FLIGHT_EACH).members.values():
        made.join(member, time.monotonic())
    coming = iter(arrivals(replicas * IN_FLIGHT_EACH + count, rng))
    running = []
    while (lease := made.offer(next(coming), time.monotonic())) is not None:
        running.append(lease)
    for arrival in coming:
        made.offer(arrival, time.monotonic())
    taken = []
    for _ in range(count):
        lease = running.pop(rng.randrange(len(running)))
        began = time.thread_time()
        lease.release(time.monotonic())
        running += made.pump(time.monotonic())
        taken.append(1e6 * (time.thread_time() - began))
    return quantiles("release and pump", taken)


def fill(made: Dispatcher, rng: random.Random) -> None:
    """Put requests on every replica, half of which stream."""
    now = time.monotonic()
    coming = iter(arrivals(len(made.members) * IN_FLIGHT_EACH, rng, "filling "))
    for name, member in made.members.items():
        for number in range(IN_FLIGHT_EACH):
            request = next(coming)
            member.state.credit(request, 0, now)
            if number % 2:
                member.state.first_token(request.id, now)
                member.state.tokens(request.id, rng.randrange(1, 100), now)
        made.desk.touch(name, now)


def quantiles(what: str, taken: list[float]) -> dict[str, float]:
    taken = sorted(taken)
    return {f"{what} p50": statistics.median(taken), f"{what} p99": taken[int(0.99 * len(taken))]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", default="64", help="sizes of the fleet, by commas")
    parser.add_argument("--policies", default=",".join(POLICIES), help="and `weigh_all`")
    parser.add_argument("--full", action="store_true", help="with all seats taken, too")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    found = []
    for replicas in map(int, arguments.replicas.split(",")):
        for policy in arguments.policies.split(","):
            figures = asyncio.run(measure(policy, replicas))
            found.append({"replicas": replicas, "policy": policy, **figures})
            show(found[-1])
        if arguments.full:
            found.append({"replicas": replicas, "policy": "weigh", **asyncio.run(measure_full(replicas))})
            show(found[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def show(row: dict[str, object]) -> None:
    figures = "   ".join(f"{k} {v:7.1f} us" for k, v in row.items() if isinstance(v, float))
    print(f"{row['replicas']:5} {row['policy']:20} {figures}", flush=True)


if __name__ == "__main__":
    main()
