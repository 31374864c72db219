"""A small fleet under a virtual clock: just enough of an engine to compare policies with, in a few hundred lines.

Replicas batch continuously (decodes first, then chunks of prompts in order of arrival), hold a bounded KV pool
with an LRU prefix cache, and take `StepCost` seconds per iteration. True output lengths are known to the
replicas alone. The simulator proper runs the real scheduler; this one is quick and shares no code with it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from weighbridge.fleet.api import Arrival, Capacity, Report
from weighbridge.fleet.load.prefix_index import PrefixIndex
from weighbridge.fleet.load.state import ReplicaState
from weighbridge.fleet.policies.policy import Policy


@dataclass(slots=True, eq=False)
class Job:
    arrival: Arrival
    output: int  # the truth
    cached: int = 0
    computed: int = 0
    produced: int = 0
    dispatched: float = 0.0
    first: float | None = None
    finished: float | None = None
    replica: str = ""
    preempted: int = 0

    @property
    def length(self) -> int:
        return self.arrival.weight.prompt_tokens + self.produced

    @property
    def ttft(self) -> float:
        assert self.first is not None
        return self.first - self.arrival.arrived

    @property
    def e2e(self) -> float:
        assert self.finished is not None
        return self.finished - self.arrival.arrived


class Engine:
    """One replica: `start` an iteration, `end` it some seconds later."""

    def __init__(self, name: str, capacity: Capacity, itl_target: float | None = None) -> None:
        self.name, self.capacity, self.itl_target = name, capacity, itl_target
        self.waiting: deque[Job] = deque()
        self.prefilling: list[Job] = []
        self.decoding: list[Job] = []
        self.context = 0  # tokens of the decoding
        self.used = 0  # KV tokens of running jobs
        self.cache: OrderedDict[bytes, None] = OrderedDict()
        self.plan: list[tuple[Job, int]] = []
        self.busy = False
        self.busy_seconds = 0.0

    @property
    def pool(self) -> int:
        return self.capacity.kv_tokens or 10**9

    def start(self) -> float | None:
        """Seconds the next iteration takes; None when there is nothing to do."""
        while self.used + len(self.decoding) > self.pool:
            self._preempt()
        self._admit()
        cost, batch, context = self.capacity.step_cost, len(self.decoding), self.context
        budget = self.capacity.max_batch_tokens - batch
        tokens, pairs, self.plan = batch, context, []
        for job in self.prefilling:
            left = job.length - job.computed
            chunk = min(left, budget)
            if batch and self.itl_target is not None and chunk > 0:
                alone = cost.seconds(batch, batch, context)
                target = max(self.itl_target, 2.1 * alone)
                sequences = batch + len(self.plan)
                fits = cost.largest_chunk(target, job.computed, chunk, tokens, sequences, pairs)
                chunk = max(fits, 0 if self.plan else min(chunk, 16))
            if chunk <= 0:
                break
            self.plan.append((job, chunk))
            tokens, budget = tokens + chunk, budget - chunk
            pairs += chunk * job.computed + chunk * (chunk + 1) // 2
        if not tokens:
            self.busy = False
            return None
        self.busy = True
        seconds = cost.seconds(tokens, batch + len(self.plan), pairs)
        self.busy_seconds += seconds
        return seconds

    def end(self) -> list[Job]:
        """The iteration is over: jobs that got a token."""
        got = self.decoding
        for job, chunk in self.plan:
            job.computed += chunk
        done = [job for job, _ in self.plan if job.computed == job.length]
        for job in done:
            self.prefilling.remove(job)
            self._cache(job)
        advanced = got + done
        still = []
        self.context = 0
        for job in advanced:
            job.produced += 1
            job.computed = job.length
            self.used += 1
            if job.produced >= job.output:
                self.used -= job.length
            else:
                still.append(job)
                self.context += job.length
        self.decoding = still
        return advanced

    def abort(self, job: Job) -> None:
        for line in (self.waiting, self.prefilling, self.decoding):
            if job in line:
                line.remove(job)
                if line is not self.waiting:
                    self.used -= job.length
                if line is self.decoding:
                    self.context -= job.length
        self.plan = [(other, chunk) for other, chunk in self.plan if other is not job]

    def _admit(self) -> None:
        while self.waiting and len(self.decoding) + len(self.prefilling) < self.capacity.max_sequences:
            job = self.waiting[0]
            reserve = len(self.decoding) + len(self.prefilling)
            if reserve and self.used + job.length + reserve * self.capacity.block_size > self.pool:
                return
            self.waiting.popleft()
            size, chain = self.capacity.block_size, job.arrival.chain
            hit = 0
            while hit < len(chain) and chain[hit] in self.cache:
                self.cache.move_to_end(chain[hit])
                hit += 1
            job.computed = min(hit * size, job.length - 1)
            if not job.preempted:
                job.cached = job.computed
            self.used += job.length
            self.prefilling.append(job)
            self._evict()

    def _cache(self, job: Job) -> None:
        for digest in reversed(job.arrival.chain):
            self.cache[digest] = None
            self.cache.move_to_end(digest)
        self._evict()

    def _evict(self) -> None:
        # Blocks in use are counted twice here (as cache and as used), so the pool is a little tighter than real.
        room = max(self.pool - self.used, 0) // self.capacity.block_size
        running = (
            {d for job in (*self.prefilling, *self.decoding) for d in job.arrival.chain} if self.cache else ()
        )
        room += len(running)
        while len(self.cache) > room:
            self.cache.popitem(last=False)

    def _preempt(self) -> None:
        job = (self.prefilling or self.decoding).pop()
        if job in self.decoding:
            self.decoding.remove(job)
        self.context = sum(other.length for other in self.decoding)
        self.used -= job.length
        job.computed = 0
        job.preempted += 1
        self.waiting.appendleft(job)


@dataclass(slots=True)
class Outcome:
    jobs: list[Job]
    seconds: float
    engines: list[Engine]
    states: list[ReplicaState] = field(default_factory=list)

    def quantile(self, value: Callable[[Job], float], share: float) -> float:
        values = sorted(value(job) for job in self.jobs)
        return values[min(int(share * len(values)), len(values) - 1)]

    @property
    def hit_rate(self) -> float:
        prompts = sum(job.arrival.weight.prompt_tokens for job in self.jobs)
        return sum(job.cached for job in self.jobs) / prompts


class SmallFleet:
    """Arrivals go through one or more gateways, each with its own policy and states, to shared replicas.

    `lag` is how old a report is when it comes, `period` how often one comes (0: never).
    """

    def __init__(
        self,
        capacities: Sequence[Capacity],
        policies: Sequence[Policy],
        *,
        itl_target: float | None = None,
        period: float = 0.0,
        believed: Sequence[Capacity] | None = None,
        queue: bool = True,
        network: float = 0.0,
    ) -> None:
        names = [f"r{i}" for i in range(len(capacities))]
        self.engines = {n: Engine(n, c, itl_target) for n, c in zip(names, capacities, strict=True)}
        self.policies = policies
        self.states: list[dict[str, ReplicaState]] = []
        for _ in policies:
            index = PrefixIndex()
            known = zip(names, believed or capacities, strict=True)
            self.states.append({name: ReplicaState(name, capacity, index) for name, capacity in known})
        self.queues: list[deque[Job]] = [deque() for _ in policies]
        self.period, self.queueing, self.network = period, queue, network
        self.events: list[tuple[float, int, str, object]] = []
        self.count = 0
        self.finished: list[Job] = []

    def at(self, time: float, kind: str, what: object) -> None:
        self.count += 1
        heappush(self.events, (time, self.count, kind, what))

    def run(self, jobs: Sequence[Job], until: float = float("inf")) -> Outcome:
        for job in jobs:
            self.at(job.arrival.arrived, "arrive", job)
        if self.period:
            self.at(self.period, "report", None)
        self.left, now = len(jobs), 0.0
        gateway = {id(job): index % len(self.policies) for index, job in enumerate(jobs)}
        while self.events and self.left and now < until:
            now, _, kind, what = heappop(self.events)
            if kind == "arrive":
                assert isinstance(what, Job)
                self.queues[gateway[id(what)]].append(what)
                self._dispatch(gateway[id(what)], now)
            elif kind == "reach":
                assert isinstance(what, Job)
                engine = self.engines[what.replica]
                engine.waiting.append(what)
                if not engine.busy:
                    self._start(engine, now)
            elif kind == "iterated":
                assert isinstance(what, Engine)
                self._iterated(what, gateway, now)
            else:
                self._report(now)
        states = [state for each in self.states for state in each.values()]
        return Outcome(self.finished, now, list(self.engines.values()), states)

    def _start(self, engine: Engine, now: float) -> None:
        seconds = engine.start()
        if seconds is not None:
            self.at(now + seconds, "iterated", engine)

    def _dispatch(self, gateway: int, now: float) -> None:
        queue, states = self.queues[gateway], self.states[gateway]
        while queue:
            job = queue[0]
            able = [s for s in states.values() if s.accepts(job.arrival, now) or not self.queueing]
            if not able:
                return
            queue.popleft()
            choice = self.policies[gateway].choose(job.arrival, able, now)
            states[choice.replica].credit(job.arrival, choice.cached_tokens, now)
            job.replica, job.dispatched = choice.replica, now
            self.at(now + self.network, "reach", job)

    def _iterated(self, engine: Engine, gateway: dict[int, int], now: float) -> None:
        for job in engine.end():
            state = self.states[gateway[id(job)]][engine.name]
            if job.first is None:
                job.first = now
                state.first_token(job.arrival.id, now)
            state.tokens(job.arrival.id, 1, now)
            if job.produced >= job.output:
                job.finished = now
                state.release(job.arrival.id, now)
                self.finished.append(job)
                self.left -= 1
        self._start(engine, now)
        for index in range(len(self.policies)):
            self._dispatch(index, now)

    def _report(self, now: float) -> None:
        for name, engine in self.engines.items():
            waiting, prefilling = engine.waiting, engine.prefilling
            report = Report(
                at=now,
                queued_requests=len(waiting),
                running_requests=len(prefilling) + len(engine.decoding),
                queued_tokens=sum(j.length + 200 for j in waiting),
                running_tokens=sum(j.length - j.computed + 200 for j in prefilling)
                + 100 * len(engine.decoding),
                kv_tokens_used=engine.used,
                kv_tokens_total=engine.pool,
            )
            for states in self.states:
                states[name].report(report)
        self.at(now + self.period, "report", None)
