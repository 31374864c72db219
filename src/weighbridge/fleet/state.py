"""What the gateway knows of one replica: what it sent there, how far that has come, what others put there.

Load is credited before dispatch and drawn down as the answer streams, so that two decisions in the same
millisecond see each other (counting only after the response has begun sends a burst to one replica). What a
replica reports of itself corrects the part the gateway cannot see, and counts less the older it gets.

    own in flight    exact: credit -> first_token -> tokens ... -> release, each undone by the one exit
    others'          report minus own in flight at the time of the report, fading when reports stop coming
    prefill progress between events: what the step cost says a replica computes in the time that passed
"""

from __future__ import annotations

from dataclasses import replace

from weighbridge.cost.step import StepCost
from weighbridge.fleet.api import Arrival, Capacity, Report
from weighbridge.fleet.in_flight import InFlight, Others, sums
from weighbridge.fleet.prefix_index import PrefixIndex

#: What a replica that has just come takes, as a share of its usual work.
COLDEST = 0.1
#: Seconds between reports until two have come; after two such periods without one, a report fades.
DEFAULT_REPORT_PERIOD = 1.0


class ReplicaState:
    """Load of one replica in tokens and seconds. Every aggregate is O(1) to read and to keep.

    Attributes (read only for others): `sequences` in flight (choices counted), `decoding` of them past their
    first token, `context_tokens` of those; `uncomputed_tokens` of prompts and the `prefill_seconds` they take;
    `remaining_output` expected; `kv_tokens` held now or promised to prompts in flight.
    """

    def __init__(
        self,
        name: str,
        capacity: Capacity,
        index: PrefixIndex | None = None,
        now: float = 0.0,
        slow_start: float = 0.0,
        max_line: int | None = None,
    ) -> None:
        """`index` is shared by the fleet. `slow_start`: seconds over which a new replica warms up.

        `max_line`: prompt tokens in line there with which it counts as full; None: only seats and memory do.
        """
        self.name = name
        self.index = index
        self.healthy = True
        self.draining = False  # by our decision
        self.tells_draining = False  # by its own
        self.slow_start = slow_start
        self.max_line = max_line
        self.started_at = now
        self.sequences = 0
        self.decoding = 0
        self.context_tokens = 0
        self.uncomputed_tokens = 0.0
        self.prefill_seconds = 0.0
        self.remaining_output = 0.0
        self.kv_tokens = 0
        self.others = Others(now)
        self.report_period = DEFAULT_REPORT_PERIOD
        self._reported_at: float | None = None
        self._typical_prompt = 0.0  # prompt tokens to compute of a usual request, of ours
        self._silent: dict[str, InFlight] = {}  # not streamed and past their prefill: nothing tells how far
        self._in_flight: dict[str, InFlight] = {}
        self._prefilling: dict[str, InFlight] = {}  # in the order they were sent
        self._advanced_at = now
        self.update_capacity(capacity)

    def update_capacity(self, capacity: Capacity) -> None:
        """The replica turned out to be different: another step cost or cache size. What is in flight stays."""
        self.capacity = capacity
        self.step_cost: StepCost = capacity.step_cost
        if self.index is not None:
            tokens = capacity.kv_tokens
            self.index.add_replica(self.name, None if tokens is None else tokens // capacity.block_size)

    # -- what is asked before a choice -----------------------------------------------------------------

    def fits(self, arrival: Arrival) -> bool:
        """Whether the replica could ever run it: context window and KV pool."""
        total = arrival.weight.prompt_tokens + arrival.weight.max_tokens
        limit, pool = self.capacity.max_model_len, self.capacity.kv_tokens
        return (limit is None or total <= limit) and (pool is None or total <= pool)

    def accepts(self, arrival: Arrival, now: float) -> bool:
        """Whether it may be sent there now: up, not draining, a seat and memory free, no line beyond `max_line`.

        Who finds most of its prompt cached here may line up regardless: waiting costs less than computing it
        elsewhere.
        """
        if not self.healthy or self.draining or self.tells_draining or not self.fits(arrival):
            return False
        others = self.others.queued_requests and self.others.queued_requests * self._freshness(now)
        if not self._in_flight and not others:
            return True
        if self.sequences + others + arrival.weight.choices > self.capacity.max_sequences * self.warmth(now):
            return False
        pool = self.capacity.kv_tokens
        if pool is not None and self.kv_tokens + self._others_kv(now) + arrival.weight.prompt_tokens > pool:
            return False
        if self.max_line is None:
            return True
        self.advance(now)
        if self.total_uncomputed(now) < self.max_line:
            return True
        return 2 * self.cached_tokens(arrival) > arrival.weight.prompt_tokens

    def warmth(self, now: float) -> float:
        """Share of its usual work that a replica takes while it warms up; 1 once `slow_start` has passed."""
        if not self.slow_start:
            return 1.0
        return min(max((now - self.started_at) / self.slow_start, COLDEST), 1.0)

    def cached_tokens(self, arrival: Arrival) -> int:
        """Prompt tokens the replica is believed to hold; at least one token is left to compute."""
        if self.index is None or not arrival.chain:
            return 0
        blocks = self.index.matched(arrival.chain).get(self.name, 0)
        return min(blocks * self.capacity.block_size, arrival.weight.prompt_tokens - 1)

    @property
    def requests(self) -> int:
        """Requests of this gateway in flight."""
        return len(self._in_flight)

    @property
    def outstanding_tokens(self) -> float:
        """Tokens of work in flight: prompts not computed, output not produced."""
        return self.uncomputed_tokens + self.remaining_output

    def total_requests(self, now: float) -> float:
        """Requests there, ours and, as far as the last report still counts, others'."""
        if not self.others.queued_requests:
            return len(self._in_flight)
        return len(self._in_flight) + self.others.queued_requests * self._freshness(now)

    def total_uncomputed(self, now: float) -> float:
        """Prompt tokens still to be computed there, ours and others'."""
        if not self.others.prompt_tokens:
            return self.uncomputed_tokens
        return self.uncomputed_tokens + self.others.prompt_tokens * self._freshness(now)

    def total_tokens(self, now: float) -> float:
        """Tokens of work there, ours and others'."""
        if not self.others.queued_requests:
            return self.outstanding_tokens
        others = self.others.prompt_tokens + self.others.output_tokens
        return self.outstanding_tokens + others * self._freshness(now)

    def streams(self, now: float) -> float:
        """Sequences there, ours and others'."""
        if not self.others.queued_requests:
            return self.sequences
        return self.sequences + self.others.queued_requests * self._freshness(now)

    def others_share(self, now: float) -> float:
        """Share of the sequences there that are not ours: how much may have changed without our knowing."""
        if not self.others.queued_requests:
            return 0.0
        others = self.others.queued_requests * self._freshness(now)
        return others / (others + self.sequences)

    def _others_kv(self, now: float) -> float:
        return self.others.kv_tokens and self.others.kv_tokens * self._freshness(now)

    def _freshness(self, now: float) -> float:
        """What the last report counts: all of it for two periods, then half as much with each more."""
        late = (now - self.others.at) / self.report_period - 2.0
        return 1.0 if late <= 0.0 else 0.5**late

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._in_flight

    # -- the life of a request -------------------------------------------------------------------------

    def credit(self, arrival: Arrival, cached_tokens: int, now: float, *, streamed: bool = True) -> None:
        """Count `arrival` as sent, BEFORE it is. Raises ValueError when it is in flight here already.

        With `streamed` False no token will tell how far it has come: that is estimated until `release`.
        """
        if arrival.id in self._in_flight:
            raise ValueError(f"request {arrival.id!r} is in flight on {self.name!r} already")
        self.advance(now)
        weight = arrival.weight
        fresh = weight.prompt_tokens - cached_tokens
        request = InFlight(
            arrival=arrival,
            sent=now,
            streamed=streamed,
            cached_tokens=cached_tokens,
            uncomputed=float(fresh),
            work=self.prefill_work(fresh, cached_tokens),
            remaining=weight.choices * weight.output.mean,
        )
        self._in_flight[arrival.id] = self._prefilling[arrival.id] = request
        self.sequences += weight.choices
        self.uncomputed_tokens += request.uncomputed
        self.prefill_seconds += request.work
        self.remaining_output += request.remaining
        self.kv_tokens += weight.prompt_tokens
        if not self._typical_prompt:
            self._typical_prompt = float(fresh)
        self._typical_prompt += 0.05 * (fresh - self._typical_prompt)
        if self.index is not None and arrival.chain:
            self.index.enter(self.name, arrival.chain)

    def first_token(self, request_id: str, now: float) -> None:
        """The first token came: its prompt is computed, and the request decodes from now on."""
        request = self._in_flight.get(request_id)
        if request is not None and not request.started:
            self.advance(now)
            self._begin(request)

    def _begin(self, request: InFlight) -> None:
        if request.started:
            return  # not streamed, and taken to have begun already
        self._prefilled(request)
        request.started = True
        choices = request.arrival.weight.choices
        self.decoding += choices
        self.context_tokens += choices * request.arrival.weight.prompt_tokens

    def tokens(self, request_id: str, n: int, now: float) -> None:
        """`n` more output tokens came, of all choices together."""
        request = self._in_flight.get(request_id)
        if request is None or n <= 0:
            return
        if not request.started:
            self.first_token(request_id, now)
        request.produced += n
        self.context_tokens += n
        self.kv_tokens += n
        left = max(request.remaining - n, 0.0)
        if request.produced >= request.revise_at:
            left = self._expected_rest(request)
        self.remaining_output += left - request.remaining
        request.remaining = left

    def release(self, request_id: str, now: float) -> bool:
        """The request is over, however it ended; False when it was not in flight here (any more)."""
        request = self._in_flight.pop(request_id, None)
        if request is None:
            return False
        self.advance(now)
        self._prefilled(request)
        self._silent.pop(request_id, None)
        weight = request.arrival.weight
        self.sequences -= weight.choices
        self.remaining_output -= request.remaining
        self.kv_tokens -= weight.prompt_tokens + request.produced
        if request.started:
            self.decoding -= weight.choices
            self.context_tokens -= weight.choices * weight.prompt_tokens + request.produced
        self._settle()
        if self.index is not None and request.arrival.chain:
            self._leave_in_cache(request)
        return True

    # -- what a replica says ---------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """Take in what the replica says of itself; what is beyond our own in flight is somebody else's."""
        self.advance(report.at)
        if self._reported_at is not None and report.at > self._reported_at:
            self.report_period += 0.2 * (report.at - self._reported_at - self.report_period)
        self._reported_at = report.at
        self.tells_draining = report.draining
        self._learn(report)
        queued = max(report.queued_requests - len(self._prefilling), 0)
        there = max(report.queued_requests + report.running_requests - len(self._in_flight), 0)
        prompts = max(report.queued_tokens - self.uncomputed_tokens, 0.0)
        if not report.queued_tokens:  # not told, or none
            prompts = queued * self._typical_prompt
        work = max(report.queued_tokens + report.running_tokens - self.outstanding_tokens, 0.0)
        used = report.kv_tokens_used
        self.others = Others(
            report.at,
            queued_requests=there,
            prompt_tokens=prompts if there else 0.0,
            output_tokens=max(work - prompts, 0.0) if there else 0.0,
            kv_tokens=max(used - self.kv_tokens, 0) if used is not None and there else 0,
        )

    def _learn(self, report: Report) -> None:
        """Take over the step cost and cache size that it tells, where they differ from what is known."""
        known = self.capacity
        cost = report.step_cost or known.step_cost
        pool = report.kv_tokens_total or known.kv_tokens
        if cost != known.step_cost or pool != known.kv_tokens:
            self.update_capacity(replace(known, step_cost=cost, kv_tokens=pool))

    # -- inside ----------------------------------------------------------------------------------------

    def prefill_work(self, tokens: float, cached: float) -> float:
        """Seconds that `tokens` prompt tokens behind `cached` ones add to the iterations they run in."""
        cost = self.step_cost
        pairs = tokens * cached + 0.5 * tokens * (tokens + 1)
        return cost.per_token * tokens + cost.per_context_token * pairs

    def first_token_seconds(self, fresh: int, cached: int, now: float) -> float:
        """Predicted seconds to the first token of a prompt of `cached` tokens in its cache and `fresh` ones.

        The prompts in line and its own are computed in iterations filled up to `max_batch_tokens`, each of
        which also advances all streams; before them comes half of the iteration that runs now. Where the KV
        pool is short, the missing share has to be given back by those that run; what they will grow beyond
        the pool is computed twice.
        """
        if self._advanced_at < now:
            self.advance(now)
        cost, capacity = self.step_cost, self.capacity
        streams: float = self.decoding
        work = self.prefill_seconds
        work += fresh * (cost.per_token + cost.per_context_token * (cached + 0.5 * fresh))
        if self.others.queued_requests:
            fresher = self._freshness(now)
            streams += self.others.queued_requests * fresher
            work += self.others.prompt_tokens * fresher * cost.per_token
        beside = (
            cost.overhead
            + cost.per_token * streams
            + cost.per_context_token * self.context_tokens
            + cost.per_sequence * (streams + 1)
        )
        free = capacity.max_batch_tokens - streams
        room = cost.per_token * (free if free > capacity.block_size else capacity.block_size)
        idle = cost.memory - cost.per_token * streams  # weights streamed beyond what streams compute
        if idle < 0.0:
            idle = 0.0
        seconds = (work if work > idle else idle) + beside * (1 + int(work / room) if room else 1)
        if streams:
            seconds += 0.5 * (beside + idle)
        pool = capacity.kv_tokens
        if pool is not None and self.sequences:
            seconds += self._short_of_memory(fresh + cached, pool, beside + idle, now)
        return seconds / self.warmth(now) if self.slow_start else seconds

    def _short_of_memory(self, prompt: int, pool: int, step: float, now: float) -> float:
        """Seconds that `prompt` tokens wait for blocks, and that are lost on preempted work.

        Until a sequence ends it takes about its remaining output in steps; as sequences end at different times,
        about half of what all are to grow has to fit at once.
        """
        used = self.kv_tokens + self._others_kv(now)
        short = used + prompt + self.sequences * self.capacity.block_size - pool
        wait = 0.0
        if short > 0.0:
            wait = min(short / used, 1.0) * self.remaining_output / self.sequences * step if used else 0.0
        over = used + prompt + 0.5 * self.remaining_output - pool
        return wait + (over * self.step_cost.per_token if over > 0.0 else 0.0)

    @property
    def decode_seconds(self) -> float:
        """Seconds of one iteration of what decodes now, without prompts."""
        cost = self.step_cost
        compute = cost.per_token * self.decoding
        return (
            cost.overhead
            + (compute if compute > cost.memory else cost.memory)
            + cost.per_context_token * self.context_tokens
            + cost.per_sequence * self.decoding
        )

    def advance(self, now: float) -> None:
        """Prefill went on since the last call, in the order sent; never past what a first token would prove."""
        elapsed = now - self._advanced_at
        if elapsed <= 0.0:
            return
        self._advanced_at = now
        if self._silent:
            self._assume_tokens(elapsed)
        if self.prefill_seconds:
            self._assume_prefill(elapsed)

    def _assume_prefill(self, elapsed: float) -> None:
        """Of each full iteration, the part that is not streams' goes to prompts, the earliest first."""
        cost, streams = self.step_cost, self.decoding
        room = cost.per_token * max(self.capacity.max_batch_tokens - streams, 1)
        beside = (
            cost.overhead
            + cost.per_token * streams
            + cost.per_context_token * self.context_tokens
            + cost.per_sequence * streams
        )
        left = elapsed * (room / (room + beside)) if room else elapsed
        for request in list(self._prefilling.values()):
            done = min(left, request.work)
            share = done / request.work if request.work > 0.0 else 1.0
            tokens = request.uncomputed * share
            request.work -= done
            request.uncomputed -= tokens
            self.prefill_seconds -= done
            self.uncomputed_tokens -= tokens
            left -= done
            if not request.streamed and request.work <= 0.0:
                self._begin(request)
                self._silent[request.arrival.id] = request
            if left <= 0.0:
                return

    def _assume_tokens(self, elapsed: float) -> None:
        """Streams that nobody sees advance by a token per iteration, as long as more are expected."""
        steps = elapsed / self.decode_seconds
        for request in self._silent.values():
            done = min(steps * request.arrival.weight.choices, max(request.remaining - 1.0, 0.0))
            request.remaining -= done
            self.remaining_output -= done

    def _prefilled(self, request: InFlight) -> None:
        if self._prefilling.pop(request.arrival.id, None) is None:
            return
        self.uncomputed_tokens -= request.uncomputed
        self.prefill_seconds -= request.work
        request.uncomputed = request.work = 0.0
        self._settle()

    def _expected_rest(self, request: InFlight) -> float:
        """What is expected still, given what is out; asked again when an eighth more is."""
        weight = request.arrival.weight
        each = request.produced // weight.choices
        request.revise_at = request.produced + max(request.produced // 8, weight.choices)
        return weight.choices * weight.output.remaining(each, weight.max_tokens)

    def _leave_in_cache(self, request: InFlight) -> None:
        assert self.index is not None
        size = self.capacity.block_size
        if request.started:
            self.index.occupy(self.name, request.produced // size)
        else:  # it may never have been computed
            self.index.forget(self.name, request.arrival.chain, request.cached_tokens // size)

    def _settle(self) -> None:
        """Sums of floats are exact again whenever nothing is left to sum."""
        if not self._prefilling:
            self.uncomputed_tokens = self.prefill_seconds = 0.0
        if not self._in_flight:
            self.remaining_output = 0.0

    def check_integrity(self) -> None:
        """Raise AssertionError unless every aggregate is the sum over what is in flight; zero for nothing."""
        exact, close = sums(list(self._in_flight.values()))
        wrong = [name for name, value in exact.items() if getattr(self, name) != value]
        wrong += [n for n, value in close.items() if abs(getattr(self, n) - value) > 1e-6 * max(value, 1.0)]
        if wrong:
            raise AssertionError(f"{self.name}: {', '.join(wrong)} do not match what is in flight")
