"""The fused pass against the same kernels called one by one: equal to the last bit, whatever the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_tiny
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.fused_forward import fuse
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.compute.kernels.api import BatchLayout, States
from weighbridge.models.compute.kernels.native_kernels import NativeKernels
from weighbridge.models.compute.linear_hybrid import HybridLinear
from weighbridge.models.compute.linear_packed import multiplies_bfloat16
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.loader import Quantize, load_decoder

BLOCK, BLOCKS_EACH = 16, 8

pytestmark = pytest.mark.skipif(
    not isinstance(load_kernels(), NativeKernels), reason="built without the C++ kernels"
)


def decoder(path: Path, dtype: torch.dtype, scheme: Quantize) -> Decoder:
    return load_decoder(open_checkpoint(path), dtype, scheme)


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def fused(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Windows, biases, head norms and layers without rotation: what the families differ in."""
    path = tmp_path_factory.mktemp("tiny") / request.param
    make_tiny(request.param, path)
    return decoder(path, torch.float32, Quantize.INT8)


def states_of(model: Decoder, rows: list[int]) -> States:
    """Room for the states of `rows`, filled with what no model computes."""
    out = torch.full((len(rows), model.config.hidden_size), -7.0, dtype=model.dtype)
    return States(np.array(rows, np.int32), out)


def layout(starts: list[int], counts: list[int]) -> BatchLayout:
    first, count = np.array(starts), np.array(counts)
    query_starts = np.zeros(len(starts) + 1, np.int32)
    np.cumsum(count, out=query_starts[1:])
    owner = np.repeat(np.arange(len(starts)), count)
    positions = (np.arange(query_starts[-1]) - query_starts[owner] + first[owner]).astype(np.int32)
    tables = np.arange(len(starts) * BLOCKS_EACH, dtype=np.int32)[::-1].reshape(len(starts), BLOCKS_EACH)
    slots = tables[owner, positions // BLOCK] * BLOCK + positions % BLOCK
    return BatchLayout(
        positions, slots.astype(np.int32), query_starts, (first + count).astype(np.int32), tables.copy()
    )


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_equals_kernel_by_kernel(fused: Decoder, data: st.DataObject) -> None:
    """Several iterations on one cache: prompt chunks, decodes, padding; logits of any rows, states of any of those."""
    assert fused._fused is not None
    sequences = data.draw(st.integers(1, 4))
    caches = [fused.allocate_kv(sequences * BLOCKS_EACH, BLOCK) for _ in range(2)]
    lengths = [0] * sequences
    for _ in range(data.draw(st.integers(1, 4))):
        counts = [data.draw(st.integers(1, min(40, BLOCK * BLOCKS_EACH - length) or 1)) for length in lengths]
        batch = layout(lengths, counts)
        lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
        real = sum(counts)
        padding = data.draw(st.integers(0, 3))
        ids = np.array(
            data.draw(
                st.lists(st.integers(0, 63), min_size=real + padding, max_size=real + padding),
            ),
            np.int32,
        )
        rows = np.array(sorted(data.draw(st.sets(st.integers(0, real - 1)))), np.int32)
        kept = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5)) if len(rows) else []
        states = [states_of(fused, kept) for _ in range(2)]
        with torch.inference_mode():
            ours = fused._fused(ids, batch, caches[0], rows, states[0])
            theirs = fused._forward(ids, batch, caches[1], rows, states[1] if kept else None)
        assert torch.equal(ours, theirs)
        assert torch.equal(states[0].out, states[1].out)
        if max(lengths) + 40 > BLOCK * BLOCKS_EACH:
            break


