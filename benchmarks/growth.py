"""How cost grows with size: the exponent of each curve, and whether it and the largest size keep their bounds.

python benchmarks/growth.py            # all rows, about ten minutes; exit code 1 where one is worse than its bound
python benchmarks/growth.py --quick    # small sizes, under a minute
python benchmarks/growth.py --rows penalties,classes
python benchmarks/growth.py --part 2/4 # a quarter of them, in about a minute and a half

Times are of the processor, the best of several, per unit of work. An exponent is the slope through all sizes on
paper with two logarithmic axes: 0 is flat, 1 linear. A bound on the largest size holds with normal sizes only.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import math
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import msgspec
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.growth_gateway import constrained, idle, metrics
from benchmarks.growth_training import LABELS

from weighbridge.cost.length import OutputLengths
from weighbridge.cost.step import StepCost
from weighbridge.cost.weight import OutputEstimate, Weight
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.request import Request, SamplingParams
from weighbridge.engine.sampler import Sampler
from weighbridge.engine.schedule.fairness import VirtualTokenCounters
from weighbridge.engine.schedule.queue import FairQueue
from weighbridge.engine.schedule.scheduler import Scheduler
from weighbridge.engine.schedule.scheduler_api import SchedulerSettings
from weighbridge.errors import BadInput, Refused
from weighbridge.fleet.api import Arrival, Capacity
from weighbridge.fleet.desk import Desk, Lease, Patience, Standing
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.queue import GatewayQueue, QueueSettings
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.load.weigher import Scales
from weighbridge.fleet.policies.weigh import Weigh
from weighbridge.flow import flow, step
from weighbridge.routes.budget import Ledger
from weighbridge.routes.difficulty.ridge import Dense, ridge
from weighbridge.routes.privacy.guard import Guard
from weighbridge.routes.privacy.patterns import PatternDetector
from weighbridge.ticket import Ticket
from weighbridge.wire.ask import Ask

COST = StepCost(overhead=0.003, memory=0.010, per_token=6e-5, per_context_token=6e-8, per_sequence=2e-5)
VOCABULARY = 151_936
#: What a slope may be beyond its bound before it is called worse: two busy cores are no quiet place.
SLACK = 0.15


@dataclass(frozen=True, slots=True)
class Row:
    """A curve. `measure` gives the cost at a size in `unit`; the largest size may cost `most`. Without `quick` sizes it
    is left out where it has to be quick."""

    name: str
    what: str
    unit: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    exponent: float
    most: float
    measure: Callable[[int], float]


def seconds(work: Callable[[], object], times: int = 3, least: float = 0.02) -> float:
    """Processor seconds of one call: the best of `times` stretches of at least `least` seconds."""
    calls, best = 1, math.inf
    while True:
        began = time.process_time()
        for _ in range(calls):
            work()
        took = time.process_time() - began
        if took >= least or calls >= 1 << 16:
            break
        calls *= 4
    for _ in range(times - 1):
        began = time.process_time()
        for _ in range(calls):
            work()
        took = min(took, time.process_time() - began)
    best = min(best, took / calls)
    return best


def once(work: Callable[[], object]) -> float:
    """Processor seconds of something that cannot be done twice."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def held(make: Callable[[], object]) -> float:
    """Bytes that what is made holds on to."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        del made
        return float(size)
    finally:
        tracemalloc.stop()


def slope(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """The exponent of the power law through all points."""
    lines = np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-12)), 1)
    return float(lines[0])


# -- privacy and money ------------------------------------------------------------------------------------


def _looked(text: str, *, hides: bool) -> float:
    guard = Guard([PatternDetector()])
    body = {"messages": [{"role": "user", "content": text}]}

    async def looks() -> None:
        inspection = await guard.inspect(body, len(text))
        if hides:
            await guard.redact(inspection, body, len(text))

    took = once(lambda: asyncio.run(looks()))
    guard.close()
    return took


def key_lines(size: int) -> float:
    line = "-----BEGIN PRIVATE KEY-----\n"
    return _looked(line * (size // len(line)), hides=False) / size * 1e6


def distinct_values(count: int) -> float:
    """Finding and hiding so many, or giving up in time: then the request stays local."""
    lines = [f"write to person{number}@mail{number % 977}.com" for number in range(count)]
    return _looked("\n".join(lines), hides=True)


def ledger(tenants: int) -> float:
    """A reservation and its settlement, where so many tenants had one today."""
    with tempfile.TemporaryDirectory() as directory:
        book = Ledger(Path(directory) / "ledger.db")
        for number in range(tenants):
            made = book.reserve(f"t{number}", "auto", 0.001)
            assert not isinstance(made, str)
            book.settle(made, 0.001)

        def one() -> None:
            again = book.reserve("t7", "auto", 0.001)
            assert not isinstance(again, str)
            book.settle(again, 0.001)

        took = seconds(one)
        book.close()
    return took * 1e3


def labels(count: int) -> float:
    """The regression of `route train` on so many labels of 600 columns."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((count, 600))
    targets = columns[:, :3] + rng.standard_normal((count, 3))
    return once(lambda: ridge(Dense(columns), targets, rng))


