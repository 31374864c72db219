"""Continuous batching: what each iteration computes, chosen anew every time.

A request is its tokens: `#` computed, `.` not yet. Whatever is not computed is work, be it a prompt, a token
just sampled, or what a preemption lost. One iteration, by rank (class, then arrival):

    running   a  ####################.     one left: a decode        -+
              b  ###########.              one left: a decode         |  schedule()
              c  ######..............      a prompt, half way         |  -> Batch
    waiting   d  ....................      its blocks are there       |
              e  ......................    no room yet: it waits     -+
                                                                      |
    batch    | a | b |  c: its next chunk  |  d: its first chunk  |   |  <= max_batch_tokens, and
             |streams|  prompts fill up to the ITL target         |   |  <= itl_target seconds
                                                                      |
    Runner.execute(batch) computes it, and samples wherever a slice  -+  update()
    reaches the end of its request's tokens                              -> Progress of each request

When blocks run out, the request of lowest rank gives way: its blocks return (the full ones stay in the prefix
cache), it goes back to the front of its line and is computed again later. The request of highest rank always
gets its blocks and its tokens, so something always advances: no deadlock, no livelock, nothing lost.

Plain Python: time is passed in, and the simulator runs this very class.
"""

from __future__ import annotations

from weighbridge.engine.batch import Batch
from weighbridge.engine.memory.block_tables import Opening
from weighbridge.engine.request import Request, RequestState
from weighbridge.engine.schedule.admission import least_seconds
from weighbridge.engine.schedule.lifecycle import Lifecycle
from weighbridge.engine.schedule.plan import Plan
from weighbridge.engine.schedule.scheduler_api import CostSource, Progress, SchedulerLike, SchedulerSettings

__all__ = ["CostSource", "Progress", "Scheduler", "SchedulerLike", "SchedulerSettings"]


#: Prompt tokens that an iteration takes even when its decodes alone miss the target.
SMALLEST_CHUNK = 8


