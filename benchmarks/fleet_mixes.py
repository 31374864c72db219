"""Fleets of engines whose speed nobody tells, or tells wrongly: `weigh` against policies that ask for no speed.

    python benchmarks/fleet_mixes.py                      # 50 mixes under the virtual clock
    python benchmarks/fleet_mixes.py --mixes 10 --show    # with each mix
    python benchmarks/fleet_mixes.py --repeats 3          # three times, with other arrivals: what is lost beyond chance
    python benchmarks/fleet_mixes.py --slow               # one becomes 3 to 10 times as slow: what comes after that
    python benchmarks/fleet_mixes_live.py                 # ten of them over HTTP, with sleeps

A mix is drawn from its number: 2 to 6 replicas, each 1 to 5 times as slow as the quickest may be, with 1 to 8 seats;
some tell their step cost, some tell a wrong one, some nothing but their queue, some nothing at all; in some mixes one
becomes slower or quicker under way. Engines are the product's scheduler under the rules of vLLM, desk, policies and
what is learned are the product's own. `join_shortest_queue`: the fewest that wait for a first token, of equals the
fewest requests. `clairvoyant` is `weigh` where every engine tells the truth, also of its change, at once: what better
learning could bring at most.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weighbridge.cost import StepCost
from weighbridge.fleet.api import Arrival, Choice, Randomness, Report
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies import make_policy
from weighbridge.fleet.policies.candidates import lowest
from weighbridge.fleet.policies.policy import Policy
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec, Simulation
from weighbridge.workload.requests import SimulatedRequest, Span

#: A usual step of the quickest engine there may be.
STEP = 0.02
#: Dialects that tell how many run and wait, and those that tell nothing.
TELL_QUEUE, TELL_NOTHING = ("vllm", "sglang", "llama-server"), ("ollama", "openai")
SIMPLE = ("round_robin", "least_requests", "join_shortest_queue")
CLAIRVOYANT = "clairvoyant"
POLICIES = ("weigh", *SIMPLE, CLAIRVOYANT)
FIGURES = ("ttft_p50", "ttft_p99", "completion")
#: What may be lost to the best of the simple ones.
LOST = 1.10
Found = dict[str, dict[str, float]]  # the figures of each policy
MANY_SEATS = 256
#: Share of the arrivals that have come when one becomes slower.
SLOW_AT = 0.4


class JoinShortestQueue:
    """The one with the fewest requests that wait for their first token."""

    name = "join_shortest_queue"

    def __init__(self, rng: Randomness) -> None:
        self._rng = rng

    def choose(self, arrival: Arrival, replicas: Sequence[ReplicaState], now: float) -> Choice:
        scores = {r.name: r.sequences - r.decoding + 1e-3 * r.total_requests(now) for r in replicas}
        return Choice(lowest(replicas, scores, self._rng).name, "the shortest line", scores, "requests")


@dataclass(frozen=True)
class Engine:
    """One engine as it really is, and what it says of itself."""

    slower: float
    seats: int
    dialect: str
    cost: StepCost
    claims: StepCost | None  # None: it tells no step cost

    @property
    def kind(self) -> str:
        if self.claims is None:
            return self.dialect
        return "weighbridge" if self.claims == self.cost else "weighbridge, wrong"


@dataclass(frozen=True)
class Drift:
    replica: int
    at: float  # share of the arrivals that have come
    factor: float


@dataclass(frozen=True)
class Mix:
    number: int
    engines: tuple[Engine, ...]
    drift: Drift | None
    prompt: float
    output: float
    load: float

    @property
    def spread(self) -> float:
        speeds = [one.slower for one in self.engines]
        return max(speeds) / min(speeds)

    @property
    def rate(self) -> float:
        """Requests a second that are `load` of what all engines do together."""
        return self.load * sum(self._throughput(one) for one in self.engines)

    def _throughput(self, engine: Engine) -> float:
        cost, seats = engine.cost, engine.seats
        context = seats * (self.prompt + self.output / 2)
        prefill = cost.prefill_work(self.prompt) + cost.overhead
        return seats / (self.output * cost.decode_seconds(seats, context) + seats * prefill)

    def in_words(self) -> str:
        engines = ", ".join(f"{one.slower:.1f}x {one.seats} {one.kind}" for one in self.engines)
        drift = f"; r{self.drift.replica} x{self.drift.factor:.1f}" if self.drift else ""
        return f"load {self.load:.2f}, {self.prompt:.0f}+{self.output:.0f} tokens; {engines}{drift}"


def draw(number: int) -> Mix:
    rng = random.Random(f"mix {number}")
    token = STEP * 10 ** rng.uniform(-2.7, -1.3)
    engines = []
    for _ in range(rng.randint(2, 6)):
        slower = rng.uniform(1.0, 5.0)
        cost = StepCost(0.3 * STEP, 0.7 * STEP, token, 1e-5 * STEP, 0.03 * STEP).scaled(slower)
        kind = rng.random()
        dialect, claims = "weighbridge", cost
        if kind < 0.35:
            dialect, claims = rng.choice(TELL_QUEUE), None
        elif kind < 0.6:
            dialect, claims = rng.choice(TELL_NOTHING), None
        elif kind < 0.75:
            claims = cost.scaled(rng.choice((0.05, 0.2, 5.0, 20.0)))
        elif kind < 0.8:
            claims = replace(cost, per_token=0.0)
        engines.append(Engine(slower, rng.randint(1, 8), dialect, cost, claims))
    drift = None
    if rng.random() < 0.4:
        drift = Drift(rng.randrange(len(engines)), rng.uniform(0.3, 0.6), rng.choice((0.4, 2.0, 3.0)))
    return Mix(
        number,
        tuple(engines),
        drift,
        prompt=rng.choice((30.0, 100.0, 300.0, 1000.0)),
        output=rng.choice((5.0, 20.0, 60.0, 150.0)),
        load=rng.uniform(0.3, 0.85),
    )


def slowed(mix: Mix) -> Mix:
    """The same fleet with a change for the worse, and not so busy that the others could not do without that one."""
    rng = random.Random(f"slow {mix.number}")
    drift = Drift(rng.randrange(len(mix.engines)), SLOW_AT, rng.choice((3.0, 5.0, 10.0)))
    return replace(mix, drift=drift, load=min(mix.load, 0.6))


def requests_of(mix: Mix, count: int, repeat: int = 0) -> list[SimulatedRequest]:
    """What arrives; each repeat is drawn anew."""
    seed = f"requests {mix.number}" + (f" again {repeat}" if repeat else "")
    rng, at, requests = random.Random(seed), 0.0, []
    for n in range(count):
        at += rng.expovariate(mix.rate)
        prompt = max(round(rng.lognormvariate(0.0, 0.6) * mix.prompt), 4)
        output = max(round(rng.lognormvariate(0.0, 0.6) * mix.output), 1)
        requests.append(
            SimulatedRequest(f"q{n}", at, (Span(n + 1, prompt),), output, 4 * round(mix.output), answer=n)
        )
    return requests


def fleet_of(mix: Mix) -> SimulatedFleet:
    specs = []
    for engine in mix.engines:
        settings = SimulatedEngine(
            profile="vllm", max_sequences=engine.seats, kv_tokens=1 << 20, enable_prefix_cache=False
        ).settings()
        specs.append(
            SimulatedReplicaSpec(
                cost=engine.cost,
                settings=settings,
                concurrency=MANY_SEATS,
                tells_speed=engine.claims is not None,
                claims=engine.claims,
            )
        )
    return SimulatedFleet(replicas=tuple(specs), prefix_index=False)


def truthful(mix: Mix) -> Mix:
    engines = tuple(replace(one, dialect="weighbridge", claims=one.cost) for one in mix.engines)
    return replace(mix, engines=engines)


def simulate(mix: Mix, policy: str, count: int, repeat: int = 0) -> tuple[Simulation, np.ndarray, np.ndarray]:
    """One run: it, and seconds to the first token and to the end of each request, by arrival."""
    requests = requests_of(mix, count, repeat)
    rng = random.Random(f"policy {mix.number}")
    if policy == CLAIRVOYANT:
        mix = truthful(mix)
    if policy == JoinShortestQueue.name:
        made: Policy = JoinShortestQueue(rng)
    else:
        made = make_policy("weigh" if policy == CLAIRVOYANT else policy, rng)
    run = Simulation(fleet_of(mix), requests, policy=made)
    if mix.drift is not None:
        drift, name = mix.drift, f"r{mix.drift.replica}"

        def change(now: float) -> None:
            run.replicas[name].slow(drift.factor, now)
            run.clock.watch(run.replicas[name])
            if policy == CLAIRVOYANT:
                state = run.gateway.states[name]
                cost = mix.engines[drift.replica].cost.scaled(drift.factor)
                state.update_capacity(replace(state.capacity, step_cost=cost))

        run.clock.at(requests[int(drift.at * count)].at, change)
    for number, engine in enumerate(mix.engines):
        if engine.dialect in TELL_QUEUE:
            report_every_second(run, f"r{number}", requests[-1].at)
    outcomes = run.run().outcomes
    if len(outcomes) != count:
        raise AssertionError(f"{len(outcomes)} of {count} ended")
    arrived = np.asarray(outcomes.arrived)
    order = np.argsort(arrived)
    first, last = np.asarray(outcomes.first) - arrived, np.asarray(outcomes.finished) - arrived
    return run, first[order], last[order]


def report_every_second(run: Simulation, name: str, until: float) -> None:
    """What `/metrics` says of the queue there; others send nothing, so that it is all our own."""

    def tell(now: float) -> None:
        replica, state = run.replicas[name], run.gateway.states[name]
        load = replica.scheduler.load()
        state.report(Report(now, load.queued_requests, load.running_requests))
        if now < until:
            run.clock.at(now + 1.0, tell)

    run.clock.at(0.5, tell)


def measure(job: tuple[int, str, int, int, bool]) -> dict[str, float]:
    """The figures of one run; of what comes after the change, where there is to be one."""
    number, policy, count, repeat, slow = job
    mix = slowed(draw(number)) if slow else draw(number)
    _, first, last = simulate(mix, policy, count, repeat)
    begin = int(SLOW_AT * count) if slow else 0
    return figures(first[begin:], last[begin:])


def figures(first: np.ndarray, last: np.ndarray) -> dict[str, float]:
    p50, p99 = np.quantile(first, (0.5, 0.99))
    return {"ttft_p50": float(p50), "ttft_p99": float(p99), "completion": float(last.mean())}


def ratios(found: Found, of: str = "weigh") -> dict[str, float]:
    """What `weigh` has of each figure in those of the best simple policy in it."""
    return {name: found[of][name] / min(found[one][name] for one in SIMPLE) for name in FIGURES}


def mean_ratios(repeats: Sequence[Found], of: str = "weigh") -> dict[str, float]:
    """Their geometric means over repeats."""
    each = [ratios(found, of) for found in repeats]
    return {name: float(np.exp(np.mean([np.log(one[name]) for one in each]))) for name in FIGURES}


def beyond_chance(repeats: Sequence[Found]) -> bool:
    """Whether a loss is more than repeats differ by: in some figure, two standard errors above what may be lost."""
    for name in FIGURES:
        logs = np.log([ratios(found)[name] for found in repeats])
        error = logs.std(ddof=1) / len(logs) ** 0.5 if len(logs) > 1 else np.inf
        if logs.mean() - 2.0 * error > np.log(LOST):
            return True
    return False


def why(repeats: Sequence[Found]) -> str:
    """Of each figure that is lost: to whom, by how much, in which repeats, and what the clairvoyant has of it."""
    parts = []
    lost, knowing = mean_ratios(repeats), mean_ratios(repeats, CLAIRVOYANT)
    for name, share in lost.items():
        if share > LOST:
            winners = {min(SIMPLE, key=lambda one: found[one][name]) for found in repeats}
            each = " ".join(f"{ratios(found)[name]:.2f}" for found in repeats)
            parts.append(
                f"{name} {share:.2f} ({each}) to {', '.join(sorted(winners))}, knowing {knowing[name]:.2f}"
            )
    return "; ".join(parts)


def summary(mixes: Sequence[Mix], results: Sequence[Sequence[Found]]) -> dict[str, Any]:
    """What all mixes came to, each by its repeats."""
    shares = [mean_ratios(repeats) for repeats in results]
    knowing = [mean_ratios(repeats, CLAIRVOYANT) for repeats in results]
    apart = [
        {name: found["round_robin"][name] / found["weigh"][name] for name in FIGURES}
        for mix, repeats in zip(mixes, results, strict=True)
        if mix.spread >= 3.0
        for found in repeats
    ] or [dict.fromkeys(FIGURES, float("nan"))]
    lost = {m.number: r for m, r in zip(mixes, shares, strict=True) if max(r.values()) > LOST}
    return {
        "mixes": len(mixes),
        "lost": lost,
        "lost_in": {name: sum(one[name] > LOST for one in shares) for name in FIGURES},
        "lost_beyond_chance": [m.number for m, r in zip(mixes, results, strict=True) if beyond_chance(r)],
        "lost_by_the_clairvoyant": sum(max(one.values()) > LOST for one in knowing),
        "median_to_best_simple": {n: float(np.median([one[n] for one in shares])) for n in FIGURES},
        "clairvoyant_to_best_simple": {n: float(np.median([one[n] for one in knowing])) for n in FIGURES},
        "speeds_differ_by_3": len(apart),
        "median_better_than_round_robin": {n: float(np.median([one[n] for one in apart])) for n in FIGURES},
        "least_better_than_round_robin": {n: float(np.min([one[n] for one in apart])) for n in FIGURES},
        "short_of_1.5": {n: sum(one[n] < 1.5 for one in apart) for n in FIGURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixes", type=int, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--slow", action="store_true", help="one becomes slower; figures of what comes after")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    mixes = [draw(number) for number in range(options.first, options.first + options.mixes)]
    jobs = [
        (mix.number, policy, options.requests, repeat, options.slow)
        for mix in mixes
        for repeat in range(options.repeats)
        for policy in POLICIES
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        measured = iter(list(pool.map(measure, jobs)))
    results = [
        [{policy: next(measured) for policy in POLICIES} for _ in range(options.repeats)] for _ in mixes
    ]
    for mix, repeats in zip(mixes, results, strict=True):
        if options.show or max(mean_ratios(repeats).values()) > LOST:
            share = ", ".join(f"{n} {v:.2f}" for n, v in mean_ratios(repeats).items())
            described = slowed(mix) if options.slow else mix
            print(f"mix {mix.number}: {share}; {why(repeats)}; {described.in_words()}")
            for policy, values in repeats[0].items() if options.show else ():
                print(f"    {policy:20}", *(f"{n} {v:9.3f}" for n, v in values.items()))
    json.dump(summary(mixes, results), sys.stdout, indent=None if options.json else 2)
    print()


if __name__ == "__main__":
    main()
