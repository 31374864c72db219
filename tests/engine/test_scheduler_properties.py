"""Whatever happens to a scheduler, in whatever order: nothing is lost, leaked, repeated or mixed up."""

from __future__ import annotations

import math

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.fake_model import (
    STOP,
    VOCABULARY,
    Driver,
    check_cached,
    check_embedding,
    check_scores,
    make_request,
    make_scheduler,
    reference_output,
)
from weighbridge.engine.batch import Batch
from weighbridge.engine.request import SPARE_CLASS, FinishReason, Request, RequestState
from weighbridge.errors import Refused

PREFIXES = [[(i * 7 + j) % VOCABULARY for j in range(30)] for i in range(2)]


class AnyHistory(RuleBasedStateMachine):
    """Random adds, forks, embeddings, scored prompts, steps, aborts (in an iteration too), deadlines, errors."""

    @initialize(
        num_blocks=st.integers(16, 30),
        block_size=st.sampled_from([1, 2, 4]),
        max_batch_tokens=st.integers(1, 60),
        max_sequences=st.integers(1, 8),
        cache=st.booleans(),
        speculate=st.booleans(),
        keeps_states=st.booleans(),
        itl_target=st.sampled_from([0.001, 0.02, 1.0]),
        ageing=st.sampled_from([None, 0.5]),
        patience=st.sampled_from([math.inf, 0.0, 0.05]),
        share=st.sampled_from([1.0, 0.4, 0.1]),
    )
    def set_up(self, cache, speculate, keeps_states, itl_target, ageing, patience, share, **options):
        self.driver = Driver(
            make_scheduler(
                max_model_len=60,
                enable_prefix_cache=cache and not keeps_states,
                speculate=speculate and not keeps_states,
                keeps_states=keeps_states,
                itl_target=itl_target,
                ageing_seconds=ageing,
                tenant_patience=patience,
                tenant_kv_share=share,
                max_queue_requests=30,
                **options,
            )
        )
        self.accepted: dict[str, Request] = {}
        self.in_flight: Batch | None = None

    @rule(
        prefix=st.sampled_from(PREFIXES),
        shared=st.sampled_from([0, 8, 9, 20]),
        own=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8),
        max_tokens=st.integers(0, 36),
        min_tokens=st.sampled_from([0, 0, 0, 3]),
        stops=st.booleans(),
        seed=st.integers(0, 5),
        tenant=st.sampled_from("abc"),
        priority=st.sampled_from([0, 1, 2, SPARE_CLASS]),
        patience=st.sampled_from([None, None, None, None, 0.05, 0.5]),
        choices=st.integers(1, 3),
        copies=st.integers(1, 4),
        embeds=st.sampled_from([False, False, False, True]),
        scored=st.sampled_from([False, False, True]),
        salt=st.sampled_from([b"", b"", b"s"]),
    )
    def add(self, copies, seed, **options):
        for copy in range(copies):
            self._add_one(seed=seed + copy, **options)

    def _add_one(self, prefix, shared, own, max_tokens, patience, choices, seed, embeds, scored, **options):
        parent = None
        for choice in range(1 if embeds else choices):
            request = make_request(
                f"r{len(self.accepted)}-{choice}",
                prefix[:shared] + own,
                max_tokens,
                arrival=self.driver.now,
                deadline=None if patience is None else self.driver.now + patience,
                fork_of=parent,
                seed=seed + choice,
                embeds=embeds,
                scored=scored and not embeds and parent is None,
                **options,
            )
            try:
                self.driver.add(request)
            except Refused:
                assert request.state is RequestState.WAITING
                assert not request.block_table
                return
            self.accepted[request.id] = request
            parent = parent or request

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def schedule(self):
        could_run = self.driver.scheduler.has_work()
        accepted = self.accepted.values()
        running = [
            one for one in accepted if one.priority < SPARE_CLASS and one.state is RequestState.RUNNING
        ]
        batch = self.driver.schedule()
        others = any(
            one.state is not RequestState.FINISHED for one in running
        )  # whose deadline has not passed now
        assert not (others and any(piece.request.priority >= SPARE_CLASS for piece in batch.slices))
        assert batch.slices or not could_run or not self.driver.scheduler.has_work()
        self.in_flight = batch if batch.slices else None

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def update(self):
        self.driver.complete(self.in_flight)
        self.in_flight = None

    @precondition(lambda self: self.in_flight is None)
    @rule(count=st.integers(1, 30))
    def several_steps(self, count):
        for _ in range(count):
            self.driver.step()

    @rule(choice=st.integers(0, 1000))
    def abort(self, choice):
        if self.accepted:
            self.driver.abort(list(self.accepted)[choice % len(self.accepted)])

    @rule(choice=st.integers(0, 1000))
    def break_one(self, choice):
        if self.accepted:
            self.driver.model.fail.add(list(self.accepted)[choice % len(self.accepted)])

    @rule(choice=st.integers(0, 1000))
    def defer_one(self, choice):
        if self.accepted:
            self.driver.model.defer.add(list(self.accepted)[choice % len(self.accepted)])

    @rule(seconds=st.sampled_from([0.01, 0.2, 1.0]))
    def wait(self, seconds):
        self.driver.now += seconds

    @invariant()
    def everything_counts(self):
        if not hasattr(self, "driver"):
            return
        scheduler = self.driver.scheduler
        scheduler.check_integrity()
        if self.in_flight is None:
            check_cached(self.driver)
        pool, load = scheduler.pool, scheduler.load()
        assert pool.num_free + pool.num_cached + pool.num_referenced == pool.num_blocks
        assert load.queued_requests + load.running_requests + len(self.driver.finished) == len(self.accepted)

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        if self.in_flight is not None:
            self.driver.complete(self.in_flight)
        self.driver.run()
        assert self.driver.finished.keys() == self.accepted.keys()
        for request in self.accepted.values():
            self._check_output(request)
        scheduler = self.driver.scheduler
        load = scheduler.load()
        scheduler.check_integrity()
        assert (load.queued_requests, load.queued_tokens, load.running_requests, load.running_tokens) == (
            0,
            0,
            0,
            0,
        )
        assert load.kv_blocks_used == 0
        assert not scheduler._tables._chains
        assert not scheduler._speculator._guessers

    def _check_output(self, request):
        check_scores(self.driver, request)
        if request.embeds:
            check_embedding(self.driver, request)
            return
        expected = reference_output(request, self.driver.max_model_len)
        output = request.tokens[request.num_prompt_tokens :]
        if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            assert output == expected
            stopped = output[-1:] == [STOP] and STOP in request.stop_token_ids
            assert stopped or request.finish_reason is FinishReason.LENGTH
        else:
            assert output == expected[: len(output)]
        if request.finish_reason is FinishReason.ERROR:
            assert request.id in self.driver.model.fail


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
