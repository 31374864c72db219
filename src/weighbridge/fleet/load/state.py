"""What the gateway knows of one replica: what it sent there, what others put there, whether it may be sent more.

What was sent is exact (`own_load.py`). What a replica reports of itself corrects the part the gateway cannot see:
report minus own in flight at the time of the report is others', fading when reports stop coming.
"""

from __future__ import annotations

from dataclasses import replace

from weighbridge.cost.mean import Mean
from weighbridge.cost.step import StepCost
from weighbridge.fleet.api import Arrival, Capacity, ExpectedFirst, Report
from weighbridge.fleet.load.experience import LATE
from weighbridge.fleet.load.in_flight import Others
from weighbridge.fleet.load.own_load import OwnLoad
from weighbridge.fleet.load.prefix_index import PrefixIndex

#: What a replica that has just come takes, as a share of its usual work.
COLDEST = 0.1
#: Seconds between reports until two have come; after two such periods without one, a report fades.
DEFAULT_REPORT_PERIOD = 1.0


class ReplicaState(OwnLoad):
    """Load and standing of one replica, as policies see it."""

    __slots__ = (
        "_report_period",
        "_reported_at",
        "draining",
        "healthy",
        "max_line",
        "others",
        "slow_start",
        "started_at",
        "tells_draining",
    )

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
        super().__init__(name, capacity, index, now)
        self.healthy = True
        self.draining = False  # by our decision
        self.tells_draining = False  # by its own
        self.slow_start = slow_start
        self.max_line = max_line
        self.started_at = now
        self.others = Others(now)
        self._report_period = Mean(0.2, DEFAULT_REPORT_PERIOD)
        self._reported_at: float | None = None

    # -- what is asked before a choice -----------------------------------------------------------------

    def fits(self, arrival: Arrival) -> bool:
        """Whether the replica could ever run it: context window and KV pool."""
        total = arrival.weight.fitting_tokens
        limit, pool = self.capacity.max_model_len, self.capacity.kv_tokens
        return (limit is None or total <= limit) and (pool is None or total <= pool)

    def open_to(self, arrival: Arrival) -> bool:
        """Whether it may be sent there at all, now or when there is room: up, not draining, large enough."""
        return self.healthy and not self.draining and not self.tells_draining and self.fits(arrival)

    def accepts(self, arrival: Arrival, now: float) -> bool:
        """Whether it may be sent there now: up, not draining, a seat and memory free, no line beyond `max_line`.

        Who finds most of its prompt cached here may line up regardless: waiting costs less than computing it
        elsewhere.
        """
        if not self.healthy or self.draining or self.tells_draining:
            return False  # `open_to`, written flat
        capacity = self.capacity
        pool = capacity.kv_tokens
        if (pool is not None or capacity.max_model_len is not None) and not self.fits(arrival):
            return False
        others: float = self.others.queued_requests
        if others:
            others *= self._freshness(now)
        if not self._in_flight and not others:
            return True
        weight = arrival.weight
        seats = capacity.max_sequences * self.warmth(now) if self.slow_start else capacity.max_sequences
        if self.sequences + others + weight.choices > seats:
            return False
        if pool is not None and self.kv_tokens + self._others_kv(now) + weight.prompt_tokens > pool:
            return False
        if self.max_line is None:
            return True
        self.advance(now)
        if self.total_uncomputed(now) < self.max_line:
            return True
        return 2 * self.cached_tokens(arrival) > arrival.weight.prompt_tokens

    @property
    def produced(self) -> int:
        """Output tokens so far of the requests that are there now, as far as their streams tell."""
        return sum([one.produced for one in self._in_flight.values()])

    def warmth(self, now: float) -> float:
        """Share of its usual work that a replica takes while it warms up; 1 once `slow_start` has passed."""
        up, slow_start = now - self.started_at, self.slow_start
        return 1.0 if not slow_start or up >= slow_start else max(up / slow_start, COLDEST)

    # -- with what others put there ---------------------------------------------------------------------

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
        late = (now - self.others.at) / self._report_period.value - 2.0
        return 1.0 if late <= 0.0 else 0.5**late

    # -- what a replica says ----------------------------------------------------------------------------

    def report(self, report: Report) -> None:
        """Take in what the replica says of itself; what is beyond our own in flight is somebody else's."""
        self.advance(report.at)
        if self._reported_at is not None and report.at > self._reported_at:
            self._report_period.add(report.at - self._reported_at)
        self._reported_at = report.at
        self.tells_draining = report.draining
        self._learn(report)
        queued = max(report.queued_requests - len(self._prefilling), 0)
        there = max(report.queued_requests + report.running_requests - len(self._in_flight), 0)
        prompts = max(report.queued_tokens - self.uncomputed_tokens, 0.0)
        if not report.queued_tokens:  # not told, or none
            prompts = queued * self._typical_prompt.value
        work = max(report.queued_tokens + report.running_tokens - self.outstanding_tokens, 0.0)
        used = report.kv_tokens_used
        if there:
            self.pace.disturb()
        self.others = Others(
            report.at,
            queued_requests=there,
            prompt_tokens=prompts if there else 0.0,
            output_tokens=max(work - prompts, 0.0) if there else 0.0,
            kv_tokens=max(used - self.kv_tokens, 0) if used is not None and there else 0,
        )

    def _learn(self, report: Report) -> None:
        """Take over what it tells of its step cost, cache and context, where that differs from what is known."""
        known = self.capacity
        cost = report.step_cost or known.step_cost
        tokens = report.kv_tokens_total or known.kv_tokens
        longest = report.max_model_len or known.max_model_len
        if (cost, tokens, longest) != (known.step_cost, known.kv_tokens, known.max_model_len):
            self.update_capacity(replace(known, step_cost=cost, kv_tokens=tokens, max_model_len=longest))

    # -- what is predicted ------------------------------------------------------------------------------

    @property
    def speed_known(self) -> bool:
        """Whether its speed is told, stated or learned; else nothing in seconds is predicted."""
        return self.step_cost is not None

    def line_seconds(self, now: float) -> float | None:
        """Seconds in which it computes the prompts in line there; None while its speed is not known."""
        return None if self.step_cost is None else self.total_uncomputed(now) * self.step_cost.per_token

    def first_token_seconds(self, fresh: int, cached: int, now: float) -> float | None:
        """Predicted seconds to the first token of a prompt of `cached` tokens in its cache and `fresh` ones.

        None while the replica's speed is not known.
        """
        expected = self.expected_first(fresh, cached, now)
        return None if expected is None else expected.first

    def expected_first(self, fresh: int, cached: int, now: float) -> ExpectedFirst | None:
        """The same, and how much of it would be left if nothing held the replica up."""
        cost = self.step_cost
        if cost is None:
            return None
        clear = self._clear_seconds(cost, fresh, cached, now)
        first = clear + self._held_up_seconds(cost, now, clear)
        if self.slow_start and now - self.started_at < self.slow_start:
            warmth = self.warmth(now)
            return ExpectedFirst(first / warmth, clear / warmth)
        return ExpectedFirst(first, clear)

    def _clear_seconds(self, cost: StepCost, fresh: int, cached: int, now: float) -> float:
        """Predicted seconds to a first token but for what holds all of the replica up.

        The prompts in line and its own are computed in iterations filled up to `max_batch_tokens`, each of
        which also advances all streams; before them comes half of the iteration that runs now. Where the KV
        pool is short, the missing share has to be given back by those that run; what they will grow beyond
        the pool is computed twice.
        """
        capacity = self.capacity
        if self._advanced_at < now:
            self.advance(now)
        streams: float = self.decoding
        tokens = self.uncomputed_tokens + fresh
        pair, width = cost.per_prompt_pair, capacity.max_batch_tokens
        work = self.prefill_seconds + fresh * (cost.per_token + pair * (cached + 0.5 * fresh))
        others = self.others
        if others.queued_requests:
            fresher = self._freshness(now)
            streams += others.queued_requests * fresher
            tokens += others.prompt_tokens * fresher
            work += others.prompt_tokens * fresher * cost.per_token
        if pair and cost is not self._told:
            width = self._room(work, tokens)
        seconds = cost.line_seconds(
            work * self.stretch, tokens, streams, self.context_tokens, width, capacity.block_size
        )
        pool, sequences = capacity.kv_tokens, self.sequences
        if pool is not None and sequences:
            used: float = self.kv_tokens + fresh + cached
            if self.others.kv_tokens:
                used += self.others.kv_tokens * self._freshness(now)
            growth, block = 0.5 * self.remaining_output, sequences * capacity.block_size
            if used + (growth if growth > block else block) > pool:
                step = cost.seconds(streams, streams + 1, self.context_tokens)
                seconds += self._short_of_memory(used, fresh + cached, pool, step, cost.per_token)
        return seconds

    def _held_up_seconds(self, cost: StepCost, now: float, clear: float) -> float:
        """Predicted seconds beyond the `clear` ones: for want of a seat, because it has become slower, or is silent.

        Where it serves fewer at a time than are there, as many have to end before. One of which nothing is told serves
        no more than one more than it was seen to; one that tells its speed, no more than twice as many; one that lets
        somebody wait for longer than explains itself, no more than now. A silence beyond what explains itself is
        expected to last as long again.
        """
        experience = self.experience
        believed = self._told is not None and not experience.trust.doubted  # `believed`, written flat
        seconds = 0.0 if believed else experience.speed.answer
        if not self.sequences:
            return seconds
        learned = experience.seats
        seats = learned.granted if believed else learned.expected
        if now > self._line_due:
            seconds += self._overdue_seconds(seats, cost, now, clear)
        else:
            seconds += self._seat_seconds(seats, cost, now)
        if now - experience.heard > 4.0 * cost.overhead:  # the least that a silence that is noticed comes to
            seconds += self._silence(cost, now)
        return seconds

    def _seat_seconds(self, seats: int, cost: StepCost, now: float) -> float:
        """Seconds until a seat is free for one more; where `seats` is no more than what ours were seen to take, beside
        ours."""
        there = self.sequences if self.experience.seats.count is None else self.streams(now)
        if there < seats:
            return 0.0
        step = cost.decode_seconds(seats, self.context_tokens)
        return self.remaining_output / self.sequences * step * (there - seats + 1.0) / seats

    def _overdue_seconds(self, seats: int, cost: StepCost, now: float, clear: float) -> float:
        """Seconds that another would wait where one waits for longer than explains itself, beyond the `clear` ones: for
        want of a seat, or, where that is not known, because all takes as many times as long as that one has by now."""
        known, streams = self.experience.seats.count, self.decoding
        waits = self._seat_seconds(min(seats, streams or seats), cost, now)
        if known is not None and streams >= known:
            return waits
        times = LATE * (now - self._line_begun) / max(self._line_due - self._line_begun, 1e-9)
        return max(waits, now - self._line_due + clear * (times - 1.0))

    def _silence(self, cost: StepCost, now: float) -> float:
        """Seconds for which nothing has come from it beyond those it may take to the next sign."""
        gap = now - self.experience.heard
        due = 4.0 * cost.decode_seconds(self.sequences, self.context_tokens)
        if gap <= due:
            return 0.0
        if self.decoding <= len(self._silent) and not any(r.streamed for r in self._prefilling.values()):
            return 0.0  # nobody there would say anything
        due += 2.0 * self.stretch * self.line_work
        return gap - due if gap > due else 0.0

    def last_token_seconds(
        self, first: float | None, prompt: int, output: float, choices: int = 1
    ) -> float | None:
        """Predicted seconds to the end of `output` tokens of each choice, the first of them after `first` seconds.

        A token is one iteration with all aboard that are there now, prompts in line included: they will stream too.
        Who comes later is not known. None while the replica's speed is not known.
        """
        cost, streams = self.step_cost, self.sequences + self.others.queued_requests + choices
        if cost is None or first is None:
            return None
        iteration = cost.decode_seconds(streams, self.kv_tokens + choices * (prompt + 0.5 * output))
        return first + max(output - 1.0, 0.0) * iteration

    def _short_of_memory(self, needed: float, prompt: int, pool: int, step: float, per_token: float) -> float:
        """Seconds of waiting for blocks and of work lost to preemption; `prompt` is part of the `needed` tokens.

        Until a sequence ends it takes about its remaining output in steps; as sequences end at different times,
        about half of what all are to grow has to fit at once.
        """
        short = needed + self.sequences * self.capacity.block_size - pool
        wait, held = 0.0, needed - prompt
        if short > 0.0 and held:
            wait = min(short / held, 1.0) * self.remaining_output / self.sequences * step
        over = needed + 0.5 * self.remaining_output - pool
        return wait + (over * per_token if over > 0.0 else 0.0)
