"""Embeddings: transformers' last hidden state and next token, whatever runs beside them and wherever it comes from."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.engine.fake_model import Driver, check_embedding, make_request, make_scheduler
from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from weighbridge.engine.api import Delta, Generation
from weighbridge.engine.build import EngineReplica, build_replica
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import Embedding, FinishReason, SamplingParams
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import NeverFits
from weighbridge.models.files.checkpoint import Checkpoint, open_checkpoint

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

Array = npt.NDArray[np.float32]

BLOCK = 16
NOTHING = SamplingParams(max_tokens=0, temperature=0.0)


# -- the scheduler's part, on a model that only checks block tables ------------------------------------------


def test_an_embedding_takes_one_pass_over_its_prompt_and_leaves_it_in_the_cache() -> None:
    driver = Driver(make_scheduler())
    first = make_request("a", list(range(10)), embeds=True)
    driver.add(first)
    _, (progress,) = driver.step()
    assert (progress.tokens, progress.finish_reason) == ([], FinishReason.STOP)
    check_embedding(driver, first)
    assert not driver.scheduler.has_work()
    again = make_request("b", list(range(10)), 2)
    driver.add(again)
    driver.run()
    assert again.num_cached_tokens == 9  # all but the last, which is computed for its logits


def test_a_prompt_that_is_cached_whole_is_embedded_by_its_last_token_alone() -> None:
    driver = Driver(make_scheduler())
    for name in "ab":
        driver.add(make_request(name, list(range(9)), embeds=True))
        batch, _ = driver.step()
    assert [(piece.start, piece.count) for piece in batch.slices] == [(8, 1)]
    assert driver.embeddings["a"].vector.tolist() == driver.embeddings["b"].vector.tolist()


def test_the_last_token_of_a_chunked_prompt_gets_no_drafts() -> None:
    """A chunk may leave one token over, which then looks like a decode; nothing may be guessed behind it."""
    driver = Driver(make_scheduler(max_batch_tokens=12, block_size=4))
    driver.add(make_request("a", [1, 2, 3] * 4 + [1], embeds=True))
    driver.step()
    batch, _ = driver.step()
    assert [(piece.start, piece.count, piece.drafts) for piece in batch.slices] == [(12, 1, ())]
    assert not driver.scheduler._speculator._guessers


def test_a_prompt_may_fill_the_context_and_the_pool_to_the_last_token() -> None:
    driver = Driver(make_scheduler(max_model_len=32, num_blocks=8, block_size=4))
    full = make_request("a", [1] * 32, embeds=True)
    driver.add(full)
    driver.run()
    check_embedding(driver, full)
    with pytest.raises(NeverFits, match="context is 32"):
        driver.add(make_request("b", [1] * 33, embeds=True))
    small = Driver(make_scheduler(max_model_len=64, num_blocks=8, block_size=4))
    with pytest.raises(NeverFits, match="need 9 KV blocks"):
        small.add(make_request("c", [1] * 33, embeds=True))
    small.add(make_request("d", [1] * 32, 1))  # an answer's last token is sent, never computed on


def test_embeddings_say_nothing_of_the_length_of_answers() -> None:
    driver = Driver(make_scheduler())
    before = driver.scheduler._books.output_length.mean
    for index in range(50):
        driver.add(make_request(f"r{index}", [index, 1, 2], embeds=True))
    assert driver.scheduler.load().queued_tokens == 150  # no output is expected of them
    driver.run()
    assert driver.scheduler._books.output_length.mean == before


def test_tenants_share_what_embeddings_cost() -> None:
    driver = Driver(make_scheduler(max_batch_tokens=32))
    for tenant, count in (("greedy", 4), ("modest", 2)):
        for index in range(count):
            driver.add(make_request(f"{tenant}-{index}", [index + count] * 32, embeds=True, tenant=tenant))
    order = [driver.step()[0].slices[0].request.tenant for _ in range(6)]
    assert order == ["greedy", "modest", "greedy", "modest", "greedy", "greedy"]


# -- the whole engine against transformers --------------------------------------------------------------------


def replica(
    directory: Path, *, pool_tokens: int = 64 * BLOCK, quantize: str = "none", **settings: Any
) -> EngineReplica:
    config = transformers.AutoConfig.from_pretrained(directory)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
    options = EngineSettings(
        kv_cache_memory=pool_tokens * per_token,
        block_size=BLOCK,
        check_integrity=True,
        dtype="float32",
        quantize=quantize,
        **settings,
    )
    return build_replica(directory, "tiny", options)


def settings_of(mebibytes: int, **settings: Any) -> EngineSettings:
    return EngineSettings(kv_cache_memory=mebibytes << 20, check_integrity=True, **settings)


@contextmanager
def running(engine: LocalEngine) -> Iterator[LocalEngine]:
    """Whatever happened to its requests, nothing of them may be left at the end."""
    engine.start()
    try:
        yield engine
        load = engine.load()
        assert (load.queued_requests, load.running_requests, load.queued_tokens, load.running_tokens) == (
            0,
        ) * 4
        assert load.kv_blocks_used == 0
    finally:
        engine.stop()


async def embed(engine: LocalEngine, prompt: list[int], **options: Any) -> Embedding:
    stream = engine.submit(Generation(prompt, NOTHING, embeds=True, **options))
    (delta,) = [delta async for deltas in stream for delta in deltas]
    assert (delta.text, delta.tokens, delta.finish, delta.error) == ("", [], FinishReason.STOP, None)
    assert delta.embedding is not None
    assert stream.usage.output_tokens == 0
    assert stream.ticket.first_token is None
    return delta.embedding


async def write(engine: LocalEngine, prompt: list[int], length: int) -> list[Delta]:
    stream = engine.submit(Generation(prompt, SamplingParams(length, temperature=0.0, ignore_eos=True)))
    return [delta async for deltas in stream for delta in deltas]


class Oracle:
    """What transformers computes of a prompt: the state behind the last norm, and the logits of the next token."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model.eval()

    @classmethod
    def of(cls, directory: Path) -> Oracle:
        load = transformers.AutoModelForCausalLM.from_pretrained
        return cls(load(directory, dtype=torch.float32))

    def expected(self, prompt: list[int]) -> tuple[Array, tuple[float, float, float]]:
        """The state, of length 1, and the next token's entropy, top log-probability and margin."""
        with torch.inference_mode():
            output = self._model(torch.tensor([prompt]), output_hidden_states=True)
        state = torch.nn.functional.normalize(output.hidden_states[-1][0, -1], dim=0).numpy()
        logprobs = torch.log_softmax(output.logits[0, -1], 0)
        best, second = logprobs.topk(2).values.tolist()
        return state, (float(-(logprobs.exp() * logprobs).sum()), best, best - second)

    def check(self, prompt: list[int], ours: Embedding, tolerance: float = 1e-4) -> None:
        state, next_token = self.expected(prompt)
        np.testing.assert_allclose(ours.vector, state, atol=tolerance)
        found = (ours.next_token.entropy, ours.next_token.top_logprob, ours.next_token.margin)
        assert found == pytest.approx(next_token, abs=10 * tolerance)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "qwen3-moe", "mixtral"])
