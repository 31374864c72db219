"""Classic static batching, the baseline: a batch is formed, padded, run until its longest member is done.

The rules, each of them what classic serving does, none made worse:

1. Requests are taken first come, first served. A batch starts when `batch_size` of them wait, or when the
   first has waited `timeout` seconds; at once if that time passed while the batch before it ran.
2. Prompts are padded on the left to the longest. The padding is really computed (`Slice.padding`): a full
   rectangle of tokens runs through the layers. Attention over padding is spared, in favour of this baseline.
3. Each seat reserves KV for the longest sequence that is allowed (`max_model_len`): nobody knows beforehand
   when an answer ends. Where the pool does not hold that `batch_size` times, the batch has fewer seats.
4. Nobody joins or leaves. Tokens are delivered as they come and an answer that is complete ends at once, but
   its seat goes on computing, output dropped, until the last member is done: a ghost request keeps it.
5. No prefix cache, no preemption, no speculation, no priorities, no tenants; forks are requests like others.
   The rectangle runs column by column in iterations of `max_batch_tokens`, as memory for activations demands;
   that costs nothing, since nobody decodes meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from weighbridge.cost import StepCost
from weighbridge.engine.api import Load
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.memory.blocks import BlockPool
from weighbridge.engine.request import FinishReason, Places, Request, RequestState, SamplingParams
from weighbridge.engine.schedule.admission import check_deadline, check_ever, check_queue, check_request
from weighbridge.engine.schedule.output import OutputLength, append_tokens, prompt_scores
from weighbridge.engine.schedule.places import Backlog, KeptPlaces
from weighbridge.engine.schedule.queue import Deadlines
from weighbridge.engine.schedule.scheduler_api import CostSource, Progress, SchedulerSettings
from weighbridge.errors import BadInput


@dataclass(slots=True)
class _Waiting:
    request: Request
    since: float
    tokens: int


@dataclass(slots=True)
class _Formation:
    """The batch that runs: its seats in order, and how far its rectangle of prompts is computed."""

    seats: list[Request]  # members, or the ghosts that keep a finished member's seat
    longest_prompt: int
    column: int = 0


class StaticScheduler:
    """See the module for the rules, and `SchedulerLike` for the contract of the methods."""

    def __init__(
        self, settings: SchedulerSettings, cost: CostSource, batch_size: int, timeout: float
    ) -> None:
        if batch_size < 1 or timeout < 0.0:
            raise BadInput(
                f"a static batch of {batch_size} after {timeout} s cannot work: use 1 and 0 or more"
            )
        self.settings = settings
        self.timeout = timeout
        self.pool = BlockPool(settings.num_blocks, settings.block_size)
        # A pool that holds less than one longest sequence is one seat: what could outgrow it was refused before.
        self._seat_blocks = min(self.pool.blocks_for(settings.max_model_len), settings.num_blocks)
        self.batch_size = min(batch_size, settings.seats, settings.num_blocks // self._seat_blocks)
        self._cost_source = cost
        self._output_length = OutputLength()
        self._deadlines = Deadlines()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._queued_tokens = 0
        self._kept = KeptPlaces()
        self._members: dict[str, Request] = {}  # of the running batch, not finished
        self._batch: _Formation | None = None
        self._finished: list[Request] = []
        self._ghosts = 0
        self._computing = False  # between `schedule` and `update`

    @property
    def _cost(self) -> StepCost:
        return self._cost_source.cost

    # -- requests come and go --------------------------------------------------------------------------

    def keep_places(self, tenant: str, sizes: Sequence[tuple[int, int]]) -> Places:
        check_ever(self.settings, len(sizes))
        work = sum([self._output_length.work_of(prompt, most) for prompt, most in sizes])
        self._check_room(Backlog(len(sizes), work))
        return self._kept.keep(tenant, len(sizes), work)

    def give_back(self, places: Places) -> None:
        self._kept.give_back(places)

    def _check_room(self, added: Backlog) -> None:
        waiting = Backlog(len(self._waiting), self._queued_tokens) + self._kept.total
        check_queue(self.settings, waiting, added, self._output_length.mean, self._cost)

    def add(self, request: Request, now: float, places: Places | None = None) -> None:
        check_request(request, self.settings)
        if request.id in self._waiting or request.id in self._members:
            raise BadInput(f"a request with id {request.id!r} is here already; ids must differ", param="id")
        work = self._output_length.work(request)
        if places is not None and places.requests:
            self._kept.give_back(places, 1)
        else:
            self._check_room(Backlog(1, work))
        check_deadline(request, now, 0, self.settings, self._cost)
        self._waiting[request.id] = _Waiting(request, now, work)
        self._queued_tokens += work
        self._deadlines.add(request)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        waiting = self._waiting.get(request_id)
        request = waiting.request if waiting is not None else self._members.get(request_id)
        if request is not None:
            self._end(request, reason)
            if not self._computing:
                self._seat_ghosts()
        return request

    def finish(self, request_id: str, reason: FinishReason) -> Request | None:
        return self.abort(request_id, reason)

    def take_finished(self) -> list[Request]:
        finished, self._finished = self._finished, []
        return finished

    def _end(self, request: Request, reason: FinishReason) -> None:
        """End a request; `_seat_ghosts` sees to its seat, but not while the runner reads its blocks."""
        waiting = self._waiting.pop(request.id, None)
        if waiting is not None:
            self._queued_tokens -= waiting.tokens
        else:
            del self._members[request.id]
            self._output_length.observe(request)
        request.state = RequestState.FINISHED
        request.finish_reason = reason

    # -- schedule --------------------------------------------------------------------------------------

    def schedule(self, now: float) -> Batch:
        for request in self._deadlines.passed(now):
            self._end(request, FinishReason.DEADLINE)
            self._finished.append(request)
        self._seat_ghosts()
        if self._batch is None and self._due(now):
            self._form()
        self._computing = self._batch is not None
        if self._batch is None:
            return Batch()
        if self._batch.column < self._batch.longest_prompt:
            return self._prompt_columns(self._batch)
        return Batch([Slice(seat, seat.num_computed_tokens, 1, True) for seat in self._batch.seats])

    def _due(self, now: float) -> bool:
        wake_at = self.wake_at()
        return wake_at is not None and now >= wake_at

    def _form(self) -> None:
        """Form a batch: first come, first served, a seat for each."""
        members = [waiting.request for waiting in islice(self._waiting.values(), self.batch_size)]
        for request in members:
            self._queued_tokens -= self._waiting.pop(request.id).tokens
            self._members[request.id] = request
            request.state = RequestState.RUNNING
            request.block_table = self.pool.allocate_many(self._seat_blocks, request.tenant)
        self._batch = _Formation(members, max(request.num_prompt_tokens for request in members))

    def _prompt_columns(self, batch: _Formation) -> Batch:
        """Return the next columns of the padded rectangle: whole rows are padding until a short prompt begins.

        A row that is all padding has no slice to carry it, so the longest row carries it; that one has none.
        """
        width = max(self.settings.max_batch_tokens // len(batch.seats), 1)
        end = min(batch.column + width, batch.longest_prompt)
        slices: list[Slice] = []
        homeless = 0
        for seat in batch.seats:
            tokens = max(end - (batch.longest_prompt - seat.num_tokens) - seat.num_computed_tokens, 0)
            padding = end - batch.column - tokens
            if tokens:
                start = seat.num_computed_tokens
                scored = seat.scored_in(start, tokens)
                samples = end == batch.longest_prompt
                slices.append(Slice(seat, start, tokens, samples, scored=scored, padding=padding))
            else:
                homeless += padding
        carrier = max(slices, key=lambda piece: piece.count)
        carrier.padding += homeless
        batch.column = end
        return Batch(slices)

    # -- update ----------------------------------------------------------------------------------------

    def update(self, batch: Batch, sampled: Sampled, now: float) -> list[Progress]:
        progress: list[Progress] = []
        for index, piece in enumerate(batch.slices):
            request, tokens = piece.request, sampled.tokens[index]
            error = sampled.problem(index, piece)
            request.num_computed_tokens = piece.start + piece.count
            if piece.scored:
                request.note_scores(piece.start, sampled.scores.get(index, []))
            if self._members.get(request.id) is not request:
                self._advance_ghost(request, tokens)
            elif error is not None:
                self._end(request, sampled.fault(index))
                progress.append(Progress(request, [], None, sampled.fault(index), error))
            elif index in sampled.deferred:
                request.num_computed_tokens = request.num_tokens - 1
            elif piece.samples and request.ends_with_prompt:
                reason = FinishReason.STOP if request.is_told else FinishReason.LENGTH
                self._end(request, reason)
                embedding, chances = sampled.embeddings.get(index), sampled.chances.get(index)
                told = prompt_scores(request)
                progress.append(
                    Progress(
                        request, [], None, reason, embedding=embedding, chances=chances, prompt_logprobs=told
                    )
                )
            elif piece.samples:
                told = None if request.num_output_tokens else prompt_scores(request)
                _, end = append_tokens(request, tokens, self.settings.max_model_len)
                progress.append(Progress(request, tokens, sampled.logprobs[index], end, prompt_logprobs=told))
                if end is not None:
                    self._end(request, end)
        self._computing = False
        self._seat_ghosts()
        return progress

    def _advance_ghost(self, request: Request, tokens: list[int]) -> None:
        """Advance a ghost and drop its output. At the end of its seat or of the context it repeats its last step."""
        if request.state is RequestState.RUNNING and request.num_computed_tokens == request.num_tokens:
            request.tokens.append(tokens[0] if tokens else 0)
            room = len(request.block_table) * self.pool.block_size
            if request.num_tokens > min(room, self.settings.max_model_len):
                request.tokens.pop()
            request.num_computed_tokens = request.num_tokens - 1

    def _seat_ghosts(self) -> None:
        """Let ghosts take the seats of finished requests, or end the batch; call while nothing is computed."""
        batch = self._batch
        if batch is None:
            return
        for index, seat in enumerate(batch.seats):
            if seat.state is RequestState.FINISHED:
                if self._members:
                    batch.seats[index] = self._ghost_of(seat)
                else:
                    self._release(seat)
                seat.block_table = []
            elif not self._members:
                self._release(seat)
        if not self._members:
            self._batch = None

    def _ghost_of(self, request: Request) -> Request:
        self._ghosts += 1
        return Request(
            id=f"{request.id}/seat-{self._ghosts}",
            prompt=request.prompt,
            params=SamplingParams(max_tokens=self.settings.max_model_len, temperature=0.0),
            arrival=request.arrival,
            tokens=list(request.tokens),
            num_computed_tokens=min(request.num_computed_tokens, request.num_tokens - 1),
            block_table=request.block_table,
            state=RequestState.RUNNING,
        )

    def _release(self, request: Request) -> None:
        self.pool.free_all(request.block_table)

    # -- figures ---------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return bool(self._waiting or self._members)

    def wake_at(self) -> float | None:
        """When the next batch starts by itself: at once if full, else when its first request has waited enough."""
        if self._batch is not None or not self._waiting:
            return None
        since = next(iter(self._waiting.values())).since
        return since if len(self._waiting) >= self.batch_size else since + self.timeout

    def load(self) -> Load:
        return Load(
            queued_requests=len(self._waiting),
            running_requests=len(self._members),
            queued_tokens=self._queued_tokens,
            running_tokens=sum(self._output_length.work(member) for member in self._members.values()),
            kv_blocks_total=self.pool.num_blocks,
            kv_blocks_used=self.pool.num_referenced,
            kv_blocks_cached=0,
            kv_blocks_free=self.pool.num_free,
            block_size=self.pool.block_size,
            max_model_len=self.settings.max_model_len,
            draining=False,
            step_cost=self._cost.as_dict(),
        )

    def waiting(self) -> dict[tuple[int, str], Backlog]:
        found: dict[tuple[int, str], Backlog] = {}
        for one in self._waiting.values():
            key = one.request.priority, one.request.tenant
            found[key] = found.get(key, Backlog()) + Backlog(1, one.tokens)
        return found

    def check_integrity(self) -> None:
        seats = self._batch.seats if self._batch is not None else []
        self.pool.check_integrity({block: 1 for seat in seats for block in seat.block_table})
        if self._queued_tokens != sum(waiting.tokens for waiting in self._waiting.values()):
            raise AssertionError("the queued tokens are miscounted")
        if any(member not in seats for member in self._members.values()):
            raise AssertionError("a running request has no seat")
