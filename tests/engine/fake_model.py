"""A deterministic stand-in for runner and model that notices every mistake in block tables.

The KV pool is a list of token ids, one per slot. Executing a batch does the copies, writes the slices'
tokens into their slots, and reads every context back through its block table: whatever a wrong share, a
missing copy, a stale block or a lost rollback leaves behind does not equal the request's tokens.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from weighbridge.cost import StepCost
from weighbridge.engine.batch import Batch, Sampled, Slice
from weighbridge.engine.request import (
    Embedding,
    FinishReason,
    NextToken,
    Request,
    RequestState,
    SamplingParams,
    TokenLogprob,
)
from weighbridge.engine.runner import lay_out
from weighbridge.engine.schedule.scheduler import MOST_SCORED, Scheduler
from weighbridge.engine.schedule.scheduler_api import Progress, SchedulerLike, SchedulerSettings
from weighbridge.models.files.config import StateShape
from weighbridge.models.general.states.pool import StateKey, StatePool

COST = StepCost(
    overhead=0.001,
    memory=0.010,
    per_token=0.001,
    per_context_token=1e-7,
    per_sequence=1e-5,
    per_prompt_pair=3e-8,
)
VOCABULARY = 5  # small, so that outputs repeat and drafts are accepted
STOP = 4


@dataclass
class Costs:
    """A cost source that can be changed, as calibration does."""

    cost: StepCost = COST


def next_token(context: list[int], seed: int) -> int:
    """The model: some function of the whole context that is sensitive to each of its tokens."""
    value = seed
    for token in context[-7:]:
        value = (value * 31 + token + 1) % 1_000_003
    return (value ^ sum(context) * 7) % VOCABULARY if seed % 3 else context[-3 % len(context)]


def reference_output(request: Request, max_model_len: int = 10**9) -> list[int]:
    """What the request produces when it runs alone."""
    tokens = list(request.prompt)
    while request.params.max_tokens:
        token = next_token(tokens, request.params.seed or 0)
        tokens.append(token)
        length = len(tokens) - len(request.prompt)
        ends = token in request.stop_token_ids and length > request.params.min_tokens
        if ends or length >= request.params.max_tokens or len(tokens) >= max_model_len:
            break
    return tokens[len(request.prompt) :]


def embedding(context: list[int]) -> Embedding:
    """What the model makes of a whole prompt: different for any other."""
    return Embedding(np.array(context, np.float32), NextToken(float(len(context)), 0.0, 0.0))


def scores_of(prompt: list[int], start: int, count: int) -> list[TokenLogprob]:
    """How likely the tokens behind `count` from `start` on were: sensitive to all that comes before each."""
    ends = range(start + 1, start + 1 + count)
    return [TokenLogprob(prompt[end], -float(next_token(prompt[:end], 1) + 10 * end)) for end in ends]


class FakeStates:
    """The states of a model that keeps some: of each sequence the sum of its tokens, which is read again."""

    def __init__(self, seats: int, block_size: int) -> None:
        self._block_size = block_size
        self._pool = StatePool(
            [StateShape(0, recurrent=True, index=0, size=(1,), in_float32=True)], seats, torch.float32
        )
        self._sums = self._pool[StateKey(recurrent=True, layer=0, index=0)]

    def execute(self, batch: Batch) -> None:
        layout = lay_out(batch.slices, self._block_size)[1]
        layout.state_slots = np.array([piece.request.state_slot for piece in batch.slices], np.int32)
        owners = [piece for piece in batch.slices for _ in range(piece.count)]
        for group in self._pool.groups(layout):
            assert group.written is not None, "a request without a place for its states"
            for place, row in enumerate(group.rows[:, 0].tolist()):
                piece = owners[row]
                before, after = (
                    sum(piece.request.tokens[:end]) for end in (piece.start, piece.start + piece.count)
                )
                if piece.start:
                    assert group.read is not None
                    assert self._sums[group.read[place]] == before, piece.request.id
                self._sums[group.written[place]] = after
        self._pool.settle(layout)


@dataclass
class FakeModel:
    num_blocks: int
    block_size: int
    states: FakeStates | None = None
    slots: list[int] = field(default_factory=list)
    fail: set[str] = field(default_factory=set)  # ids of requests whose sampling breaks
    defer: set[str] = field(default_factory=set)  # ids of requests whose next sampling has to wait
    tokens_run: int = 0

    def __post_init__(self) -> None:
        self.slots = [-1] * (self.num_blocks * self.block_size)

    def execute(self, batch: Batch) -> Sampled:
        if self.states is not None:
            self.states.execute(batch)
        size = self.block_size
        for source, target in batch.copies:
            self.slots[target * size : target * size + size] = self.slots[
                source * size : source * size + size
            ]
        for piece in batch.slices:
            for position, token in enumerate(piece.token_ids(), piece.start):
                self.slots[self._slot(piece.request, position)] = token
        result = Sampled([], [])
        for index, piece in enumerate(batch.slices):
            self.tokens_run += piece.count + piece.padding
            context = [self.slots[self._slot(piece.request, p)] for p in range(piece.start + piece.count)]
            assert context == (piece.request.tokens + list(piece.drafts))[: len(context)], piece.request.id
            assert piece.scored <= min(piece.count, MOST_SCORED)
            context += piece.request.tokens[len(context) :]  # what is scored comes next
            if piece.samples and piece.request.embeds:
                result.embeddings[index] = embedding(context[: piece.start + piece.count])
            if piece.scored:
                result.scores[index] = scores_of(context, piece.start, piece.scored)
            samples = piece.samples and not piece.request.ends_with_prompt
            if samples and piece.request.id in self.defer:
                self.defer.remove(piece.request.id)
                result.deferred.add(index)
                samples = False
            result.tokens.append(self._sample(piece) if samples else [])
            result.logprobs.append(None)
            if piece.request.id in self.fail:
                result.errors[index] = "broken on purpose"
        return result

    def _slot(self, request: Request, position: int) -> int:
        return request.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def _sample(self, piece: Slice) -> list[int]:
        tokens, sampled = list(piece.request.tokens), []
        for draft in (*piece.drafts, None):
            sampled.append(next_token(tokens, piece.request.params.seed or 0))
            tokens.append(sampled[-1])
            if sampled[-1] != draft:
                break
        return sampled


def make_request(
    id: str,
    prompt: list[int],
    max_tokens: int = 8,
    *,
    arrival: float = 0.0,
    min_tokens: int = 0,
    stops: bool = False,
    seed: int = 0,
    tenant: str = "default",
    priority: int = 0,
    deadline: float | None = None,
    fork_of: Request | None = None,
    embeds: bool = False,
    salt: bytes = b"",
    scored: bool = False,
) -> Request:
    params = SamplingParams(
        max_tokens=0 if embeds else max_tokens,
        temperature=0.0,
        min_tokens=min_tokens,
        seed=seed,
        prompt_logprobs=0 if scored else None,
    )
    return Request(
        id,
        prompt,
        params,
        arrival,
        tenant=tenant,
        priority=priority,
        deadline=deadline,
        fork_of=fork_of,
        stop_token_ids=frozenset({STOP}) if stops else frozenset(),
        embeds=embeds,
        salt=salt,
    )


def make_scheduler(cost: Costs | None = None, **settings: object) -> Scheduler:
    defaults: dict[str, object] = {"max_model_len": 10_000, "num_blocks": 64, "block_size": 4}
    return Scheduler(SchedulerSettings(**(defaults | settings)), cost or Costs())  # type: ignore[arg-type]


class Driver:
    """The engine loop in miniature, under a virtual clock that advances by the predicted step time."""

    def __init__(self, scheduler: SchedulerLike) -> None:
        self.scheduler = scheduler
        settings = scheduler.settings
        states = FakeStates(settings.seats, settings.block_size) if settings.keeps_states else None
        self.model = FakeModel(settings.num_blocks, settings.block_size, states)
        self.now = 0.0
        self.batches: list[list[tuple[str, int, int]]] = []
        self.finished: dict[str, FinishReason] = {}
        self.embeddings: dict[str, Embedding] = {}
        self.scores: dict[str, list[TokenLogprob]] = {}  # of prompts, as they were told
        self.max_model_len = scheduler.settings.max_model_len

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request, self.now)

    def step(self) -> tuple[Batch, list[Progress]]:
        batch = self.schedule()
        return batch, self.complete(batch)

    def schedule(self) -> Batch:
        batch = self.scheduler.schedule(self.now)
        for request in self.scheduler.take_finished():
            self._note(request, request.finish_reason)
        self.batches.append([(s.request.id, s.start, s.count) for s in batch.slices])
        check_batch(self.scheduler, batch)
        return batch

    def complete(self, batch: Batch) -> list[Progress]:
        if not batch.slices:
            return []
        sampled = self.model.execute(batch)
        self.now += COST.seconds(*batch.work)
        progress = self.scheduler.update(batch, sampled, self.now)
        for piece in batch.slices:
            check_after(self.scheduler, piece)
        for item in progress:
            if item.prompt_logprobs is not None:
                assert item.request.id not in self.scores, "told twice"
                self.scores[item.request.id] = list(item.prompt_logprobs)
            if item.embedding is not None:
                self.embeddings[item.request.id] = item.embedding
            if item.finish_reason is not None:
                self._note(item.request, item.finish_reason)
        return progress

    def abort(self, request_id: str) -> None:
        request = self.scheduler.abort(request_id)
        if request is not None:
            self._note(request, request.finish_reason)

    def run(self, limit: int = 100_000) -> None:
        """Until nothing is left; an iteration that computes nothing although there is work is a failure."""
        for _ in range(limit):
            if not self.scheduler.has_work():
                return
            batch, _ = self.step()
            assert batch.slices or not self.scheduler.has_work(), "work, but an empty batch"
        raise AssertionError(f"still running after {limit} iterations")

    def _note(self, request: Request, reason: FinishReason | None) -> None:
        assert request.id not in self.finished, f"{request.id} finished twice"
        assert reason is not None
        self.finished[request.id] = reason


def check_batch(scheduler: SchedulerLike, batch: Batch) -> None:
    """What must hold for every batch."""
    settings = scheduler.settings
    assert batch.num_tokens <= settings.max_batch_tokens
    assert batch.num_sequences <= settings.max_sequences
    assert not any(s.drafts for s in batch.slices) or all(s.count == 1 + len(s.drafts) for s in batch.slices)
    written: set[int] = set()
    for piece in batch.slices:
        request = piece.request
        assert piece.start == request.num_computed_tokens
        assert piece.count >= 1
        own = piece.start + piece.count - len(piece.drafts)
        assert piece.samples == (own == request.num_tokens)
        last = piece.start + piece.count
        assert last <= settings.max_model_len
        blocks = request.block_table[piece.start // settings.block_size : -(-last // settings.block_size)]
        assert len(request.block_table) * settings.block_size >= last
        assert not written & set(blocks), "two slices write the same block"
        written.update(blocks)
        if isinstance(scheduler, Scheduler):
            copied = Counter(scheduler._tables._sources)  # what is written there comes behind what is copied
            others = (scheduler.pool.ref_counts[block] - copied[block] for block in blocks)
            assert all(count == 1 for count in others), "writes a shared block"
            check_written(scheduler, piece)


def check_written(scheduler: Scheduler, piece: Slice) -> None:
    """Nothing is written where the prefix cache may find something; forks compute their prompt's last token again."""
    prefix, size = scheduler._tables._prefix, scheduler.settings.block_size
    if prefix is None or piece.request.fork_of is not None:
        return
    for index in range(piece.start // size, -(-(piece.start + piece.count) // size)):
        held = len(prefix.tokens(piece.request.block_table[index]))
        assert held <= max(piece.start - index * size, 0), "writes what is cached"


def check_cached(driver: Driver) -> None:
    """Every block that the prefix cache knows, tails too, holds the tokens that it is known for."""
    assert isinstance(driver.scheduler, Scheduler)
    prefix, size = driver.scheduler._tables._prefix, driver.scheduler.settings.block_size
    for block in () if prefix is None else prefix:
        tokens = list(prefix.tokens(block))
        assert driver.model.slots[block * size : block * size + len(tokens)] == tokens


def check_after(scheduler: SchedulerLike, piece: Slice) -> None:
    """What must hold for a request whose slice has just run."""
    request = piece.request
    assert request.num_computed_tokens <= request.num_tokens
    if request.state is not RequestState.RUNNING or not isinstance(scheduler, Scheduler):
        return
    again = scheduler.settings.keeps_states and request.num_computed_tokens == piece.start  # it was deferred
    if piece.samples and not again:  # accepted drafts are computed: only the newest token is left
        assert request.num_tokens - request.num_computed_tokens == 1
    assert len(request.block_table) <= scheduler.pool.blocks_for(request.num_tokens), "keeps blocks of drafts"


def check_embedding(driver: Driver, request: Request) -> None:
    """One that ended well brought what its whole prompt comes to, and no token; any other brought nothing."""
    assert request.tokens == request.prompt
    brought = driver.embeddings.get(request.id)
    if request.finish_reason is FinishReason.STOP:
        assert brought is not None
        assert brought.vector.tolist() == request.prompt
    else:
        assert brought is None
        assert request.finish_reason is not FinishReason.ERROR or request.id in driver.model.fail


def check_scores(driver: Driver, request: Request) -> None:
    """One that got a token, or needed none, told how likely each token of its prompt was, once."""
    told = driver.scores.get(request.id)
    ended_well = request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    if request.params.prompt_logprobs is None:
        assert told is None
    elif ended_well or request.num_output_tokens:
        assert told == scores_of(request.prompt, 0, request.num_prompt_tokens - 1)
