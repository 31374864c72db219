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

from weighbridge.cost import StepCost
from weighbridge.engine.admission import check_deadline, check_queue, check_request, least_seconds
from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.block_tables import BlockTables, Opening
from weighbridge.engine.blocks import BlockPool
from weighbridge.engine.completion import OutputLength, append_tokens
from weighbridge.engine.forks import Forks, prompt_computed
from weighbridge.engine.plan import Plan
from weighbridge.engine.prefix import PrefixCache
from weighbridge.engine.queue import Deadlines, FairQueue
from weighbridge.engine.request import FinishReason, Request, RequestState, TokenLogprob
from weighbridge.engine.running import RunningSet
from weighbridge.engine.scheduler_api import CostSource, Progress, SchedulerLike, SchedulerSettings
from weighbridge.engine.speculation import Speculator
from weighbridge.errors import BadInput

__all__ = ["CostSource", "Progress", "Scheduler", "SchedulerLike", "SchedulerSettings"]


class Scheduler:
    """Decides what runs. `SchedulerLike` is the contract of its methods."""

    def __init__(self, settings: SchedulerSettings, cost: CostSource) -> None:
        self.settings = settings
        self.pool = BlockPool(settings.num_blocks, settings.block_size)
        prefix = (
            PrefixCache(settings.block_size, settings.prefix_salt) if settings.enable_prefix_cache else None
        )
        self._tables = BlockTables(self.pool, prefix)
        self._queue = FairQueue(settings.input_weight, settings.output_weight, settings.ageing_seconds)
        self._running = RunningSet()
        self._forks = Forks()
        self._speculator = Speculator(settings.max_draft_tokens if settings.speculate else 0)
        self._deadlines = Deadlines()
        self._output_length = OutputLength()
        self._cost_source = cost
        self._requests: dict[str, Request] = {}  # all that wait or run
        self._in_flight: set[Request] = set()  # in the batch that is being computed
        self._ended_in_flight: list[Request] = []  # their blocks return when that batch is done
        self._finished: list[Request] = []  # ended by the scheduler itself, not yet reported
        self._now = 0.0

    @property
    def _cost(self) -> StepCost:
        return self._cost_source.cost

    # -- requests come and go --------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> None:
        check_request(request, self.settings)
        if request.id in self._requests:
            raise BadInput(f"a request with id {request.id!r} is here already; ids must differ", param="id")
        waiting, work, mean = self._queue, self._output_length.work(request), self._output_length.mean
        check_queue(self.settings, len(waiting), waiting.num_tokens, work, mean, self._cost)
        if request.deadline is not None:
            check_deadline(request, now, self._opening(request).computed, self.settings, self._cost)
        self._now = now
        self._requests[request.id] = request
        self._deadlines.add(request)
        self._queue.push(request, now, work, held=self._forks.hold(request))

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request, reason)
        return request

    def finish(self, request_id: str, reason: FinishReason) -> Request | None:
        return self.abort(request_id, reason)

    def take_finished(self) -> list[Request]:
        finished, self._finished = self._finished, []
        return finished

    def _end(self, request: Request, reason: FinishReason) -> None:
        """The one way out, from wherever the request is."""
        del self._requests[request.id]
        if request.state is RequestState.RUNNING:
            self._running.remove(request)
            if request in self._in_flight:
                self._ended_in_flight.append(request)  # the runner is still reading its block table
            else:
                self._tables.close(request)
            self._output_length.observe(request.num_output_tokens)
        else:
            self._queue.remove(request.id)
            self._forks.discard(request)
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        self._release_forks(request)
        self._tables.forget(request)
        self._speculator.forget(request)

    def _release_forks(self, parent: Request) -> None:
        """Whoever waits for `parent`'s prompt waits no longer; siblings keep their order."""
        for request in reversed(self._forks.release(parent)):
            self._queue.unhold(request.id, self._now)

    # -- schedule --------------------------------------------------------------------------------------

    def schedule(self, now: float) -> Batch:
        self._begin(now)
        for request in self._deadlines.passed(now):
            self._expire(request)
        plan = Plan(self.settings.max_batch_tokens)
        self._plan_decodes(plan)
        self._plan_chunks(plan)
        self._admit(plan)
        self._plan_drafts(plan)
        self._in_flight.update(plan.decodes, plan.chunks)
        return plan.batch()

    def _plan_decodes(self, plan: Plan) -> None:
        """Streams first: every running request with one token left to compute."""
        for request in self._running:
            position = request.num_computed_tokens
            if position + 1 == len(request.tokens) and request.state is RequestState.RUNNING:
                if self._tables.writable(request, position) or self._make_room(request, position + 1, plan):
                    plan.add_decode(request, position)

    def _plan_chunks(self, plan: Plan) -> None:
        """Prompts that are under way."""
        for request in self._running:
            if request not in plan.decodes and request.state is RequestState.RUNNING:
                self._take_over(request)
                if not self._plan_chunk(request, plan):
                    return

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
            plan.add_chunk(request, start, count, self._tables.digests(request, start, start + count))
        return count > 0

    def _chunk_size(self, start: int, end: int, plan: Plan) -> int:
        """How many of the tokens [start, end): what the budget holds, and beside decodes what the ITL target allows.

        The first chunk gets a block at least, however long the decodes alone take: prompts never starve. Chunks
        stop at block boundaries where they can, so that what they computed can be shared.
        """
        limit = min(end - start, plan.budget)
        if limit and plan.decodes:
            least = 0 if plan.chunks else min(limit, self.pool.block_size)
            target, cost = self.settings.itl_target, self._cost
            fitting = cost.largest_chunk(target, start, limit, plan.tokens, plan.sequences, plan.pairs)
            limit = max(fitting, least)
        beyond = (start + limit) % self.pool.block_size
        return limit - beyond if start + limit < end and beyond < limit else limit

    def _plan_drafts(self, plan: Plan) -> None:
        """Guessed tokens for the decodes, when they pay: never while prompts want the same compute."""
        if plan.chunks or self._queue.has_eligible or not self._speculator.worthwhile(self._cost, plan):
            return
        for request, piece in plan.decodes.items():
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

    def _admit(self, plan: Plan) -> None:
        """From the queue, in its order, while seats, blocks and budget last. Not right after a preemption."""
        while plan.budget and not plan.preempted:
            turn = self._queue.peek(self._now)
            if turn is None:
                return
            request, priority = turn
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

    def _opening(self, request: Request) -> Opening:
        parent = request.fork_of
        if parent is not None and prompt_computed(parent) and request.num_output_tokens == 0:
            return self._tables.opening_of_fork(request, parent)
        return self._tables.opening(request)

    def _fits(self, opening: Opening) -> bool:
        """Whether there is a seat, and memory for all present tokens with a reserve for those that run."""
        if len(self._running) >= self.settings.seats:
            return False
        return opening.needed + self._reserve(len(self._running)) <= self.pool.num_available

    def _reserve(self, running: int) -> int:
        """Blocks kept for growth: one for each request that runs, or 1 % of the pool. None when none runs."""
        return max(running, self.pool.num_blocks // 100) if running else 0

    def _displace(self, priority: int, opening: Opening, plan: Plan) -> bool:
        """Preempt requests of lower classes, as few as make `opening` fit; False, and none, if no number does."""
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
        self._running.add(request, priority)
        if not request.num_preemptions:
            request.num_cached_tokens = opening.computed
            self._queue.charge(request, input_tokens=request.num_prompt_tokens - opening.computed)

    # -- giving way ------------------------------------------------------------------------------------

    def _make_room(self, request: Request, end: int, plan: Plan) -> bool:
        """Make tokens up to `end` writable, preempting from the lowest rank; False when it hit `request` itself."""
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

    def _expire(self, request: Request) -> None:
        self._end(request, FinishReason.DEADLINE)
        self._finished.append(request)

    def _too_late(self, request: Request, opening: Opening) -> bool:
        """Whether a request that would start now cannot meet its deadline any more."""
        if request.deadline is None:
            return False
        least = least_seconds(request, opening.computed, self.settings, self._cost)
        return self._now + least > request.deadline

    # -- update ----------------------------------------------------------------------------------------

    def update(self, batch: Batch, sampled: Sampled, now: float) -> list[Progress]:
        self._begin(now)
        progress: list[Progress] = []
        for index, piece in enumerate(batch.slices):
            request = piece.request
            if request.state is not RequestState.RUNNING:
                continue  # it ended while it was computed
            error = sampled.errors.get(index)
            if error is None and piece.samples and not sampled.tokens[index]:
                error = "the model returned no token for this request"
            if error is not None:
                self._end(request, FinishReason.ERROR)
                progress.append(Progress(request, [], None, FinishReason.ERROR, error))
            elif piece.samples:
                progress.append(self._advance(piece, sampled.tokens[index], sampled.logprobs[index]))
            else:
                request.num_computed_tokens = piece.start + piece.count
                self._tables.commit(request)
        return progress

    def _advance(self, piece: Slice, sampled: list[int], logprobs: list[TokenLogprob] | None) -> Progress:
        """Append what a slice sampled: the accepted drafts, whose keys and values are there, and one new token."""
        request, accepted = piece.request, len(sampled) - 1
        before = len(request.tokens)
        count, reason = append_tokens(request, sampled, self.settings.max_model_len)
        request.num_computed_tokens = before + min(count, accepted)
        self._tables.commit(request)
        self._queue.charge(request, output_tokens=count)
        self._speculator.observe(request, sampled)
        if piece.drafts:
            request.num_drafted_tokens += len(piece.drafts)
            request.num_accepted_tokens += accepted
            self._tables.trim(request)
        if reason is not None:
            self._end(request, reason)
        elif self._forks:
            self._release_forks(request)
        return Progress(request, sampled[:count], logprobs[:count] if logprobs else None, reason)

    def _begin(self, now: float) -> None:
        """No iteration is being computed now: return the blocks of requests that ended during the last one."""
        self._now = now
        self._in_flight.clear()
        for request in self._ended_in_flight:
            self._tables.close(request)
        self._ended_in_flight.clear()

    # -- figures ---------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return bool(self._requests)

    def wake_at(self) -> float | None:
        return None

    def load(self) -> Load:
        return Load(
            queued_requests=len(self._queue),
            running_requests=len(self._running),
            queued_tokens=self._queue.num_tokens,
            running_tokens=sum(self._output_length.work(request) for request in self._running),
            kv_blocks_total=self.pool.num_blocks,
            kv_blocks_used=self.pool.num_referenced,
            kv_blocks_cached=self.pool.num_cached,
            kv_blocks_free=self.pool.num_free,
            block_size=self.pool.block_size,
            max_model_len=self.settings.max_model_len,
            draining=False,
            step_cost=self._cost.as_dict(),
        )

    def check_integrity(self) -> None:
        self._queue.check_integrity()
        self._tables.check_integrity([*self._running, *self._ended_in_flight])
        waiting = {request.id for request in self._queue}
        running = {request.id for request in self._running}
        if waiting & running or waiting | running != self._requests.keys():
            raise AssertionError("a request is lost, or in two places")
        if len(self._forks) != sum(self._queue.holds(request_id) for request_id in waiting):
            raise AssertionError("a request waits for a fork that will not come")
