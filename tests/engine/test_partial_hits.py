"""A prompt that goes on in the middle of a block: what follows is as likely as it is without a cache."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.engine.test_parity import BLOCK, assert_at_rest
from tests.tiny import make_tiny
from weighbridge.engine.api import Generation
from weighbridge.engine.build import build_replica
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import SamplingParams, TokenLogprob
from weighbridge.engine.settings import EngineSettings

LENGTH = 6


def engine_of(directory: Path, kv_dtype: str, cache: bool) -> LocalEngine:
    options = EngineSettings(
        kv_cache_memory=4 << 20,
        block_size=BLOCK,
        check_integrity=True,
        dtype="float32",
        kv_dtype=kv_dtype,
        enable_prefix_cache=cache,
    )
    return build_replica(directory, "tiny", options).engine


async def told(engine: LocalEngine, prompt: list[int]) -> tuple[list[int], list[TokenLogprob], int]:
    """The answer to a prompt, how likely each of its tokens was, and how much of the prompt was cached."""
    params = SamplingParams(max_tokens=LENGTH, temperature=0.0, ignore_eos=True, logprobs=5)
    stream = engine.submit(Generation(prompt, params))
    deltas = [delta async for deltas in stream for delta in deltas]
    tokens = [token for delta in deltas for token in delta.tokens]
    return tokens, [one for delta in deltas for one in delta.logprobs or ()], stream.ticket.cached_tokens


@pytest.mark.parametrize(
    ("family", "kv_dtype", "within"),
    [("llama", "auto", 1e-4), ("llama", "int8", 1e-4), ("gemma3", "auto", 1e-4), ("mistral", "auto", 1e-4)],
)
async def test_logits_behind_a_copied_block_are_those_without_a_cache(
    tmp_path: Path, family: str, kv_dtype: str, within: float
) -> None:
    rng = random.Random(5)
    drawn = [rng.randrange(3, 400) for _ in range(200)]
    first = drawn[: 3 * BLOCK + 9]
    with_cache, without = (
        engine_of(make_tiny(family, tmp_path / name), kv_dtype, name == "y") for name in "yn"
    )
    with_cache.start()
    without.start()
    try:
        answer = (await told(with_cache, first))[0]
        prompts = {
            2 * BLOCK + 7: [*first[: 2 * BLOCK + 7], *drawn[100:130]],  # leaves a full block
            len(first) + LENGTH - 1: [*first, *answer, *drawn[130:150]],  # goes on in the tail of the first
            len(first) + 2: [*first, *answer[:2], *drawn[150:170]],  # leaves what the first's tail has become
            len(first) - 1: first,  # the same again
        }
        for cached, prompt in prompts.items():
            found, logprobs, hit = await told(with_cache, prompt)
            expected, likely, nothing = await told(without, prompt)
            assert (hit, nothing) == (cached, 0)
            assert found == expected
            for one, other in zip(logprobs, likely, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=within)
                assert dict(one.top) == pytest.approx(dict(other.top), abs=within)
        assert_at_rest(with_cache)
    finally:
        with_cache.stop()
        without.stop()