@pytest.mark.parametrize("tokens", [383, 384, 385, 900])
def test_long_prompts_go_through_the_feed_forward_in_parts(tmp_path: Path, tokens: int) -> None:
    """Each part reads and writes its own rows of what is as long as the batch."""
    make_tiny("qwen2", tmp_path)
    model = decoder(tmp_path, torch.float32, Quantize.INT8)
    assert model._fused is not None
    sequences = -(-tokens // (BLOCK * BLOCKS_EACH))
    counts = [tokens // sequences + (n < tokens % sequences) for n in range(sequences)]
    caches = [model.allocate_kv(sequences * BLOCKS_EACH, BLOCK) for _ in range(2)]
    batch = layout([0] * sequences, counts)
    ids = np.random.default_rng(tokens).integers(0, 64, tokens, np.int32)
    rows = np.arange(0, tokens, 7, dtype=np.int32)
    states = [states_of(model, list(range(len(rows)))) for _ in range(2)]
    with torch.inference_mode():
        for select in (rows, np.arange(tokens, dtype=np.int32)):
            ours = model._fused(ids, batch, caches[0], select, states[0])
            assert torch.equal(ours, model._forward(ids, batch, caches[1], select, states[1]))
            assert torch.equal(states[0].out, states[1].out)


@pytest.mark.parametrize("scheme", [Quantize.NONE, Quantize.INT4, Quantize.INT8])
def test_every_weight_format(tmp_path: Path, scheme: Quantize) -> None:
    if scheme is Quantize.NONE and not multiplies_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16, so dense layers are oneDNN's")
    make_tiny("llama", tmp_path)
    model = decoder(tmp_path, torch.bfloat16, scheme)
    if scheme is Quantize.NONE and model._fused is None:
        pytest.skip("dense layers are oneDNN's on this CPU")
    assert model._fused is not None
    caches = [model.allocate_kv(BLOCKS_EACH, BLOCK) for _ in range(2)]
    ids, rows = np.arange(30, dtype=np.int32), np.array([3, 29], np.int32)
    states = [states_of(model, [0, 1]) for _ in range(2)]
    with torch.inference_mode():
        ours = model._fused(ids, layout([0], [30]), caches[0], rows, states[0])
        assert torch.equal(ours, model._forward(ids, layout([0], [30]), caches[1], rows, states[1]))
        assert torch.equal(states[0].out, states[1].out)
        assert torch.equal(model.weights.lm_head(states[0].out), ours)  # it is what the output matrix read


def test_dense_float32_layers_are_not_fused(tmp_path: Path) -> None:
    make_tiny("llama", tmp_path)
    assert decoder(tmp_path, torch.float32, Quantize.NONE)._fused is None


def test_a_dense_form_of_the_output_matrix_counts_sampled_rows_alone(tmp_path: Path) -> None:
    """A long prompt has one row that is sampled: it does not leave the fused pass for the output matrix's sake."""
    make_tiny("llama", tmp_path)
    model = decoder(tmp_path, torch.float32, Quantize.INT8)
    cache = model.allocate_kv(BLOCKS_EACH, BLOCK)
    head = model.weights.lm_head
    weights = replace(model.weights, lm_head=HybridLinear(head, head, many_from=4))
    fused = fuse(weights, model.kernels)
    assert fused is not None
    assert fused.serves(1000, 3, cache)
    assert not fused.serves(4, 4, cache)
    weights.layers[1].qkv = HybridLinear(weights.layers[1].qkv, weights.layers[1].qkv, many_from=64)
    fused = fuse(weights, model.kernels)
    assert fused is not None
    assert fused.serves(63, 3, cache)
    assert not fused.serves(64, 3, cache)


def test_bad_batches_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_tiny("llama", tmp_path)
    model = decoder(tmp_path, torch.float32, Quantize.INT8)
    cache, rows = model.allocate_kv(BLOCKS_EACH, BLOCK), np.array([0], np.int32)
    batch = layout([0], [2])
    with pytest.raises(IndexError, match="token id"):
        model.forward(np.array([1, 10_000_000], np.int32), batch, cache, rows)
    with pytest.raises(IndexError, match="row"):
        model.forward(np.array([1, 2], np.int32), batch, cache, np.array([2], np.int32))
    with pytest.raises(IndexError, match="state row"):
        model.forward(np.array([1, 2], np.int32), batch, cache, rows, states_of(model, [1]))
    batch.slots[0] = BLOCKS_EACH * BLOCK
    with pytest.raises(IndexError, match="slot"):
        model.forward(np.array([1, 2], np.int32), batch, cache, rows)
    smaller = model.kernels.allocate_kv(1, BLOCKS_EACH, BLOCK, 1, 8, torch.float32)
    with pytest.raises(ValueError, match="another model"):
        model.forward(np.array([1, 2], np.int32), layout([0], [2]), smaller, rows)
