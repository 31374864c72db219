"""The whole engine against transformers: every finished output equals its greedy output, token for token."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch

from tests.tiny import make_tiny
from weighbridge.engine.api import Delta, Generation
from weighbridge.engine.build import EngineReplica, build_replica
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import FinishReason, SamplingParams
from weighbridge.engine.settings import EngineSettings

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

BLOCK = 16


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny("llama", path)
    return path


@pytest.fixture(scope="module")
def oracle(directory: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def replica(directory: Path, *, pool_tokens: int, **settings: object) -> EngineReplica:
    """A replica whose KV pool holds `pool_tokens` tokens."""
    config = transformers.AutoConfig.from_pretrained(directory)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
    options = EngineSettings(
        kv_cache_memory=pool_tokens * per_token,
        block_size=BLOCK,
        check_integrity=True,
        dtype="float32",
        **settings,
    )
    return build_replica(directory, "tiny", options)


def greedy(oracle: torch.nn.Module, prompt: list[int], length: int) -> list[int]:
    """Argmax one token at a time with transformers: no stop ids, exactly `length` tokens."""
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        output = oracle.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=length,
            min_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


async def collect(engine: LocalEngine, prompt: list[int], length: int, **options: object) -> list[Delta]:
    params = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
    stream = engine.submit(Generation(prompt, params, **options))
    return [delta async for deltas in stream for delta in deltas]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def assert_at_rest(engine: LocalEngine) -> None:
    load = engine.load()
    assert (load.queued_requests, load.running_requests) == (0, 0)
    assert (load.queued_tokens, load.running_tokens) == (0, 0)
    assert load.kv_blocks_used == 0
    assert load.kv_blocks_free + load.kv_blocks_cached == load.kv_blocks_total


@pytest.mark.parametrize("speculate", [False, True])
async def test_sixty_four_requests_through_a_small_pool(
    directory: Path, oracle: torch.nn.Module, speculate: bool
) -> None:
    """Mixed lengths, random arrivals, shared prefixes, forced preemption, cancels thrown in."""
    rng = random.Random(7)
    one = replica(directory, pool_tokens=40 * BLOCK, max_batch_tokens=96, speculate=speculate)
    engine = one.engine
    engine.start()
    shared = [[rng.randrange(3, 400) for _ in range(n)] for n in (40, 75, 100)]
    jobs = []
    for _ in range(64):
        prompt = list(rng.choice([*shared, []])) + [rng.randrange(3, 400) for _ in range(rng.randint(1, 90))]
        jobs.append((prompt, rng.randint(1, 60), rng.random() * 1.5, rng.random() < 0.15))

    async def run(prompt: list[int], length: int, delay: float, cancel: bool) -> list[int] | None:
        await asyncio.sleep(delay)
        if not cancel:
            return tokens_of(await collect(engine, prompt, length))
        params = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
        stream = engine.submit(Generation(prompt, params))
        await asyncio.sleep(rng.random() * 0.1)
        stream.close()
        return None

    try:
        outputs = await asyncio.wait_for(asyncio.gather(*(run(*job) for job in jobs)), 100)
        assert_at_rest(engine)
    finally:
        engine.stop()
    finished = 0
    for (prompt, length, _, cancelled), output in zip(jobs, outputs, strict=True):
        if not cancelled:
            finished += 1
            assert output == greedy(oracle, prompt, length)
    assert finished > 40


async def test_preemption_is_forced_and_costs_nothing_but_time(
    directory: Path, oracle: torch.nn.Module
) -> None:
    one = replica(directory, pool_tokens=10 * BLOCK, speculate=False)
    engine = one.engine
    engine.start()
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 400) for _ in range(30)] for _ in range(6)]
    tickets = []
    try:
        params = SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
        streams = [engine.submit(Generation(prompt, params)) for prompt in prompts]
        for prompt, stream in zip(prompts, streams, strict=True):
            deltas = [delta async for deltas in stream for delta in deltas]
            assert tokens_of(deltas) == greedy(oracle, prompt, 80)
            assert deltas[-1].finish is FinishReason.LENGTH
            tickets.append(stream.ticket)
        assert_at_rest(engine)
    finally:
        engine.stop()
    assert sum(ticket.preemptions for ticket in tickets) > 0


async def test_second_user_of_a_prefix_hits_while_the_first_still_runs(directory: Path) -> None:
    one = replica(directory, pool_tokens=64 * BLOCK)
    engine = one.engine
    engine.start()
    prefix = list(range(10, 10 + 6 * BLOCK))
    params = SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True)
    try:
        first = engine.submit(Generation([*prefix, 1], params))
        await anext(aiter(first))
        second = engine.submit(Generation([*prefix, 2, 3], params))
        await anext(aiter(second))
        assert second.ticket.cached_tokens == len(prefix)
        assert engine.load().running_requests == 2
        first.close()
        second.close()
        await asyncio.sleep(0.2)
        assert_at_rest(engine)
    finally:
        engine.stop()


async def test_choices_fork_the_prompt_and_repeat_with_their_seed(directory: Path) -> None:
    one = replica(directory, pool_tokens=64 * BLOCK)
    engine = one.engine
    engine.start()
    prompt = list(range(20, 20 + 3 * BLOCK + 5))
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=11, ignore_eos=True)

    async def sample() -> list[list[int]]:
        texts: list[list[int]] = [[], [], []]
        async for deltas in engine.submit(Generation(prompt, params, choices=3)):
            for delta in deltas:
                texts[delta.index] += delta.tokens
        return texts

    try:
        first = await sample()
        noise = [asyncio.ensure_future(collect(engine, prompt[:n], 30)) for n in (7, 20, 33)]
        second = await sample()
        await asyncio.gather(*noise)
        assert_at_rest(engine)
    finally:
        engine.stop()
    assert first == second
    assert len({tuple(choice) for choice in first}) == 3


async def test_two_thousand_requests_through_a_pool_that_fits_five(directory: Path) -> None:
    one = replica(directory, pool_tokens=5 * 2 * BLOCK, max_batch_tokens=256)
    engine = one.engine
    engine.start()
    rng = random.Random(5)
    try:
        jobs = [
            collect(engine, [rng.randrange(3, 400) for _ in range(rng.randint(1, 20))], rng.randint(1, 8))
            for _ in range(2000)
        ]
        done = await asyncio.wait_for(asyncio.gather(*jobs), 110)
        assert all(deltas[-1].finish is FinishReason.LENGTH for deltas in done)
        assert_at_rest(engine)
    finally:
        engine.stop()
