"""A cache in 8 bits under a whole engine: shared, taken away and computed again like any other, and told."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from tests.engine.test_parity import BLOCK, assert_at_rest, tokens_of
from tests.tiny import make_tiny
from weighbridge.engine.api import Generation
from weighbridge.engine.build import EngineReplica, build_replica
from weighbridge.engine.request import SamplingParams
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.ticket import TicketStore

HEAD_DIM, KV_HEADS, LAYERS = 16, 2, 4
TOKEN_BYTES = LAYERS * KV_HEADS * (2 * HEAD_DIM + 2 * 4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


def replica(directory: Path, kv_dtype: str, memory: int) -> EngineReplica:
    options = EngineSettings(
        kv_cache_memory=memory,
        block_size=BLOCK,
        check_integrity=True,
        dtype="float32",
        kv_dtype=kv_dtype,
        speculate=False,
    )
    return build_replica(directory, "tiny", options)


async def answers(one: EngineReplica) -> tuple[list[list[int]], int, int]:
    """Of six prompts with a common beginning: their tokens, preemptions and cached tokens."""
    rng = random.Random(3)
    beginning = [rng.randrange(3, 400) for _ in range(2 * BLOCK)]
    prompts = [[*beginning, *(rng.randrange(3, 400) for _ in range(9))] for _ in range(6)]
    params = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True)
    one.engine.start()
    try:
        streams = [one.engine.submit(Generation(prompt, params)) for prompt in prompts]
        found = [tokens_of([delta async for deltas in stream for delta in deltas]) for stream in streams]
        assert_at_rest(one.engine)
    finally:
        one.engine.stop()
    tickets = [stream.ticket for stream in streams]
    return found, sum(t.preemptions for t in tickets), sum(t.cached_tokens for t in tickets)


async def test_a_small_pool_gives_the_same_answers_as_a_large_one(directory: Path) -> None:
    small, large = (replica(directory, "int8", blocks * BLOCK * TOKEN_BYTES) for blocks in (12, 200))
    assert (small.num_blocks, large.num_blocks) == (12, 200)
    assert small.runner.cache.nbytes == 12 * BLOCK * TOKEN_BYTES
    few, preempted, _ = await answers(small)
    many, _, cached = await answers(large)
    assert few == many
    assert preempted > 0
    assert cached > 0


async def test_the_same_memory_holds_more_tokens(directory: Path) -> None:
    pools = {name: replica(directory, name, 1 << 20).num_blocks for name in ("f32", "bf16", "int8")}
    assert pools["bf16"] == 2 * pools["f32"]
    assert pools["int8"] == (1 << 20) // (TOKEN_BYTES * BLOCK) > 1.5 * pools["bf16"]


async def test_load_and_metrics_say_what_the_cache_is(directory: Path) -> None:
    one = replica(directory, "int8", 1 << 20)
    load = one.engine.load()
    assert (load.kv_dtype, load.kv_bytes_per_token) == ("int8", TOKEN_BYTES)
    page = EngineMetrics(one.engine, TicketStore(10)).exposition().decode()
    assert f'weighbridge_kv_bytes_per_token{{dtype="int8"}} {TOKEN_BYTES:.1f}' in page
    assert "-kv_int8-" in one.calibration_key
    assert "-kv_" not in replica(directory, "auto", 1 << 20).calibration_key


def test_a_pool_smaller_than_the_context_is_said(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="weighbridge.engine"):
        replica(directory, "int8", 1024 * TOKEN_BYTES)
        assert not caplog.messages
        replica(directory, "int8", 12 * BLOCK * TOKEN_BYTES)
    assert "the KV cache holds 192 tokens, less than the 1024 that the model takes" in caplog.messages[0]


def test_another_word_is_refused(directory: Path) -> None:
    with pytest.raises(BadInput, match="use f32, bf16, int8 or auto"):
        replica(directory, "fp8", 1 << 20)
