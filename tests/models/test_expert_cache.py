"""The expert cache behind the decoder: the numbers of a model that is wholly resident."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.test_decoder import logits_in_chunks
from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from weighbridge.errors import BadInput
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.experts.cache import CachedExperts, ExpertCache
from weighbridge.models.experts.moe import SparseMlp
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import Quantize, load_decoder


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