async def test_every_family_equals_transformers(family: str, tmp_path: Path) -> None:
    make = make_tiny_moe if "moe" in family or family == "mixtral" else make_tiny
    oracle = Oracle.of(make(family, tmp_path))
    rng = random.Random(5)
    with running(replica(tmp_path, max_batch_tokens=48).engine) as engine:
        for length in (1, 2, BLOCK, BLOCK + 1, 100):
            prompt = [rng.randrange(3, 400) for _ in range(length)]
            oracle.check(prompt, await embed(engine, prompt))


async def test_torch_kernels_equal_transformers(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_KERNELS", "reference")
    prompt = list(range(5, 70))
    with running(replica(llama).engine) as engine:
        Oracle.of(llama).check(prompt, await embed(engine, prompt))


async def test_nothing_that_runs_beside_it_changes_an_embedding(llama: Path) -> None:
    """Streams, other embeddings, chunks, preemption, prefix hits and cancels, in a pool that is too small for all."""
    rng, oracle = random.Random(11), Oracle.of(llama)
    one = replica(llama, pool_tokens=14 * BLOCK, max_batch_tokens=40)
    shared = [rng.randrange(3, 400) for _ in range(3 * BLOCK)]
    prompts = [
        (shared if rng.random() < 0.5 else []) + [rng.randrange(3, 400) for _ in range(rng.randint(1, 60))]
        for _ in range(40)
    ]

    async def quitter(prompt: list[int]) -> None:
        stream = one.engine.submit(Generation(prompt, NOTHING, embeds=True))
        await asyncio.sleep(rng.random() * 0.05)
        stream.close()

    async def late(prompt: list[int]) -> Embedding:
        await asyncio.sleep(rng.random() * 0.4)
        return await embed(one.engine, prompt)

    with running(one.engine):
        beside = [asyncio.ensure_future(write(one.engine, [*shared, n], 40)) for n in range(6)]
        beside += [asyncio.ensure_future(quitter(prompt[::-1])) for prompt in prompts[:20]]
        found = await asyncio.wait_for(asyncio.gather(*map(late, prompts)), 100)
        await asyncio.wait_for(asyncio.gather(*beside), 100)
    for prompt, embedding in zip(prompts, found, strict=True):
        oracle.check(prompt, embedding)


@pytest.mark.parametrize("quantize", ["none", "int8"])
async def test_a_full_hit_of_the_cache_gives_the_same_state(llama: Path, quantize: str) -> None:
    prompt = list(range(5, 5 + 4 * BLOCK + 1))
    with running(replica(llama, quantize=quantize).engine) as engine:
        first = await embed(engine, prompt)
        stream = engine.submit(Generation(prompt, NOTHING, embeds=True))
        (delta,) = [delta async for deltas in stream for delta in deltas]
        assert stream.ticket.cached_tokens == 4 * BLOCK
        again = delta.embedding
        assert again is not None
        np.testing.assert_allclose(again.vector, first.vector, atol=1e-4 if quantize == "none" else 0.02)
        assert again.next_token.entropy == pytest.approx(
            first.next_token.entropy, abs=1e-3 if quantize == "none" else 0.1
        )


async def test_static_batches_embed_too(llama: Path) -> None:
    prompts = [list(range(5, 5 + length)) for length in (3, 40, 17)]
    one = replica(llama, pool_tokens=4 * 1024, batching="static", static_batch_size=4, static_timeout=0.01)
    with running(one.engine) as engine:
        beside = asyncio.ensure_future(write(engine, [7, 8, 9], 20))
        found = await asyncio.gather(*(embed(engine, prompt) for prompt in prompts))
        await beside
    for prompt, embedding in zip(prompts, found, strict=True):
        Oracle.of(llama).check(prompt, embedding)


async def test_a_broken_neighbour_leaves_the_embedding_whole(llama: Path) -> None:
    """An iteration that fails is run again, one request at a time; each keeps what is its own."""
    one = replica(llama)
    execute = one.runner.execute

    def breaking(batch: Any) -> Any:
        if any(piece.request.prompt[0] == 9 for piece in batch.slices):
            raise RuntimeError("broken on purpose")
        return execute(batch)

    one.runner.execute = breaking  # type: ignore[method-assign]
    prompt = list(range(5, 60))
    with running(one.engine) as engine:
        streams = [engine.submit(Generation(ids, NOTHING, embeds=True)) for ids in ([9, 9], prompt)]
        broken, whole = [[delta async for deltas in stream for delta in deltas] for stream in streams]
    assert broken[0].finish is FinishReason.ERROR
    assert broken[0].embedding is None
    assert whole[0].embedding is not None
    Oracle.of(llama).check(prompt, whole[0].embedding)


def as_transformers(checkpoint: Checkpoint) -> torch.nn.Module:
    """The Llama that a checkpoint of ours is, with the same numbers, computed by transformers."""
    ours = checkpoint.config
    config = transformers.LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_kv_heads,
        max_position_embeddings=ours.max_position_embeddings,
        rms_norm_eps=ours.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope.theta},
        tie_word_embeddings=ours.tie_word_embeddings,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensor(name))
    return model


async def test_the_default_model_equals_transformers(default_model_path: Path) -> None:
    """To the tolerance of float32; and close as it is served: with the file's codes, activations rounded to 8 bits."""
    oracle, prompt = Oracle(as_transformers(open_checkpoint(default_model_path))), list(range(1000, 1064))
    exact = build_replica(default_model_path, "m", settings_of(64, dtype="float32", quantize="none"))
    with running(exact.engine) as engine:
        oracle.check(prompt, await embed(engine, prompt))
    served = build_replica(default_model_path, "m", settings_of(64))
    with running(served.engine) as engine:
        close = await embed(engine, prompt)
    state, (entropy, _, _) = oracle.expected(prompt)
    assert float(close.vector @ state) > 0.98
    assert close.next_token.entropy == pytest.approx(entropy, abs=0.3)