def training(count: int) -> float:
    """Peak memory of a process that trains on so many labels, in MB."""
    return _trained(count)["peak_mb"]


def training_time(count: int) -> float:
    return _trained(count)["cpu"]


@lru_cache(maxsize=8)
def _trained(count: int) -> dict[str, float]:
    """What growth_training.py says."""
    program = str(Path(__file__).parent / "growth_training.py")
    command = [sys.executable, program, "--labels", str(count), "--width", "0", "--json"]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


# -- the fleet --------------------------------------------------------------------------------------------


def _arrival(number: int, tokens: int = 1000, chain: tuple[bytes, ...] = ()) -> Arrival:
    return Arrival(f"q{number}", "m", Weight(tokens, 256, OutputEstimate(200.0, 150, 256)), 0.0, chain=chain)


def ticket(replicas: int) -> float:
    made = Ticket(
        id="x" * 32, tenant="t", model="m", prompt_hash="h" * 16, prompt_tokens=9, max_tokens=9, priority=0, choices=1,
        arrived=0.0, replica="r0", route="",
    )  # fmt: skip
    made.note_scores(
        {f"replica-{number}": number * 0.37 for number in range(replicas)}, "replica-0", "seconds"
    )
    return float(len(msgspec.json.encode(made.as_dict())))


def tenants(count: int) -> float:
    """Memory of the fair counters where so many tenants were served and never had to wait."""

    def make() -> VirtualTokenCounters:
        counters = VirtualTokenCounters()
        for number in range(count):
            counters.charge(f"tenant-{number}", 1.0)
        return counters

    return held(make) / 1e6


def departures(count: int) -> float:
    """A tenant that comes and goes beside so many that have gone."""
    counters = VirtualTokenCounters()
    for number in range(count):
        counters.charge(f"tenant-{number}", 1.0)
    turns = iter(range(10**9))

    def one() -> None:
        name = f"late-{next(turns)}"
        counters.activate(name)
        counters.deactivate(name)

    return seconds(one) * 1e6


@dataclass(eq=False)
class _Seat:
    """A replica that always takes what it is given."""

    state: ReplicaState
    rests: bool = False
    held_until: float = 0.0

    def accepts(self, arrival: Arrival, now: float) -> bool:
        return self.usable(now) and self.state.accepts(arrival, now)

    def can_ever(self, arrival: Arrival, now: float) -> bool:
        return self.state.fits(arrival)

    def usable(self, now: float) -> bool:
        return not self.rests

    def takes_turns(self, arrival: Arrival, now: float) -> bool:
        return self.usable(now) and self.state.open_to(arrival)

    def standing(self, now: float) -> Standing:
        return Standing.DOWN if self.rests else Standing.UP

    def why(self, now: float) -> str:
        return "it answered with status 503 and wants 60 s of rest" if self.rests else ""

    def reserve(self, arrival: Arrival, now: float) -> bool:
        return True

    def sent(self, now: float) -> None: ...

    def settle(self, arrival: Arrival, produced: int, now: float) -> None: ...


def _desk(replicas: int, *, rests: bool = False) -> Desk[_Seat]:
    index = PrefixIndex()
    desk: Desk[_Seat] = Desk(
        "m", Weigh(random.Random(0)), GatewayQueue(QueueSettings()), Patience(for_any=0.0)
    )
    for number in range(replicas):
        state = ReplicaState(f"r{number}", Capacity(COST.scaled(1.0 + number % 3), kv_tokens=10**6), index)
        desk.join(_Seat(state, rests), 0.0)
    return desk


