"""The life of a request in the continuous scheduler: in at the door, advanced by iterations, out by one exit.

Where everything is kept is decided here; what runs is decided by the policy on top (`scheduler`).
"""

from __future__ import annotations

from weighbridge.cost import StepCost
from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.memory.block_tables import BlockTables, Opening
from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.memory.prefix import PrefixCache
from weighbridge.engine.request import Embedding, FinishReason, Request, RequestState, TokenLogprob
from weighbridge.engine.schedule.admission import check_deadline, check_queue, check_request
from weighbridge.engine.schedule.completion import OutputLength, append_tokens
from weighbridge.engine.schedule.forks import Forks, prompt_computed
from weighbridge.engine.schedule.queue import Deadlines, FairQueue
from weighbridge.engine.schedule.running import RunningSet
from weighbridge.engine.schedule.scheduler_api import CostSource, Progress, SchedulerSettings
from weighbridge.engine.schedule.speculation import Speculator
from weighbridge.errors import BadInput, DeadlineMissed


class Lifecycle:
    """All but `schedule` of a `SchedulerLike`, which is the contract of the methods.

    A request is waiting (in the queue), running (with blocks) or gone. One that ends while an iteration
    computes it is gone at once, but its blocks return only when the iteration is over: the runner is still
    reading its block table, on another thread.
    """

    def __init__(self, settings: SchedulerSettings, cost: CostSource) -> None:
        self.settings = settings
        self.pool = BlockPool(settings.num_blocks, settings.block_size)
        cache = (
            PrefixCache(settings.block_size, settings.prefix_salt) if settings.enable_prefix_cache else None
        )
        self._tables = BlockTables(self.pool, cache)
        self._queue = FairQueue[Request](
            settings.input_weight, settings.output_weight, settings.ageing_seconds
        )
        self._running = RunningSet()
        self._forks = Forks()
        self._speculator = Speculator(settings.max_draft_tokens if settings.speculate else 0)
        self._deadlines = Deadlines()
        self._output_length = OutputLength()
        self._cost_source = cost
        self._requests: dict[str, Request] = {}  # all that wait or run
        self._in_flight: set[Request] = set()  # in the batch that is being computed
        self._ended_in_flight: list[Request] = []  # gone, their blocks still to be returned
        self._finished: list[Request] = []  # ended by the scheduler itself, not yet reported
        self._now = 0.0

    @property
    def _cost(self) -> StepCost:
        return self._cost_source.cost

    # -- in --------------------------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> None:
        check_request(request, self.settings)
        if request.id in self._requests:
            raise BadInput(f"a request with id {request.id!r} is here already; ids must differ", param="id")
        queue, work = self._queue, self._output_length.work(request)
        mean = self._output_length.mean
        check_queue(self.settings, len(queue), queue.num_tokens, work, mean, self._cost)
        self._now = now
        self._check_deadline(request)
        self._requests[request.id] = request
        self._deadlines.add(request)
        queue.push(request, now, work, held=self._forks.hold(request))

    def _check_deadline(self, request: Request) -> None:
        """Raise DeadlineMissed when not even an idle machine, with what is cached now, would be in time."""
        if request.deadline is None:
            return
        try:
            check_deadline(request, self._now, self._opening(request).computed, self.settings, self._cost)
        except DeadlineMissed:
            self._tables.forget(request)
            raise

    def _opening(self, request: Request) -> Opening:
        """With which blocks the request would start now: its parent's, or those of the prefix cache."""
        parent = request.fork_of
        if parent is not None and prompt_computed(parent) and not request.num_output_tokens:
            return self._tables.opening_of_fork(request, parent)
        return self._tables.opening(request)

    # -- forward ---------------------------------------------------------------------------------------

    def update(self, batch: Batch, sampled: Sampled, now: float) -> list[Progress]:
        self._begin(now)
        progress: list[Progress] = []
        for index, piece in enumerate(batch.slices):
            request = piece.request
            if request.state is not RequestState.RUNNING:
                continue  # it ended while it was computed
            error = sampled.problem(index, piece)
            if error is not None:
                self._end(request, FinishReason.ERROR)
                progress.append(Progress(request, [], None, FinishReason.ERROR, error))
            elif piece.samples and not request.embeds:
                progress.append(self._advance(piece, sampled.tokens[index], sampled.logprobs[index]))
            else:
                request.num_computed_tokens = piece.start + piece.count
                self._tables.commit(request)
                if piece.samples:
                    progress.append(self._embedded(request, sampled.embeddings[index]))
        return progress

    def _embedded(self, request: Request, embedding: Embedding) -> Progress:
        """Its prompt is computed and in the prefix cache: that was all."""
        self._end(request, FinishReason.STOP)
        return Progress(request, [], None, FinishReason.STOP, embedding=embedding)

    def _advance(self, piece: Slice, sampled: list[int], logprobs: list[TokenLogprob] | None) -> Progress:
        """Append what a slice sampled: accepted drafts, which are computed already, and one new token."""
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
        """No iteration is being computed now: return the blocks of what ended during the last one."""
        self._now = now
        self._in_flight.clear()
        for request in self._ended_in_flight:
            self._tables.close(request)
        self._ended_in_flight.clear()

    # -- out -------------------------------------------------------------------------------------------

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

    def _expire(self, request: Request) -> None:
        self._end(request, FinishReason.DEADLINE)
        self._finished.append(request)

    def _end(self, request: Request, reason: FinishReason) -> None:
        """The one exit, from wherever the request is."""
        del self._requests[request.id]
        if request.state is RequestState.RUNNING:
            self._running.remove(request)
            if request in self._in_flight:
                self._ended_in_flight.append(request)
            else:
                self._tables.close(request)
            self._output_length.observe(request)
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
            raise AssertionError("a held request waits for nobody, or nobody holds one that waits")
