"""The books of the continuous scheduler: where each request is, from the door to the one exit.

Every change of a request's state happens here; which request runs next is decided by `scheduler`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weighbridge.cost import StepCost
from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.memory.block_tables import BlockTables, Opening
from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.memory.prefix import PrefixCache
from weighbridge.engine.request import FinishReason, Places, Request, RequestState, TokenLogprob
from weighbridge.engine.schedule.admission import check_deadline, check_ever, check_request, queue_full
from weighbridge.engine.schedule.output import (
    Forks,
    OutputLength,
    append_tokens,
    prompt_computed,
    prompt_scores,
)
from weighbridge.engine.schedule.places import Backlog
from weighbridge.engine.schedule.queue import Deadlines, FairQueue
from weighbridge.engine.schedule.running import RunningSet
from weighbridge.engine.schedule.scheduler_api import CostSource, Progress, SchedulerSettings
from weighbridge.engine.schedule.speculation import Speculator
from weighbridge.engine.schedule.turns import PromptTurns
from weighbridge.errors import BadInput, DeadlineMissed, QueueFull


class Books:
    """Requests that wait (in the queue), run (with blocks) or are gone, and everything counted about them.

    A request that ends while an iteration computes it is gone at once, but its blocks return only when the
    iteration is over: the runner is still reading its block table, on another thread.
    """

    def __init__(self, settings: SchedulerSettings, cost: CostSource) -> None:
        self.settings = settings
        self.pool = BlockPool(settings.num_blocks, settings.block_size)
        cache = PrefixCache(settings.block_size) if settings.enable_prefix_cache else None
        self.tables = BlockTables(self.pool, cache, settings.seats if settings.keeps_states else 0)
        self.queue = FairQueue[Request](
            settings.input_weight, settings.output_weight, settings.ageing_seconds
        )
        self.running = RunningSet()
        self.turns = PromptTurns()
        self.speculator = Speculator(settings.max_draft_tokens if settings.speculate else 0)
        self.output_length = OutputLength()
        self.now = 0.0
        self._forks = Forks()
        self._deadlines = Deadlines()
        self._cost_source = cost
        self._requests: dict[str, Request] = {}  # all that wait or run
        self._in_flight: set[Request] = set()  # in the batch that is being computed
        self._ended_in_flight: list[Request] = []  # gone, their blocks still to be returned
        self._finished: list[Request] = []  # ended by the scheduler itself, not yet reported

    @property
    def cost(self) -> StepCost:
        """What an iteration costs, as of now."""
        return self._cost_source.cost

    def begin(self, now: float) -> None:
        """Note the time, and return the blocks of what ended while the last iteration was computed."""
        self.now = now
        self._in_flight.clear()
        self.tables.settle()
        for request in self._ended_in_flight:
            self.tables.close(request)
            self.tables.forget(request)
        self._ended_in_flight.clear()

    # -- in --------------------------------------------------------------------------------------------

    def keep_places(self, tenant: str, sizes: Sequence[tuple[int, int]]) -> Places:
        """See `SchedulerLike.keep_places`."""
        check_ever(self.settings, len(sizes))
        queue, limits = self.queue, self.settings
        work = sum([self.output_length.work_of(prompt, most) for prompt, most in sizes])
        count = len(sizes)
        if queue.is_full_for(tenant, work, limits.max_queue_requests, limits.max_queue_tokens, count):
            raise self._full(count, work)
        return queue.kept.keep(tenant, count, work)

    def _full(self, requests: int, work: int) -> QueueFull:
        waiting = Backlog(len(self.queue), self.queue.num_tokens) + self.queue.kept.total
        return queue_full(self.settings, waiting, Backlog(requests, work), self.output_length.mean, self.cost)

    def add(self, request: Request, now: float, places: Places | None = None) -> None:
        """Put a request in the queue, or raise why it is refused and keep nothing."""
        check_request(request, self.settings)
        if request.id in self._requests:
            raise BadInput(f"a request with id {request.id!r} is here already; ids must differ", param="id")
        queue, work, limits = self.queue, self.output_length.work(request), self.settings
        if places is not None and places.requests:
            queue.kept.give_back(places, 1)
        elif queue.is_full_for(request.tenant, work, limits.max_queue_requests, limits.max_queue_tokens):
            raise self._full(1, work)
        self.now = now
        self._check_deadline(request)
        self._requests[request.id] = request
        self._deadlines.add(request)
        held = not self.settings.keeps_states and self._forks.hold(request)
        queue.push(request, now, work, held=held)

    def _check_deadline(self, request: Request) -> None:
        """Raise DeadlineMissed when even an idle machine, with what is cached now, would be too late."""
        if request.deadline is None:
            return
        try:
            check_deadline(request, self.now, self.opening(request).computed, self.settings, self.cost)
        except DeadlineMissed:
            self.tables.forget(request)
            raise

    def opening(self, request: Request) -> Opening:
        """Return the blocks with which the request would start now: its parent's, or those of the prefix cache."""
        parent = None if self.settings.keeps_states else request.fork_of
        if parent is not None and prompt_computed(parent) and not request.num_output_tokens:
            return self.tables.opening_of_fork(request, parent)
        return self.tables.opening(request)

    # -- forward ---------------------------------------------------------------------------------------

    def start(self, request: Request, priority: int, opening: Opening) -> list[tuple[int, int]]:
        """Move a request from the queue to those that run, in class `priority`, with the blocks of `opening`; returns
        the (source, target) copies of blocks to do in this iteration."""
        self.queue.take(request, self.now)
        copies = self.tables.open(request, opening)
        request.state = RequestState.RUNNING
        self.running.add(request, priority, self.now)
        self.turns.begin(request, opening.computed)
        if not request.num_preemptions:
            request.num_cached_tokens = opening.computed
            request.num_written_tokens = self._written(request)
            self.queue.charge(request, input_tokens=request.num_prompt_tokens - opening.computed)
        return copies

    def set_back(self, request: Request) -> None:
        """Move a running request to the front of its line; what it has computed counts for prefix hits alone."""
        self.running.remove(request)
        self.tables.close(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        request.state = RequestState.WAITING
        self.queue.push(request, self.now, self.output_length.work(request), front=True)
        self._release_forks(request)

    def take_over(self, request: Request) -> None:
        """Adopt what others computed of the same prompt since; it counts as cached and is not charged."""
        won = self.tables.take_over(request)
        if won and not request.num_preemptions:
            request.num_cached_tokens += won
            request.num_written_tokens = self._written(request)
            self.queue.charge(request, input_tokens=-won)

    def _written(self, request: Request) -> int:
        """Tokens of a prompt that the prefix cache has from this request: of full blocks that it did not have."""
        if not self.settings.enable_prefix_cache:
            return 0
        size = self.settings.block_size
        return max(request.num_prompt_tokens // size * size - request.num_cached_tokens, 0)

    def put_in_flight(self, batch: Batch) -> None:
        """Note that the runner reads the block tables of `batch` until the next `begin`."""
        self._in_flight.update(piece.request for piece in batch.slices)

    def update(self, batch: Batch, sampled: Sampled) -> list[Progress]:
        """Account for an iteration that ran; returns the requests that got tokens or finished."""
        progress: list[Progress] = []
        for index, piece in enumerate(batch.slices):
            request = piece.request
            if request.state is not RequestState.RUNNING:
                continue  # it ended while it was computed
            error = sampled.problem(index, piece)
            if piece.scored:
                request.note_scores(piece.start, sampled.scores.get(index, []))
            if error is not None:
                self._end(request, sampled.fault(index))
                progress.append(Progress(request, [], None, sampled.fault(index), error))
            elif index in sampled.deferred:
                self._defer(piece)
            elif piece.samples and not request.ends_with_prompt:
                progress.append(self._advance(piece, sampled.tokens[index], sampled.logprobs[index]))
            else:
                request.num_computed_tokens = piece.start + piece.count
                self.tables.commit(request)
                if piece.samples:
                    progress.append(self._computed(request, sampled, index))
        return progress

    def _defer(self, piece: Slice) -> None:
        """Keep what a slice computed but for its last own token, which is to be computed, and sampled from, again.

        States are kept of where the slice began, and from there it is computed again.
        """
        request = piece.request
        request.num_computed_tokens = piece.start if self.settings.keeps_states else request.num_tokens - 1
        self.tables.commit(request)
        if piece.drafts:
            self.tables.trim(request)

    def _computed(self, request: Request, sampled: Sampled, index: int) -> Progress:
        """End a request whose prompt is computed and in the prefix cache, which was all it wanted."""
        reason = FinishReason.STOP if request.is_told else FinishReason.LENGTH
        self._end(request, reason)
        return Progress(
            request,
            [],
            None,
            reason,
            embedding=sampled.embeddings.get(index),
            chances=sampled.chances.get(index),
            prompt_logprobs=prompt_scores(request),
        )

    def _advance(self, piece: Slice, sampled: list[int], logprobs: list[TokenLogprob] | None) -> Progress:
        """Append what a slice sampled: accepted drafts, which are computed already, and one new token."""
        request, accepted = piece.request, len(sampled) - 1
        before = len(request.tokens)
        told = None if request.num_output_tokens else prompt_scores(request)
        count, reason = append_tokens(request, sampled, self.settings.max_model_len)
        request.num_computed_tokens = before + min(count, accepted)
        self.tables.commit(request)
        self.queue.charge(request, output_tokens=count)
        self.speculator.observe(request, sampled)
        if piece.drafts:
            request.num_drafted_tokens += len(piece.drafts)
            request.num_accepted_tokens += accepted
            self.tables.trim(request)
        if reason is not None:
            self._end(request, reason)
        elif self._forks:
            self._release_forks(request)
        shown = logprobs[:count] if logprobs else None
        return Progress(request, sampled[:count], shown, reason, prompt_logprobs=told)

    # -- out -------------------------------------------------------------------------------------------

    def abort(self, request_id: str, reason: FinishReason) -> Request | None:
        """End a request wherever it is; None when it is not here (any more)."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request, reason)
        return request

    def expire_overdue(self) -> None:
        """End every request whose deadline has passed."""
        for request in self._deadlines.passed(self.now):
            self.expire(request)

    def expire(self, request: Request) -> None:
        """End a request that cannot meet its deadline; `take_finished` reports it."""
        self._end(request, FinishReason.DEADLINE)
        self._finished.append(request)

    def take_finished(self) -> list[Request]:
        """Return the requests that `expire` ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _end(self, request: Request, reason: FinishReason) -> None:
        """End a request, wherever it is; there is no other exit."""
        del self._requests[request.id]
        if request.state is RequestState.RUNNING:
            self.running.remove(request)
            if request in self._in_flight:
                self._ended_in_flight.append(request)
            else:
                self.tables.close(request)
                self.tables.forget(request)
            self.output_length.observe(request)
        else:
            self.queue.remove(request.id)
            self._forks.discard(request)
            self.tables.forget(request)
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        self._release_forks(request)
        self.turns.forget(request)
        self.speculator.forget(request)

    def _release_forks(self, parent: Request) -> None:
        """Let those that wait for `parent`'s prompt wait no longer; siblings keep their order."""
        for request in reversed(self._forks.release(parent)):
            self.queue.unhold(request.id, self.now)

    # -- figures ---------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many requests wait or run."""
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """All that wait or run."""
        return iter(self._requests.values())

    @property
    def settled(self) -> bool:
        """Whether no request waits for another one's prompt, and no blocks wait for the end of an iteration."""
        return not self._forks and not self._ended_in_flight

    def load(self) -> Load:
        return Load(
            queued_requests=len(self.queue),
            running_requests=len(self.running),
            queued_tokens=self.queue.num_tokens,
            running_tokens=sum(self.output_length.work(request) for request in self.running),
            kv_blocks_total=self.pool.num_blocks,
            kv_blocks_used=self.pool.num_referenced,
            kv_blocks_cached=self.pool.num_cached,
            kv_blocks_free=self.pool.num_free,
            block_size=self.pool.block_size,
            max_model_len=self.settings.max_model_len,
            draining=False,
            step_cost=self.cost.as_dict(),
        )

    def waiting(self) -> dict[tuple[int, str], Backlog]:
        return self.queue.by_class()

    def check_integrity(self) -> None:
        """Raise AssertionError unless every count agrees with what it counts."""
        self.queue.check_integrity()
        self.running.check_integrity()
        self.tables.check_integrity([*self.running, *self._ended_in_flight])
        waiting = {request.id for request in self.queue}
        running = {request.id for request in self.running}
        if waiting & running or waiting | running != self._requests.keys():
            raise AssertionError("a request is lost, or in two places")
        if len(self.turns) > len(self._requests):
            raise AssertionError("a request that is gone still has a turn")
        if len(self._forks) != sum(self.queue.holds(request_id) for request_id in waiting):
            raise AssertionError("a held request waits for nobody, or nobody holds one that waits")