def decision(replicas: int) -> float:
    """`weigh` places a request, and one that was placed before it ends."""
    desk, rng, fresh = _desk(replicas), random.Random(0), iter(range(10**9))
    live: deque[Lease[_Seat]] = deque()

    def one() -> None:
        number = next(fresh)
        chain = tuple(f"{number % 64} {depth}".encode().ljust(16) for depth in range(32))
        lease = desk.place(_arrival(number, rng.randrange(64, 4000), chain), number * 1e-3)
        assert lease is not None
        live.append(lease)
        if len(live) > 4 * replicas:
            live.popleft().release(number * 1e-3)

    for _ in range(4 * replicas):
        one()
    return seconds(one) * 1e6


def refusal(replicas: int) -> float:
    """Bytes of what a client is told when all rest."""
    desk = _desk(replicas, rests=True)
    try:
        for now in (1.0, 2.0):
            desk.offer(_arrival(int(now)), now, frozenset(), streamed=True, again=False)
    except Refused as error:
        return float(len(str(error)))
    raise AssertionError("a fleet that rests refuses")


def remembered(size: int) -> float:
    """Memory of what the door remembers of 600 prompts of so many bytes."""
    scales = Scales(OutputLengths())

    async def weigh() -> None:
        for number in range(600):
            text = f"{number} " + "x" * (size - 8)
            raw = msgspec.Raw(msgspec.json.encode(text))
            await scales.weigh(Ask("a", "/v1/completions", {"prompt": raw}, "m", "t"))

    def make() -> Scales:
        asyncio.run(weigh())
        return scales

    return held(make) / 1e6


def turns(count: int) -> float:
    """A further turn of a conversation of so many, of ten blocks each: found in the index and entered."""
    index = PrefixIndex()
    index.add_replica("r", 10**7)
    chain = tuple(f"{number}".encode().ljust(16) for number in range(10 * count))
    for end in range(10, len(chain) + 1, 10):
        index.enter("r", chain[:end])

    def one() -> None:
        index.matched(chain)
        index.enter("r", chain)

    return seconds(one) * 1e6


def gateway_queue(count: int) -> float:
    line = GatewayQueue(QueueSettings(max_requests=10**7))
    for number in range(count):
        line.push(_arrival(number), 0.0)
    fresh = iter(range(count, 10**9))

    def one() -> None:
        line.push(_arrival(next(fresh)), 0.0)
        found = line.peek(0.0)
        assert found is not None
        line.take(found, 0.0)

    return seconds(one) * 1e6


# -- the engine -------------------------------------------------------------------------------------------


def _request(name: str, prompt: list[int], **params: object) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=1000, **params), 0.0)  # type: ignore[arg-type]


def _sampled(request: Request) -> float:
    sampler = Sampler(_Argmax(), None, VOCABULARY, random.Random(0))
    logits = torch.zeros(1, VOCABULARY)
    batch = Batch([Slice(request, request.num_tokens - 1, 1, True)], [])
    sampler.sample(logits, batch)
    return seconds(lambda: sampler.sample(logits, batch)) * 1e3


class _Argmax:
    def argmax(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=-1)


def biases(count: int) -> float:
    return _sampled(_request("a", [1, 2, 3], temperature=0.0, logit_bias={n * 7: 1.0 for n in range(count)}))


def penalties(output: int) -> float:
    request = _request("a", [1, 2, 3], temperature=0.0, frequency_penalty=0.5)
    request.tokens.extend(random.Random(0).choices(range(VOCABULARY), k=output))
    return _sampled(request)


def classes(count: int) -> float:
    """One request in and one out, where so many priority classes wait."""
    line: FairQueue[Arrival] = FairQueue()
    for number in range(4 * count):
        line.push(_of_class(number, number % count), number * 1e-6, 1)
    fresh = iter(range(10**6, 10**9))

    def one() -> None:
        number = next(fresh)
        line.push(_of_class(number, number % count), number * 1e-6, 1)
        found = line.peek(number * 1e-6)
        assert found is not None
        line.take(found[0], number * 1e-6)

    return seconds(one) * 1e6


def _of_class(number: int, priority: int) -> Arrival:
    weight = Weight(1, 1, OutputEstimate(1.0, 1, 1))
    return Arrival(f"q{number}", "m", weight, 0.0, priority=priority)


def schedule(count: int) -> float:
    """An iteration with so many streams and as many short prompts that come at once."""
    settings = SchedulerSettings(
        max_model_len=4096, num_blocks=40 * count, block_size=16, max_batch_tokens=8 * count, max_sequences=4 * count,
        speculate=False, max_queue_requests=10**6,
    )  # fmt: skip
    best = math.inf
    for attempt in range(3):
        scheduler = Scheduler(settings, _Costs())
        for number in range(count):
            scheduler.add(_request(f"d{attempt}-{number}", [number, 1, 2]), 0.0)
        _step(scheduler)
        for number in range(count):
            scheduler.add(_request(f"p{attempt}-{number}", [number + 5, 3, 4, 5, 6]), 0.0)
        best = min(best, once(partial(scheduler.schedule, 0.0)))
    return best * 1e3


