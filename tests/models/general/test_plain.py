"""Models of transformers whose layers do what ours do: run by our decoder, and only where they really do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models.general.shrunk import save_shrunk
from tests.models.general.test_experts import TOKENS
from tests.models.general.test_few_bits import pack
from tests.models.test_decoder import logits_in_chunks
from tests.tiny import save_random
from weighbridge.models.adapters.shelf import ShelfSize
from weighbridge.models.any_model import open_model
from weighbridge.models.compute.linear_packed import kernels_available
from weighbridge.models.general.decoder import GeneralDecoder
from weighbridge.models.keeping import Quantize

#: What they show: windows, fused matrices, biases, norms of heads, a scale of their attention.
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("Phi3", {"sliding_window": 37}),
    "seed_oss": ("SeedOss", {"head_dim": 16, "attention_bias": True}),
    "ministral": ("Ministral", {"head_dim": 16, "sliding_window": 37}),
    "granite": ("Granite", {"attention_multiplier": 0.1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "cwm": ("Cwm", {"head_dim": 16}),
}
#: Nearly so: a factor somewhere, also one that rounding to bfloat16 would hide.
OTHER: dict[str, dict[str, Any]] = {
    "embedding": {"embedding_multiplier": 1.02},
    "residual": {"residual_multiplier": 0.98},
    "logits": {"logits_scaling": 1.02},
}


def load(directory: Path, dtype: torch.dtype, scheme: Quantize) -> GeneralDecoder:
    decoder = open_model(directory, "transformers").load(
        dtype, scheme, max_model_len=256, report=None, expert_cache=None
    )
    assert isinstance(decoder, GeneralDecoder)
    return decoder


@torch.inference_mode()
def oracle(directory: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


def apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_model_is_run_by_our_decoder(kind: str, tmp_path: Path) -> None:
    save_random(*PLAIN[kind], tmp_path)
    expected = oracle(tmp_path)
    decoder = load(tmp_path, torch.float32, Quantize.NONE)
    assert decoder.own is not None
    assert apart(logits_in_chunks(decoder, TOKENS, [40, 24]), expected) < 1e-5


@pytest.mark.skipif(not kernels_available(), reason="needs the kernels")
def test_its_matrices_are_one_call_of_the_kernels(tmp_path: Path) -> None:
    save_random(*PLAIN["seed_oss"], tmp_path)
    expected = oracle(tmp_path)
    decoder = load(tmp_path, torch.float32, Quantize.INT8)
    assert decoder.own is not None
    assert decoder.own._fused is not None
    assert apart(logits_in_chunks(decoder, TOKENS, [40, 24]), expected) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", OTHER)
def test_a_model_that_does_something_else_stays_as_it_is(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_random("Granite", OTHER[kind], tmp_path)
    expected = oracle(tmp_path)
    decoder = load(tmp_path, dtype, Quantize.NONE)
    assert decoder.own is None
    most = 1e-5 if dtype is torch.float32 else 0.2
    assert apart(logits_in_chunks(decoder, TOKENS, [40, 24]), expected) < most


def test_in_bfloat16_each_layer_is_compared_in_float32(tmp_path: Path) -> None:
    save_random(*PLAIN["phi3"], tmp_path)
    assert load(tmp_path, torch.bfloat16, Quantize.NONE).own is not None


@pytest.mark.parametrize("kind", ["ernie4_5", "glm4", "olmo2", "gemma2", "deepseek_v3"])
def test_other_rotations_norms_and_layers_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    save_shrunk(kind, tmp_path)
    assert load(tmp_path, torch.float32, Quantize.NONE).own is None


def test_files_in_few_bits_are_run_so_too(tmp_path: Path) -> None:
    save_random(*PLAIN["granite"], tmp_path)
    meant = pack(tmp_path, "awq")
    with torch.inference_mode():
        expected = meant(torch.tensor([TOKENS])).logits[0]
    decoder = load(tmp_path, torch.float32, Quantize.AUTO)
    assert decoder.own is not None
    assert apart(logits_in_chunks(decoder, TOKENS, [40, 24]), expected) < 0.1


def test_with_adapters_the_modules_compute(tmp_path: Path) -> None:
    save_random(*PLAIN["granite"], tmp_path)
    model = open_model(tmp_path, "transformers")
    decoder = model.load(torch.float32, Quantize.NONE, max_model_len=256, report=None, expert_cache=None)
    assert isinstance(decoder, GeneralDecoder)
    assert decoder.own is not None
    model.adapt(decoder, ShelfSize(2, 8, model.adaptable()))
    assert decoder.own is None
