"""Experts of general models on our packed matrices: the same numbers, fewer bytes, and their own gates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models.general.shrunk import save_shrunk
from tests.models.test_decoder import logits_in_chunks
from weighbridge.errors import UnsupportedModel
from weighbridge.models.any_model import open_model
from weighbridge.models.compute.linear_packed import kernels_available
from weighbridge.models.experts.moe import ListedExperts
from weighbridge.models.experts.moe_grouped import GroupedExperts
from weighbridge.models.general.packed.experts import OwnExperts, find_experts
from weighbridge.models.general.refusals import WAY_OUT
from weighbridge.models.keeping import Quantize

TOKENS = list(range(5, 69))
#: The usual gate; matrices across, with biases and a gate of its own; no gate; a norm behind; shared ones beside.
KINDS = ["qwen3_moe", "gpt_oss", "nemotron_h", "deepseek_v3", "granitemoe", "olmoe"]


def load(path: Path, scheme: Quantize, dtype: torch.dtype = torch.float32) -> Any:
    return open_model(path, "transformers").load(
        dtype, scheme, max_model_len=512, report=None, expert_cache=None
    )


def experts_of(decoder: Any) -> list[Any]:
    return [module.experts for module in decoder.model.modules() if isinstance(module, OwnExperts)]


@pytest.fixture(params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    transformers.logging.disable_progress_bar()
    return save_shrunk(request.param, tmp_path)


@torch.inference_mode()
def expected(path: Path) -> torch.Tensor:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    logits: torch.Tensor = oracle(torch.tensor([TOKENS])).logits[0]
    return logits


def chunks_of(decoder: Any) -> list[int]:
    return [64] if decoder.by_token or decoder.config.states else [40, 24]


@pytest.mark.parametrize(("scheme", "most"), [(Quantize.NONE, 1e-5), (Quantize.INT8, 0.25)])
def test_experts_are_ours(
    saved: Path, scheme: Quantize, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = expected(saved)
    with caplog.at_level(logging.INFO, "weighbridge.models"):
        decoder = load(saved, scheme)
    assert experts_of(decoder)
    assert not list(find_experts(decoder.model))
    stacked = [name for name, one in decoder.model.named_parameters() if one.dim() == 3 and "expert" in name]
    assert not stacked, "the matrices that were packed are still there"
    if scheme is Quantize.INT8:
        assert "experts: rounded to int8" in caplog.text
    if decoder.config.states:  # one cache a slot, which the whole engine gives out: see judged.py
        return
    actual = logits_in_chunks(decoder, TOKENS, chunks_of(decoder))
    apart = (actual - wanted).norm(dim=1) / wanted.norm(dim=1)
    # The median: where two experts are nearly alike to a router, rounding sends a token to the other.
    assert float(apart.median()) < most


@pytest.mark.skipif(not kernels_available(), reason="without kernels experts run one by one")
def test_the_usual_gate_runs_in_one_call_and_others_keep_theirs(tmp_path: Path) -> None:
    usual = load(save_shrunk("qwen3_moe", tmp_path / "usual"), Quantize.INT8)
    own = load(save_shrunk("gpt_oss", tmp_path / "own"), Quantize.INT8)
    assert {type(one) for one in experts_of(usual)} == {GroupedExperts}
    assert {type(one) for one in experts_of(own)} == {ListedExperts}


def test_a_gate_that_cuts_off_is_not_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers do not tell the two apart."""
    path = save_shrunk("qwen3_moe", tmp_path)
    module = transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts

    def cut(self: Any, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate.clamp(max=7.0)) * up.clamp(-7.0, 7.0)

    monkeypatch.setattr(module, "_apply_gate", cut)
    assert {type(one) for one in experts_of(load(path, Quantize.INT8))} == {ListedExperts}


def test_few_bits_are_few_bytes(tmp_path: Path) -> None:
    path = save_shrunk("qwen3_moe", tmp_path)
    dense, few = (
        sum(one.nbytes for one in experts_of(load(path, scheme))) for scheme in (Quantize.NONE, Quantize.INT4)
    )
    assert few < 0.2 * dense


def test_a_model_that_looks_at_its_experts_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_shrunk("deepseek_v3", tmp_path)
    block = transformers.models.deepseek_v3.modeling_deepseek_v3.DeepseekV3MoE
    forward = block.forward
    monkeypatch.setattr(
        block, "forward", lambda self, x: forward(self, x.to(self.experts.gate_up_proj.dtype))
    )
    with pytest.raises(UnsupportedModel, match="does not run with its weights packed") as error:
        load(path, Quantize.NONE)
    assert WAY_OUT in str(error.value)
