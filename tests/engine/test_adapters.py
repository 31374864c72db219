"""Adapters in the whole engine: in one batch with the base, apart in the prefix cache, never taken from a request."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.engine.test_parity import assert_at_rest, collect, greedy, tokens_of
from tests.tiny import make_tiny
from tests.tiny_lora import make_lora, merged
from weighbridge.engine.api import Generation
from weighbridge.engine.build import EngineReplica, build_replica
from weighbridge.engine.engine import LocalEngine
from weighbridge.engine.request import SamplingParams
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import AdapterBusy, AdaptersFixed, BadInput, UnknownModel
from weighbridge.models.adapters.named import NamedAdapter

BLOCK = 16
NAMES = [f"ada-{number}" for number in range(8)]
PER_TOKEN = 2 * 4 * 2 * 16 * 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def oracle(base: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapters(oracle: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight adapters of several ranks and of several modules."""
    root = tmp_path_factory.mktemp("adapters")
    targets = (("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "down_proj"))
    for number, name in enumerate(NAMES):
        make_lora(
            oracle, root / name, targets[number % 3], seed=number, r=(2, 4, 8)[number % 3], lora_alpha=16
        )
    return root


def replica(base: Path, *, pool_tokens: int = 64 * BLOCK, **settings: Any) -> EngineReplica:
    options = {"block_size": BLOCK, "check_integrity": True, "dtype": "float32", **settings}
    return build_replica(base, "tiny", EngineSettings(kv_cache_memory=pool_tokens * PER_TOKEN, **options))


def named(adapters: Path, *names: str) -> tuple[NamedAdapter, ...]:
    return tuple(NamedAdapter(name, adapters / name) for name in names)


async def test_eight_adapters_and_the_base_in_one_batch(
    base: Path, oracle: torch.nn.Module, adapters: Path
) -> None:
    """Through a small pool, in chunks, with preemption: every output is that of the merged model."""
    one = replica(base, pool_tokens=30 * BLOCK, lora=named(adapters, *NAMES), max_batch_tokens=96)
    oracles = {name: merged(oracle, adapters / name) for name in NAMES} | {"": oracle}
    rng = random.Random(5)
    shared = [rng.randrange(3, 400) for _ in range(50)]
    jobs = [
        (
            name,
            (shared if rng.random() < 0.5 else [])
            + [rng.randrange(3, 400) for _ in range(rng.randint(1, 40))],
            20,
        )
        for name in [*NAMES, ""] * 2
    ]
    engine = one.engine
    engine.start()
    try:
        outputs = await asyncio.wait_for(
            asyncio.gather(*(collect(engine, prompt, length, adapter=name) for name, prompt, length in jobs)),
            60,
        )
        assert_at_rest(engine)
    finally:
        engine.stop()
    for (name, prompt, length), deltas in zip(jobs, outputs, strict=True):
        assert tokens_of(deltas) == greedy(oracles[name], prompt, length)
    firsts = {tuple(greedy(each, shared, 20)) for each in oracles.values()}
    assert len(firsts) > 6  # adapters that all say the same would prove nothing


async def asked(
    engine: LocalEngine, prompt: list[int], adapter: str, salt: str = ""
) -> tuple[list[int], Any]:
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    stream = engine.submit(Generation(prompt, params, adapter=adapter, cache_salt=salt))
    return [token async for deltas in stream for delta in deltas for token in delta.tokens], stream.ticket


async def test_blocks_are_never_shared_between_adapters_or_with_the_base(base: Path, adapters: Path) -> None:
    engine = replica(base, lora=named(adapters, *NAMES[:2])).engine
    prompt = list(range(10, 10 + 4 * BLOCK + 3))
    engine.start()
    try:
        for adapter in ("", *NAMES[:2]):
            first, ticket = await asked(engine, prompt, adapter)
            assert ticket.cached_tokens == 0
            again, ticket = await asked(engine, prompt, adapter)
            assert ticket.cached_tokens == len(prompt) - 1
            assert again == first
            _, ticket = await asked(engine, prompt, adapter, "salt")
            assert ticket.cached_tokens == 0
        key = engine.adapters()[0].key
        _, ticket = await asked(
            engine, prompt, "", key.decode("latin-1")
        )  # as near as a client's text can come
        assert ticket.cached_tokens == 0
    finally:
        engine.stop()


async def test_a_ticket_names_the_adapter(base: Path, adapters: Path) -> None:
    engine = replica(base, lora=named(adapters, NAMES[2])).engine
    engine.start()
    try:
        _, ticket = await asked(engine, [5, 6, 7], NAMES[2])
        assert (ticket.model, ticket.adapter) == (NAMES[2], NAMES[2])
        assert ticket.decisions[0].startswith(f"adapter {NAMES[2]} (rank 8) over tiny: ")
        _, ticket = await asked(engine, [5, 6, 7], "")
        assert (ticket.model, ticket.adapter) == ("tiny", "")
        with pytest.raises(UnknownModel, match="this server has tiny, ada-2"):
            await asked(engine, [5], "ada-1")
    finally:
        engine.stop()


async def test_adapters_come_and_go_and_no_request_loses_its_own(
    base: Path, oracle: torch.nn.Module, adapters: Path
) -> None:
    engine = replica(base, lora_root=adapters, max_loras=2, max_lora_rank=8).engine
    prompt = list(range(20, 60))
    engine.start()
    try:
        assert engine.adapters() == ()
        await engine.load_adapter("one", NAMES[0])
        await engine.load_adapter("two", str(adapters / NAMES[1]))
        with pytest.raises(AdapterBusy, match="all 2 slots"):
            await engine.load_adapter("three", NAMES[2])
        with pytest.raises(AdapterBusy, match="served already"):
            await engine.load_adapter("one", NAMES[2])
        params = SamplingParams(max_tokens=300, temperature=0.0, ignore_eos=True)
        stream = engine.submit(Generation(prompt, params, adapter="one"))
        with pytest.raises(AdapterBusy, match="1 requests use the adapter 'one'"):
            await engine.unload_adapter("one", 0.0)
        leaving = asyncio.create_task(engine.unload_adapter("one", 60.0))
        await asyncio.sleep(0)
        with pytest.raises(UnknownModel):  # it is going
            await asked(engine, prompt, "one")
        tokens = [token async for deltas in stream for delta in deltas for token in delta.tokens]
        await leaving
        assert tokens == greedy(merged(oracle, adapters / NAMES[0]), prompt, 300)
        await engine.load_adapter("one", NAMES[2])  # other weights under the same name, in the same slot
        found, ticket = await asked(engine, prompt, "one")
        assert found == greedy(merged(oracle, adapters / NAMES[2]), prompt, 8)
        assert ticket.cached_tokens == 0
    finally:
        engine.stop()


async def test_a_slot_is_not_written_under_the_iteration_that_still_reads_it(
    base: Path, adapters: Path
) -> None:
    """Requests that are cancelled at any moment, while their adapters are exchanged."""
    engine = replica(base, lora_root=adapters, max_loras=1, max_lora_rank=8).engine
    params = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    prompt = list(range(30, 70))
    engine.start()
    try:
        seen: dict[str, list[int]] = {}
        for turn in range(12):
            name = NAMES[turn % 2]
            await engine.load_adapter("it", name)
            stream = engine.submit(Generation(prompt, params, adapter="it"))
            await anext(aiter(stream))
            stream.close()
            found, _ = await asked(engine, prompt, "it")
            assert seen.setdefault(name, found) == found
            await engine.unload_adapter("it", 5.0)
        assert seen[NAMES[0]] != seen[NAMES[1]]
        assert_at_rest(engine)
    finally:
        engine.stop()


@pytest.mark.parametrize(
    "path", ["..", "../elsewhere", "/etc", "link", "a\0b", "ada-0/../../x", "far", "x" * 5000]
)
async def test_nothing_is_loaded_from_beside_the_root(
    path: str, base: Path, adapters: Path, tmp_path: Path
) -> None:
    root, outside = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    outside.symlink_to(adapters / NAMES[0])
    (root / "link").symlink_to(adapters / NAMES[0])
    (root / "far").mkdir()
    for file in (adapters / NAMES[0]).iterdir():
        (root / "far" / file.name).symlink_to(file)
    engine = replica(base, lora_root=root, max_loras=1, max_lora_rank=8).engine
    with pytest.raises(AdaptersFixed, match="is no directory below the one that --lora-root names"):
        await engine.load_adapter("it", path)


async def test_without_a_root_nothing_is_loaded(base: Path, adapters: Path) -> None:
    for engine in (replica(base).engine, replica(base, lora=named(adapters, NAMES[0])).engine):
        with pytest.raises(AdaptersFixed, match="--lora-root DIR"):
            await engine.load_adapter("it", NAMES[1])


def test_settings_that_cannot_work(base: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"lora": named(adapters, NAMES[0], NAMES[0])}, "is the name of two models"),
        ({"lora": (NamedAdapter("tiny", adapters / NAMES[0]),)}, "is the name of two models"),
        ({"lora": named(adapters, *NAMES), "max_loras": 7}, "--lora is given 8 times, and --max-loras is 7"),
        (
            {"lora": named(adapters, NAMES[2]), "max_lora_rank": 4},
            "its rank is 8, more than --max-lora-rank 4",
        ),
        ({"lora_root": adapters / "nowhere"}, "is no directory"),
        (
            {"lora_root": adapters, "max_loras": 1024, "max_lora_rank": 4096},
            "lower --max-loras or --max-lora-rank",
        ),
    ]
    monkeypatch.setattr("weighbridge.engine.build.available_memory", lambda: 4 << 30)
    for settings, words in refusals:
        with pytest.raises(BadInput, match=words):
            replica(base, **settings)


def test_a_server_without_adapters_has_nothing_of_them(base: Path) -> None:
    one = replica(base)
    assert one.engine.desk is None
    assert one.decoder.extras is None  # type: ignore[attr-defined]
    assert {type(layer.qkv).__name__ for layer in one.decoder.layers} <= {"DenseLinear", "PackedLinear"}