def pools(blocks: int) -> float:
    pool = BlockPool(blocks, 16)

    def one() -> None:
        pool.release(pool.allocate("t"), keep=False)

    return seconds(one) * 1e6


def _step(scheduler: Scheduler) -> None:
    batch = scheduler.schedule(0.0)
    scheduler.update(
        batch,
        Sampled([[1] if piece.samples else [] for piece in batch.slices], [None] * len(batch.slices)),
        0.0,
    )


class _Costs:
    cost = COST


# -- flow -------------------------------------------------------------------------------------------------


@step
async def doubled(number: int) -> int:
    return 2 * number


@flow
async def long_flow(count: int) -> int:
    return sum([await doubled(number) for number in range(count)])


def steps(count: int) -> float:
    """A step of a run of so many, written to a journal."""
    with tempfile.TemporaryDirectory() as directory:
        journaled = long_flow.options(journal=Path(directory) / "flow.sqlite", run_id="run")
        return once(lambda: journaled.run(count)) / count * 1e6


def record(count: int) -> float:
    """Bytes that a run of so many steps takes in its journal."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "flow.sqlite"
        long_flow.options(journal=path, run_id="run").run(count)
        return sum(file.stat().st_size for file in Path(directory).iterdir()) / 1e6


ROWS = (
    Row(
        "key-lines",
        "1: a prompt of key lines is looked at",
        "us/B",
        (65_536, 262_144, 1_048_576),
        (16_384, 65_536),
        0,
        0.3,
        key_lines,
    ),
    Row(
        "tickets",
        "2: a ticket where so many replicas were compared",
        "B",
        (64, 256, 1000),
        (64, 1000),
        0,
        2048,
        ticket,
    ),
    Row(
        "logit-bias",
        "3: a token with so many biases",
        "ms",
        (100, 1000, 10_000),
        (100, 10_000),
        0.5,
        0.2,
        biases,
    ),
    Row(
        "schema",
        "4: a choice whose schema of so many properties was validated",
        "ms",
        (100, 1000, 5000),
        (100, 1000),
        0,
        1,
        constrained,
    ),
    Row(
        "tenants",
        "5: counters of tenants that never wait",
        "MB",
        (10_000, 100_000, 1_000_000),
        (10_000, 50_000),
        0,
        2.5,
        tenants,
    ),
    Row(
        "departures",
        "5: a tenant comes and goes beside so many",
        "us",
        (10_000, 100_000, 1_000_000),
        (10_000, 50_000),
        0,
        50,
        departures,
    ),
    Row(
        "ledger",
        "6: reserve and settle, so many tenants today",
        "ms",
        (1000, 10_000, 50_000),
        (300, 3000),
        0,
        0.4,
        ledger,
    ),
    Row(
        "weigh",
        "7: a decision among so many replicas, and an end",
        "us",
        (64, 256, 1000),
        (64, 256),
        0.3,
        400,
        decision,
    ),
    Row("metrics", "8: longest piece of `/metrics`", "ms", (64, 256, 1000), (8, 64), 1, 10, metrics),
    Row("idle", "8: a gateway of so many, at rest", "%", (8, 256, 1000), (8, 64), 1, 3, idle),
    Row(
        "labels",
        "9: the regression of `route train`",
        "s",
        (5000, 10_000, 40_000),
        (5000, 10_000),
        1,
        60,
        labels,
    ),
    Row("training", "9: `route train`, peak", "MB", (10_000, 100_000), (), 0.5, 2000, training),
    Row("training-time", "9: the same, CPU", "s", (10_000, 100_000), (), 1, 600, training_time),
    Row(
        "prompts",
        "10: what 600 prompts of so many bytes leave behind",
        "MB",
        (16_384, 65_536, 262_144),
        (4096, 16_384),
        1,
        40,
        remembered,
    ),
    Row(
        "values",
        "11: looking for and hiding so many distinct values",
        "s",
        (100, 1000, 10_000),
        (100, 1000),
        1.4,
        2.3,
        distinct_values,
    ),
    Row(
        "refusal",
        "12: what a client reads when so many rest",
        "B",
        (8, 64, 1000),
        (8, 64),
        0.3,
        1000,
        refusal,
    ),
    Row(
        "penalties",
        "13: a token behind an output of so many",
        "ms",
        (500, 2000, 8000),
        (500, 4000),
        0.3,
        0.5,
        penalties,
    ),
    Row(
        "schedule",
        "14: an iteration of so many streams and prompts",
        "ms",
        (128, 256, 512),
        (64, 128),
        1,
        30,
        schedule,
    ),
    Row(
        "classes",
        "15: in and out beside so many priority classes",
        "us",
        (10, 100, 1000),
        (10, 300),
        0.2,
        60,
        classes,
    ),
    Row("turns", "16: a further turn, so many behind it", "us", (40, 200, 1000), (40, 400), 0.3, 500, turns),
    Row(
        "steps",
        "17: a journaled step of a run of so many",
        "us",
        (300, 1000, 3000),
        (100, 400),
        0,
        5000,
        steps,
    ),
    Row(
        "record",
        "17: the journal of a run of so many steps",
        "MB",
        (300, 1000, 3000),
        (100, 400),
        1,
        12,
        record,
    ),
    Row(
        "gateway-queue",
        "kept: in and out of a line of so many",
        "us",
        (1000, 10_000, 100_000),
        (1000, 10_000),
        0,
        100,
        gateway_queue,
    ),
    Row(
        "blocks",
        "kept: a block of so many taken and given",
        "us",
        (10_000, 100_000, 1_000_000),
        (10_000, 100_000),
        0,
        20,
        pools,
    ),
)


def drawn(row: Row, *, quick: bool) -> tuple[str, bool]:
    """A line of the table, and whether the curve keeps its bounds."""
    sizes = row.quick if quick else row.sizes
    if row.measure not in (training, training_time):  # in a process of its own
        row.measure(sizes[0])  # imports, caches and code that is used for the first time
    costs = [row.measure(size) for size in sizes]
    found = slope(sizes, costs)
    allowed = row.exponent + SLACK * (2 if quick else 1)
    keeps = found <= allowed and (quick or costs[-1] <= row.most)
    points = "  ".join(f"{size:>9,}: {cost:9.3f}" for size, cost in zip(sizes, costs, strict=True))
    line = f"{row.name:<14} {row.unit:>5}  {points:<75} exponent {found:5.2f} (at most {allowed:.2f})"
    return f"{line}  {'ok' if keeps else 'WORSE'}   {row.what}", keeps


def part(told: str) -> list[Row]:
    """The rows of the K-th of N parts, told as `K/N`. Raises ValueError."""
    number, _, of = told.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"--part {told} is no part: write it as 2/4")
    kinds = list(dict.fromkeys(row.what.split(":")[0] for row in ROWS))
    wanted = kinds[int(number) - 1 :: int(of)]
    return [row for row in ROWS if row.what.split(":")[0] in wanted]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="How cost grows with size; exit code 1 where it is worse than its bound."
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes; bounds on the largest do not count"
    )
    parser.add_argument("--rows", default="", help="names of rows, with commas; all without")
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts of all rows")
    told = parser.parse_args(arguments)
    names = {name for name in told.rows.split(",") if name}
    unknown = names - {row.name for row in ROWS}
    if unknown:
        parser.error(
            f"no row is called {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in ROWS)}"
        )
    try:
        in_part = part(told.part)
    except ValueError as error:
        parser.error(str(error))
    with quiet_on_one_thread():
        return draw(
            [row for row in ROWS if row in in_part and (not names or row.name in names)], quick=told.quick
        )


@contextmanager
def quiet_on_one_thread() -> Iterator[None]:
    """Figures of one thread, and no warnings between them; whoever calls finds both as they were."""
    disabled, threads = logging.root.manager.disable, torch.get_num_threads()
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        logging.disable(disabled)
        torch.set_num_threads(threads)


def draw(rows: Sequence[Row], *, quick: bool) -> int:
    """Draw the curves of `rows`; return 1 where one is worse than its bound."""
    worse = 0
    for row in rows:
        if quick and not row.quick:
            continue
        if row.name.startswith("training") and not LABELS.exists():
            print(f"{row.name:<14} left out: there is no {LABELS}")
            continue
        began = time.perf_counter()
        try:
            line, keeps = drawn(row, quick=quick)
        except BadInput as error:  # a busy machine: a schema took longer to compile than it may
            line, keeps = f"{row.name:<14} FAILED: {error}", False
        print(f"{line}   ({time.perf_counter() - began:.0f} s)", flush=True)
        worse += not keeps
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
