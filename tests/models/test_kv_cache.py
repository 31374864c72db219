"""Keys and values in 8 bits: how far a rounded head, an attention and a whole model are from what floats give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.test_decoder import BLOCK, layout
from tests.models.test_kernels import Case, Step, both_kernels
from tests.tiny import make_tiny
from weighbridge.errors import BadInput
from weighbridge.models.compute.kernels import NativeKernels, ReferenceKernels
from weighbridge.models.compute.kernels.native_kernels import native_import_error
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.kv_form import KvForm, kv_form, token_bytes
from weighbridge.models.loader import Quantize, load_decoder

KINDS = [ReferenceKernels] if native_import_error() else [ReferenceKernels, NativeKernels]
ROUNDING = 1 / 254  # half a code, as a part of the largest element of a head

HEADS = st.lists(
    st.one_of(
        st.floats(-(2.0**99), 2.0**99, width=32), st.sampled_from([0.0, 1.0, -1.0, 1e-37, -127.0, 63.5])
    ),
    min_size=6,
    max_size=6,
)


@given(HEADS, HEADS)
@settings(max_examples=60)
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_rounded_by_half_a_code_of_its_largest(
    kind: type, key: list[float], value: list[float]
) -> None:
    kernels = kind()
    cache = kernels.allocate_kv(1, 1, BLOCK, 1, 6, torch.int8)
    qkv = torch.tensor([[0.0] * 6 + key + value])
    kernels.rope_and_write(qkv, cache, 0, layout(0, 1, 1), None, 1, None, None, 1e-5)
    for told, kept in zip((key, value), cache.read(0, np.array([0], np.int32)), strict=True):
        head = torch.tensor(told)
        largest = float(head.abs().max())
        assert float((kept[0, 0] - head).abs().max()) <= ROUNDING * largest * 1.0001 + 1e-37


def attended(
    kernels: ReferenceKernels | NativeKernels, case: Case, qkv: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    step = Step(case)
    cache = kernels.allocate_kv(1, step.num_blocks, case.block_size, case.kv_heads, case.head_dim, dtype)
    spans = [(0, context) for _, context in case.sequences]
    everything, out = qkv.clone(), torch.empty(len(qkv), case.heads * case.head_dim)
    whole = step._layout(case, spans)
    kernels.rope_and_write(everything, cache, 0, whole, None, case.heads, None, None, 1e-5)
    kernels.paged_attention(out, everything, cache, 0, whole, case.heads, case.head_dim**-0.5, case.window)
    return out


@given(
    seed=st.integers(0, 10_000),
    contexts=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    group=st.integers(1, 7),
    head_dim=st.sampled_from([8, 18, 64, 80]),
    block_size=st.sampled_from([16, 32, 64]),
    window=st.sampled_from([0, 5, 40]),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
)
@settings(max_examples=40)
@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_off_by_what_rounding_can_do(
    kind: type,
    seed: int,
    contexts: list[int],
    group: int,
    head_dim: int,
    block_size: int,
    window: int,
    spread: float,
) -> None:
    """A score is off by at most |query|_1 times half a code, a weight by the exponential of twice that."""
    case = Case(2 * group, 2, head_dim, block_size, tuple((n, n) for n in contexts), window)
    qkv = torch.randn(sum(contexts), case.width, generator=torch.Generator().manual_seed(seed)) * spread
    exact = attended(ReferenceKernels(), case, qkv, torch.float32)
    rounded = attended(kind(), case, qkv, torch.int8)
    split = case.heads * head_dim, (case.heads + 2) * head_dim
    query_sum = qkv[:, : split[0]].view(len(qkv), case.heads, head_dim).abs().sum(-1)
    largest_key, largest_value = qkv[:, split[0] : split[1]].abs().max(), qkv[:, split[1] :].abs().max()
    score = query_sum * head_dim**-0.5 * largest_key * ROUNDING * 1.001 + 1e-5
    bound = largest_value * ((2 * score).expm1() + ROUNDING * 1.001) + 1e-5
    off = (rounded - exact).view(len(qkv), case.heads, head_dim).abs().amax(-1)
    assert bool((off <= bound).all())


@both_kernels
def test_a_head_that_is_not_finite_is_not_hidden(kind: type) -> None:
    case = Case(1, 1, 8, 16, ((3, 3),))
    for bad in (float("nan"), float("inf")):
        qkv = torch.ones(3, 24)
        qkv[2, 10] = bad  # of a key
        out = attended(kind(), case, qkv, torch.int8)
        assert bool(out[:2].isfinite().all())
        assert not bool(out[2].isfinite().all())


@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_the_fused_pass_is_the_same_on_any_cache(cached: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit what the kernels give one by one; and near what a cache in floats gives."""
    checkpoint = open_checkpoint(make_tiny("qwen2", tmp_path / "model", num_hidden_layers=2))
    decoder = load_decoder(checkpoint, torch.float32, Quantize.INT8, max_model_len=64)
    tokens, rows = np.arange(5, 45, dtype=np.int32), np.arange(40, dtype=np.int32)
    batch = layout(0, 40, -(-40 // BLOCK))
    logits = [
        run(tokens, batch, decoder.allocate_kv(-(-40 // BLOCK), BLOCK, kind), rows)
        for run, kind in (
            (decoder.forward, cached),
            (decoder._forward, cached),
            (decoder.forward, torch.float32),
        )
    ]
    assert torch.equal(logits[0], logits[1])
    scale = float(logits[2].abs().max())
    assert float((logits[0] - logits[2]).abs().max()) <= 0.05 * scale


@pytest.mark.parametrize("form", list(KvForm))
@pytest.mark.parametrize("head_dim", [16, 18, 80])
@both_kernels
def test_bytes_of_a_token_are_those_of_the_pool(
    kind: type, head_dim: int, form: KvForm, tmp_path: Path
) -> None:
    sizes = {"head_dim": head_dim, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = open_checkpoint(make_tiny("qwen3", tmp_path / "model", **sizes)).config
    pool = kind().allocate_kv(2, 3, 16, config.num_kv_heads, head_dim, getattr(torch, form.value))
    told = token_bytes(config, form) * 3 * 16
    if kind is ReferenceKernels and head_dim % 16:  # which pads nothing
        assert pool.nbytes <= told
    else:
        assert pool.nbytes == told


def test_words_for_the_cache() -> None:
    assert kv_form("auto", "float32") is KvForm.FLOAT32
    assert kv_form("auto", "bfloat16") is KvForm.BFLOAT16
    assert [kv_form(name, "float32") for name in ("f32", "bf16", "int8")] == list(KvForm)
    with pytest.raises(BadInput, match="use f32, bf16, int8 or auto"):
        kv_form("fp8", "float32")
