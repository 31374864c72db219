"""The expert cache: the numbers of a model that is wholly resident; the policy against a plain LRU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.test_decoder import logits_in_chunks
from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from weighbridge.errors import BadInput
from weighbridge.models.checkpoint import open_checkpoint
from weighbridge.models.decoder import Decoder
from weighbridge.models.expert_cache import CachedExperts, ExpertCache
from weighbridge.models.expert_policy import HeatAware, PlainLru
from weighbridge.models.loader import Quantize, load_decoder
from weighbridge.models.moe import SparseMlp

LAYERS, EXPERTS, TOP_K = 12, 8, 2
Routing = list[list[list[int]]]  # step, layer, experts used


def routing(kind: str, steps: int, batch: int, seed: int = 0) -> Routing:
    """Synthetic loads: even or skewed tokens, drifting popularity, texts that stick to their experts, a cycle."""
    rng = np.random.default_rng(seed)
    skew = {"uniform": 0.0, "mild": 0.4, "skewed": 1.0, "drifting": 1.0}.get(kind, 0.8)
    ranks = np.arange(1.0, EXPERTS + 1)

    def popularity() -> np.ndarray:
        return np.stack([rng.permutation(-skew * np.log(ranks)) for _ in range(LAYERS)])

    logits, previous = popularity(), np.zeros((LAYERS, EXPERTS))
    recorded: Routing = []
    for step in range(steps):
        if kind == "cycle":
            recorded.append([[(step + i) % EXPERTS for i in range(TOP_K)]] * LAYERS)
            continue
        if kind == "drifting" and step % 100 == 99:
            logits = popularity()
        if kind == "topics" and step % 40 == 39:
            logits = rng.gumbel(size=(LAYERS, EXPERTS)) * 2.0
        noise = rng.gumbel(size=(batch, LAYERS, EXPERTS)) + logits + 2.0 * (kind == "sticky") * previous
        top = np.argpartition(-noise, TOP_K - 1, axis=2)[:, :, :TOP_K]
        used = [sorted(set(top[:, layer].ravel().tolist())) for layer in range(LAYERS)]
        previous = np.zeros((LAYERS, EXPERTS))
        for layer, experts in enumerate(used):
            previous[layer, experts] = 1.0
        recorded.append(used)
    return recorded


def visits(recorded: Routing) -> Iterator[tuple[int, list[int]]]:
    return ((layer, experts) for step in recorded for layer, experts in enumerate(step))


def hit_rates(recorded: Routing, capacity: int) -> tuple[float, float]:
    """Of the heat-aware policy and of a plain LRU."""
    policy, lru = HeatAware(LAYERS, EXPERTS, capacity), PlainLru(capacity)
    hits = lru_hits = uses = 0
    for layer, experts in visits(recorded):
        hits += sum((layer, expert) in policy.resident for expert in experts)
        policy.visit(layer, experts)
        assert len(policy.resident) <= capacity
        lru_hits += lru.visit(layer, experts)[0]
        uses += len(experts)
    return hits / uses, lru_hits / uses


@pytest.mark.parametrize("kind", ["uniform", "mild", "skewed", "drifting", "topics", "sticky", "cycle"])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_heat_aware_hits_at_least_what_an_lru_does(kind: str, batch: int, share: float) -> None:
    ours, lru = hit_rates(routing(kind, 300, batch), int(share * LAYERS * EXPERTS))
    assert ours >= lru
    if kind == "skewed" and batch > 1:
        assert ours > lru + 0.07


def test_the_policy_counts_what_an_lru_would_hit() -> None:
    recorded, capacity = routing("skewed", 100, 1), 30
    policy = HeatAware(LAYERS, EXPERTS, capacity)
    lru = PlainLru(capacity, sorted(policy.resident))
    expected = sum(lru.visit(layer, experts)[0] for layer, experts in visits(recorded))
    for layer, experts in visits(recorded):
        policy.visit(layer, experts)
    assert policy.lru_hits == expected


# -- the cache behind the decoder ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mixtral", "qwen2-moe-mixed", "olmoe"])
def sparse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(request.param, tmp_path_factory.mktemp("tiny") / request.param)


def cache_of(decoder: Decoder) -> ExpertCache:
    caches = {
        layer.mlp.experts.cache
        for layer in decoder.layers
        if isinstance(layer.mlp, SparseMlp) and isinstance(layer.mlp.experts, CachedExperts)
    }
    (cache,) = caches
    return cache


def all_expert_bytes(decoder: Decoder) -> int:
    return sum(layer.mlp.experts.nbytes for layer in decoder.layers if isinstance(layer.mlp, SparseMlp))


@pytest.mark.parametrize(
    ("dtype", "scheme"),
    [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int4"), ("float32", "int8")],
)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
def test_output_is_identical(
    sparse: Path, dtype: str, scheme: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    checkpoint, compute = open_checkpoint(sparse), getattr(torch, dtype)
    whole = load_decoder(checkpoint, compute, Quantize(scheme))
    experts = whole.config.experts
    assert experts is not None
    number = experts.num_sparse_layers * experts.count
    memory = all_expert_bytes(whole) * (max(1, int(number * share)) + 2 * experts.top_k) // number
    if memory >= all_expert_bytes(whole):
        pytest.skip("with those in flight, all experts of so small a model fit")
    cached = load_decoder(checkpoint, compute, Quantize(scheme), expert_cache=memory)
    tokens = np.random.default_rng(2).integers(3, 400, 60).tolist()
    for chunks in ([60], [20] + [1] * 40):
        expected = logits_in_chunks(whole, tokens, chunks)
        assert torch.equal(logits_in_chunks(cached, tokens, chunks), expected)
    report = cache_of(cached).report()
    assert report["hits"] + report["misses"] == report["uses"] > 0
    assert report["misses"] > 0
    assert report["prefetched"] <= report["misses"]
    assert report["hits"] >= report["lru_hits"]
    assert cache_of(cached).nbytes <= memory
    assert report["resident_bytes"] <= memory


def test_the_packed_file_is_written_once(
    sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    checkpoint = open_checkpoint(sparse)
    memory = all_expert_bytes(load_decoder(checkpoint, torch.float32, Quantize.INT8)) * 9 // 10
    load_decoder(checkpoint, torch.float32, Quantize.INT8, expert_cache=memory)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "experts").rglob("*.safetensors")}
    assert files
    load_decoder(checkpoint, torch.float32, Quantize.INT8, expert_cache=memory)
    again = {file: file.stat().st_mtime_ns for file in (tmp_path / "experts").rglob("*.safetensors")}
    assert again == files


def test_sizes_that_cannot_work_are_named(sparse: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sparse)
    with pytest.raises(BadInput, match="needs at least"):
        load_decoder(checkpoint, torch.float32, expert_cache=1000)
    dense = open_checkpoint(make_tiny("llama", tmp_path / "d"))
    with pytest.raises(BadInput, match="dense"):
        load_decoder(dense, torch.float32, expert_cache=1 << 20)
    whole = load_decoder(checkpoint, torch.float32, expert_cache=1 << 40)  # all fit: nothing is cached
    assert not any(
        isinstance(layer.mlp, SparseMlp) and isinstance(layer.mlp.experts, CachedExperts)
        for layer in whole.layers
    )