class Scheduler(Lifecycle):
    """Decides what runs, one iteration at a time. `SchedulerLike` is the contract of its methods."""

    def schedule(self, now: float) -> Batch:
        self._begin(now)
        for request in self._deadlines.passed(now):
            self._expire(request)
        plan = Plan(self.settings.max_batch_tokens)
        self._plan_decodes(plan)
        self._plan_chunks(plan)
        self._plan_drafts(plan)
        self._in_flight.update(plan.decodes, plan.chunks)
        return plan.batch()

    def _plan_decodes(self, plan: Plan) -> None:
        """Streams first: every running request with one token left to compute."""
        for request in self._running:
            position = request.num_computed_tokens
            if position + 1 != len(request.tokens) or request.state is not RequestState.RUNNING:
                continue  # a prompt under way, or preempted for one of higher rank
            if self._tables.writable(request, position) or self._make_room(request, position + 1, plan):
                plan.add_decode(request, position)

    def _plan_chunks(self, plan: Plan) -> None:
        """Prompts: of each class those under way, then those that wait, before any of a less urgent class."""
        if self.settings.ageing_seconds is not None:
            self._running.lift_unserved(self._now - self.settings.ageing_seconds)
        reached: int | None = None
        for request in self._running:
            if request in plan or request.state is not RequestState.RUNNING:
                continue
            priority = self._running.priority(request)
            if priority != reached:
                self._admit(plan, above=priority)
                reached = priority
            if request.state is RequestState.RUNNING:  # not displaced by one that was admitted
                self._take_over(request)
                if not self._plan_chunk(request, plan):
                    return
        self._admit(plan)

    def _take_over(self, request: Request) -> None:
        """Adopt what others computed of the same prompt since; it counts as cached and is not charged."""
        won = self._tables.take_over(request)
        if won and not request.num_preemptions:
            request.num_cached_tokens += won
            self._queue.charge(request, input_tokens=-won)

    def _plan_chunk(self, request: Request, plan: Plan) -> bool:
        """The next chunk of a running request; False when this iteration takes no more prompt tokens.

        A request whose next block is computed by another chunk of this very iteration sits it out and takes
        the block over in the next: a burst of requests with one system prompt computes it once.
        """
        start = request.num_computed_tokens
        if plan.computes(self._tables.digests(request, start, start + self.pool.block_size)):
            return True
        count = self._chunk_size(start, request.num_tokens, plan)
        if count and self._make_room(request, start + count, plan):
            plan.add_chunk(request, start, count, self._tables.touched(request, start, start + count))
            self._running.served(request, self._now, done=start + count == request.num_tokens)
        return count > 0

    def _chunk_size(self, start: int, end: int, plan: Plan) -> int:
        """How many of the tokens [start, end) run: what the budget and, beside decodes, the ITL target allow.

        The first chunk gets a few tokens however long the decodes take by themselves: prompts never starve.
        """
        limit = min(end - start, plan.budget)
        if limit and plan.decodes:
            least = 0 if plan.chunks else min(limit, SMALLEST_CHUNK)
            target, cost = self._itl_target(plan), self._cost
            fitting = cost.largest_chunk(target, start, limit, *plan.work)
            limit = max(fitting, least)
        return limit

    def _itl_target(self, plan: Plan) -> float:
        """Seconds that the streams of this iteration may wait for it."""
        if self.settings.itl_target is not None:
            return self.settings.itl_target
        pairs = sum(piece.start + 1 for piece in plan.decodes.values())
        alone = self._cost.seconds(len(plan.decodes), len(plan.decodes), pairs)
        without_token = len(self._queue) + len(self._running) - len(plan.decodes)
        pressed = without_token >= self.settings.backlog
        floor = self.settings.itl_backlog if pressed else self.settings.itl_floor
        return max(self.settings.itl_stretch * alone, floor)

    def _plan_drafts(self, plan: Plan) -> None:
        """Guessed tokens for the decodes, when they pay: never while prompts want the same compute."""
        if plan.chunks or self._queue.has_eligible or not self._speculator.worthwhile(self._cost, plan):
            return
        for request, piece in plan.decodes.items():
            if request.embeds:  # the last token of its prompt
                continue
            room = min(self._tables.room(request), plan.budget, self._output_left(request) - 1)
            drafts = self._speculator.propose(request, room, self._cost, plan)
            if drafts:
                self._tables.prepare_write(request, piece.start + 1 + len(drafts))
                plan.add_drafts(request, drafts)

    def _output_left(self, request: Request) -> int:
        return min(
            request.params.max_tokens - request.num_output_tokens,
            self.settings.max_model_len - request.num_tokens,
        )

    # -- admission -------------------------------------------------------------------------------------

    def _admit(self, plan: Plan, above: int | None = None) -> None:
        """From the queue, in its order, while seats, blocks and budget last; only classes before `above`.

        Not in an iteration in which memory ran short.
        """
        while plan.budget and not plan.preempted:
            turn = self._queue.peek(self._now)
            if turn is None:
                return
            request, priority = turn
            if above is not None and priority >= above:
                return
            opening = self._opening(request)
            if self._too_late(request, opening):
                self._expire(request)
                continue
            if not self._chunk_size(opening.computed, request.num_tokens, plan):
                return
            if self._fits(opening):
                self._start(request, priority, opening)
                self._plan_chunk(request, plan)
            elif not self._displace(priority, opening, plan):
                return

    def _too_late(self, request: Request, opening: Opening) -> bool:
        """Whether a request that would start now cannot meet its deadline any more."""
        if request.deadline is None:
            return False
        least = least_seconds(request, opening.computed, self.settings, self._cost)
        return self._now + least > request.deadline

    def _fits(self, opening: Opening) -> bool:
        """Whether there is a seat, and memory for all present tokens with a reserve for those that run."""
        if len(self._running) >= self.settings.seats:
            return False
        return opening.needed + self._reserve(len(self._running)) <= self.pool.num_available

    def _reserve(self, running: int) -> int:
        """Blocks kept for growth: one for each request that runs, or 1 % of the pool. None when none runs."""
        return max(running, self.pool.num_blocks // 100) if running else 0

    def _displace(self, priority: int, opening: Opening, plan: Plan) -> bool:
        """Preempt as few requests of lower classes as make `opening` fit; none, and False, if none do."""
        victims: list[Request] = []
        lower = self._running.below(priority)
        for victim, freed in self._tables.freed_by(lower, keep=opening.shared):
            victims.append(victim)
            left = len(self._running) - len(victims)
            available = self.pool.num_available + freed
            if left < self.settings.seats and opening.needed + self._reserve(left) <= available:
                for request in victims:
                    self._preempt(request, plan)
                return True
        return False

    def _start(self, request: Request, priority: int, opening: Opening) -> None:
        self._queue.take(request, self._now)
        self._tables.open(request, opening)
        request.state = RequestState.RUNNING
        self._running.add(request, priority, self._now)
        if not request.num_preemptions:
            request.num_cached_tokens = opening.computed
            self._queue.charge(request, input_tokens=request.num_prompt_tokens - opening.computed)

    # -- giving way ------------------------------------------------------------------------------------

    def _make_room(self, request: Request, end: int, plan: Plan) -> bool:
        """Make tokens up to `end` writable, preempting by rank; False when that took `request` itself."""
        while self._tables.blocks_to_write(request, end) > self.pool.num_available:
            plan.preempted = True
            victim = self._running.lowest
            self._preempt(victim, plan)
            if victim is request:
                return False
        plan.copies += self._tables.prepare_write(request, end)
        return True

    def _preempt(self, request: Request, plan: Plan) -> None:
        """Back to the front of its line; what it has computed counts for nothing but prefix hits."""
        plan.drop(request)
        self._running.remove(request)
        self._tables.close(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.state = RequestState.WAITING
        self._queue.push(request, self._now, self._output_length.work(request), front=True)
        self._release_forks(request)
