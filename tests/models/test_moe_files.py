"""Mixtures in other files than per-expert safetensors: GGUF, and the fused tensors transformers 5 keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from tests.models.test_decoder import logits_in_chunks
from tests.models.tiny_moe import MOE_FAMILIES, make_tiny_moe
from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from tests.tiny_moe_gguf import write_moe_gguf
from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.compute.packed_forms import FORM_OF
from weighbridge.models.experts.moe import SparseMlp
from weighbridge.models.experts.moe_grouped import GroupedExperts
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import Quantize, load_decoder

TOKENS = np.random.default_rng(1).integers(3, 400, 80).tolist()
#: Qwen3-MoE without normalised weights cannot be said in GGUF; llama.cpp always normalises it.
IN_GGUF = tuple(family for family in MOE_FAMILIES if family not in ("qwen3-moe-raw", "qwen2-moe-mixed"))


def logits(path: Path, dtype: torch.dtype = torch.float32, scheme: Quantize = Quantize.AUTO) -> torch.Tensor:
    return logits_in_chunks(load_decoder(open_checkpoint(path), dtype, scheme), TOKENS, [50, 1, 29])


# -- GGUF ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=IN_GGUF)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_moe(request.param, tmp_path_factory.mktemp("tiny") / request.param)


@pytest.mark.parametrize("fused", [True, False])
def test_gguf_gives_the_directory_s_logits(family: Path, tmp_path: Path, fused: bool) -> None:
    path = write_moe_gguf(family, tmp_path / "moe.gguf", fused=fused)
    torch.testing.assert_close(logits(path), logits(family), atol=1e-4, rtol=1e-4)


def test_gguf_configuration_equals_the_directory_s(family: Path, tmp_path: Path) -> None:
    theirs = open_checkpoint(family).config
    ours = open_checkpoint(write_moe_gguf(family, tmp_path / "moe.gguf")).config
    assert ours.experts is not None
    assert theirs.experts is not None
    for field in ("count", "top_k", "intermediate_size", "normalize", "sparse_layers"):
        assert getattr(ours.experts, field) == getattr(theirs.experts, field), field
    for field in ("architecture", "hidden_size", "head_dim", "qkv_bias", "qk_norm", "qk_norm_all_heads"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.clip_qkv == theirs.clip_qkv
    assert ours.experts.shared_intermediate_size == theirs.experts.shared_intermediate_size


def test_every_tensor_of_a_gguf_can_be_read(family: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_moe_gguf(family, tmp_path / "moe.gguf"))
    stored = load_file(family / "model.safetensors")
    assert len(checkpoint.names()) == len(stored)
    assert sum(checkpoint.tensor(name).numel() for name in checkpoint.names()) == sum(
        tensor.numel() for tensor in stored.values()
    )


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe"])
def test_codes_of_experts_are_kept(name: str, kind: Kind, tmp_path: Path) -> None:
    """The experts of a quantised file run on the file's own codes, in one call of our kernels."""
    path = write_moe_gguf(make_tiny_moe(name, tmp_path / "moe"), tmp_path / "moe.gguf", kind)
    decoder = load_decoder(open_checkpoint(path), torch.bfloat16)
    mlp = decoder.layers[0].mlp
    assert isinstance(mlp, SparseMlp)
    if not isinstance(mlp.experts, GroupedExperts):
        pytest.skip("our kernels are not available on this machine")
    checkpoint = open_checkpoint(path)
    down = mlp.experts.experts[1].down
    assert isinstance(down, PackedLinear)
    assert down.forms == [FORM_OF[kind]]
    exact = load_decoder(checkpoint, torch.float32, Quantize.NONE).layers[0].mlp
    torch.manual_seed(0)
    x = torch.randn(40, 64).bfloat16()
    similar = torch.nn.functional.cosine_similarity(mlp(x).float(), exact(x.float()), dim=1)
    assert similar.min() > 0.995


