"""Upcycled models: the dense model's answers without noise, the skew that was asked for with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.test_decoder import logits_in_chunks
from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from weighbridge.errors import BadInput
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.experts.moe import SparseMlp
from weighbridge.models.experts.routing import RoutingTrace
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import load_decoder
from weighbridge.models.text.tokenizer import load_tokenizer
from weighbridge.models.upcycle import Upcycling, upcycle

TEXT = np.random.default_rng(5).integers(3, 500, 400).tolist()


def greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_in_chunks(decoder, tokens, [len(tokens)])[-1].argmax()))
    return tokens


@pytest.mark.parametrize("family", ["llama", "llama3-rope", "mistral", "qwen3"])
def test_without_noise_it_is_the_dense_model(family: str, tmp_path: Path) -> None:
    dense = make_tiny(family, tmp_path / "dense")
    upcycle(open_checkpoint(dense), tmp_path / "moe", Upcycling(experts=8, top_k=2))
    before, after = (load_decoder(open_checkpoint(path), torch.float32) for path in (dense, tmp_path / "moe"))
    assert after.config.experts is not None
    torch.testing.assert_close(
        logits_in_chunks(after, TEXT[:80], [80]),
        logits_in_chunks(before, TEXT[:80], [80]),
        atol=1e-4,
        rtol=1e-4,
    )
    assert greedy(after, TEXT[:20], 40) == greedy(before, TEXT[:20], 40)


def test_transformers_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    dense = make_tiny("llama3-rope", tmp_path / "dense")
    upcycle(open_checkpoint(dense), tmp_path / "moe", Upcycling(noise=0.5, skew=1.0), TEXT)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = oracle(torch.tensor([TEXT[:60]])).logits[0]
    decoder = load_decoder(open_checkpoint(tmp_path / "moe"), torch.float32)
    torch.testing.assert_close(logits_in_chunks(decoder, TEXT[:60], [60]), expected, atol=1e-4, rtol=1e-4)
    tokenizer = load_tokenizer(tmp_path / "moe")
    assert tokenizer.encode("The quick brown fox") == load_tokenizer(dense).encode("The quick brown fox")


def test_a_gguf_file_brings_its_tokenizer(tmp_path: Path) -> None:
    file = write_gguf(make_tiny("llama", tmp_path / "dense"), tmp_path / "dense.gguf")
    upcycle(open_checkpoint(file), tmp_path / "moe", Upcycling(experts=4, top_k=1))
    assert greedy(load_decoder(open_checkpoint(tmp_path / "moe"), torch.float32), TEXT[:20], 20) == greedy(
        load_decoder(open_checkpoint(file), torch.float32), TEXT[:20], 20
    )
    ours, theirs = load_tokenizer(tmp_path / "moe"), load_tokenizer(file)
    text = "def weigh(request): 東京 emoji \U0001f600"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.eos_token_ids == theirs.eos_token_ids


def shares(path: Path) -> np.ndarray:
    """Probability of each expert, per layer, over the calibration text."""
    decoder = load_decoder(open_checkpoint(path), torch.float32)
    trace = RoutingTrace()
    for layer in decoder.layers:
        assert isinstance(layer.mlp, SparseMlp)
        layer.mlp.trace = trace
    logits_in_chunks(decoder, TEXT, [len(TEXT)])
    return np.stack([np.bincount(ids.ravel(), minlength=8) / len(ids) for _, ids in trace.take()])


def test_noise_and_skew_make_experts_differ(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_tiny("llama", tmp_path / "dense"))
    for skew in (0.0, 1.5):
        upcycle(checkpoint, tmp_path / f"moe{skew}", Upcycling(noise=0.3, skew=skew, seed=3), TEXT)
    even, skewed = shares(tmp_path / "moe0.0"), shares(tmp_path / "moe1.5")
    assert np.allclose(skewed.sum(axis=1), 2.0)
    assert skewed.max(axis=1).mean() > even.max(axis=1).mean()
    assert len({int(row.argmax()) for row in skewed}) > 1  # each layer has hot experts of its own
    weights = open_checkpoint(tmp_path / "moe1.5")
    first, second = (
        weights.tensor(f"model.layers.0.block_sparse_moe.experts.{index}.w1.weight") for index in (0, 1)
    )
    assert not torch.equal(first, second)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_tiny("llama", tmp_path / "dense", num_hidden_layers=1))
    for name in ("one", "two"):
        upcycle(checkpoint, tmp_path / name, Upcycling(experts=2, noise=0.1, seed=9))
    for file in (tmp_path / "one").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Upcycling(experts=1), "--experts"),
        (Upcycling(top_k=9), "--top-k"),
        (Upcycling(noise=float("nan")), "--noise"),
        (Upcycling(skew=-1.0), "--skew"),
        (Upcycling(skew=1.0), "at least 64 tokens"),
    ],
)
def test_bad_options_are_named(options: Upcycling, message: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_tiny("llama", tmp_path / "dense"))
    with pytest.raises(BadInput, match=message):
        upcycle(checkpoint, tmp_path / "moe", options)
    assert not (tmp_path / "moe").exists()


def test_models_that_cannot_be_upcycled_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="qwen2 has no mixture"):
        upcycle(open_checkpoint(make_tiny("qwen2", tmp_path / "qwen2")), tmp_path / "out", Upcycling())
    sparse = open_checkpoint(make_tiny_moe("mixtral", tmp_path / "mixtral"))
    with pytest.raises(BadInput, match="already"):
        upcycle(sparse, tmp_path / "out", Upcycling())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    dense = open_checkpoint(make_tiny("llama", tmp_path / "llama"))
    with pytest.raises(BadInput, match="not empty"):
        upcycle(dense, tmp_path / "full", Upcycling())