def test_cached_experts_of_a_gguf_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
    path = write_moe_gguf(make_tiny_moe("qwen3-moe", tmp_path / "moe"), tmp_path / "moe.gguf", Kind.Q8_0)
    checkpoint = open_checkpoint(path)
    whole = load_decoder(checkpoint, torch.float32)
    total = sum(layer.mlp.experts.nbytes for layer in whole.layers if isinstance(layer.mlp, SparseMlp))
    cached = load_decoder(checkpoint, torch.float32, expert_cache=total // 2)
    assert torch.equal(logits_in_chunks(cached, TOKENS, [80]), logits_in_chunks(whole, TOKENS, [80]))


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"expert_count": 9}, "declares 9 experts, its router knows 8"),
        ({"expert_used_count": 99}, "cannot use 99 of 8"),
        ({"expert_used_count": 0}, "expert_used_count must be a positive whole number, not 0"),
    ],
)
def test_wrong_counts_are_named(counts: dict[str, int], words: str, tmp_path: Path) -> None:
    directory = make_tiny_moe("mixtral", tmp_path / "moe")
    with pytest.raises(BadInput, match=words):
        open_checkpoint(write_moe_gguf(directory, tmp_path / "moe.gguf", **counts))


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    directory = make_tiny_moe("mixtral", tmp_path / "moe")
    stored = load_file(directory / "model.safetensors")
    kept = {
        name: values
        for name, values in stored.items()
        if not name.endswith("1.block_sparse_moe.experts.7.w2.weight")
    }
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    path = write_moe_gguf(directory, tmp_path / "moe.gguf")
    with pytest.raises(BadInput, match=r"'blk\.1\.ffn_down_exps\.weight' .* but the model has 8 experts"):
        open_checkpoint(path)


def test_dense_files_that_claim_experts_are_refused(tmp_path: Path) -> None:
    for family, error, words in (
        ("llama", BadInput, "has no router"),
        ("qwen3", UnsupportedModel, "mixture of 8 experts"),
    ):
        path = write_gguf(
            make_tiny(family, tmp_path / family),
            tmp_path / f"{family}.gguf",
            expert_count=8,
            expert_used_count=2,
        )
        with pytest.raises(error, match=words):
            open_checkpoint(path)


# -- fused safetensors --------------------------------------------------------------------------------------


def expect_the_same(fused: Path, usual: Path) -> None:
    """Every tensor to the bit under its usual name, and the logits."""
    ours, theirs = open_checkpoint(fused), open_checkpoint(usual)
    for name in theirs.names():
        assert torch.equal(ours.tensor(name), theirs.tensor(name)), name
    torch.testing.assert_close(logits(fused), logits(usual), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MOE_FAMILIES)
def test_fused_experts_give_the_same_logits(name: str, tmp_path: Path) -> None:
    """The layout transformers keeps in memory, written as it is."""
    usual = make_tiny_moe(name, tmp_path / "usual")
    model = transformers.AutoModelForCausalLM.from_pretrained(usual, dtype=torch.float32)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    fused = load_file(tmp_path / "fused" / "model.safetensors")
    assert any(key.endswith("mlp.experts.gate_up_proj") for key in fused)
    expect_the_same(tmp_path / "fused", usual)


def test_transposed_fused_experts_are_turned(tmp_path: Path) -> None:
    usual = make_tiny_moe("mixtral", tmp_path / "usual")
    model = transformers.AutoModelForCausalLM.from_pretrained(usual, dtype=torch.float32)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    file = tmp_path / "fused" / "model.safetensors"
    tensors = load_file(file)
    turned = {
        name: tensor.transpose(1, 2).contiguous() if tensor.dim() == 3 else tensor
        for name, tensor in tensors.items()
    }
    save_file(turned, file, metadata={"format": "pt"})
    expect_the_same(tmp_path / "fused", usual)


def test_fused_experts_of_a_wrong_shape_are_named(tmp_path: Path) -> None:
    usual = make_tiny_moe("mixtral", tmp_path / "usual")
    model = transformers.AutoModelForCausalLM.from_pretrained(usual, dtype=torch.float32)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    path = tmp_path / "fused" / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "num_local_experts": 6}))
    with pytest.raises(BadInput, match=r"gate_up_proj.* has shape \[8, 192, 64\], not \[6, 192, 64\]"):
        open_checkpoint(tmp_path / "fused")
