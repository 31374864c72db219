"""What adapters add to a linear layer, against float64: any shapes, slots, ranks and rows, by every kernel."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.instruction_sets import each_lower_isa, pass_under
from tests.models.test_fused_forward import BLOCK, BLOCKS_EACH, layout
from tests.tiny import make_tiny
from weighbridge.models.adapters.shelf import AdapterShelf, ShelfSize
from weighbridge.models.any_model import open_model
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.linear_packed import kernels_available
from weighbridge.models.compute.low_rank import NO_SLOT, OutputRows, SlotMatrices, slotted_rows
from weighbridge.models.keeping import Quantize

needs_kernels = pytest.mark.skipif(not kernels_available(), reason="installed without a C++ compiler")
#: Largest difference, in units of the sizes that are summed. bfloat16 rounds the result once; torch each step of it.
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 2**-8 if kernels_available() else 2**-6}


def native() -> Any:
    return importlib.import_module("weighbridge.models.compute.kernels._native")


@dataclass(frozen=True)
class Layer:
    """Matrices in slots beside what was put there: [slot][part], each (D, transpose of U), or None."""

    columns: int
    outputs: int
    parts: list[OutputRows]
    pairs: list[list[tuple[torch.Tensor, torch.Tensor] | None]]
    matrices: SlotMatrices


def layer_of(
    columns: int,
    widths: Sequence[int],
    ranks: Sequence[Sequence[int]],
    dtype: torch.dtype,
    gap: int = 0,
    room: int = 0,
    seed: int = 0,
) -> Layer:
    """Parts of `widths`, `gap` rows apart; `ranks` [slot][part], 0 for none; `room` for more ranks than the largest."""
    generator = torch.Generator().manual_seed(seed)
    starts = list(accumulate((width + gap for width in widths), initial=gap))
    parts = [OutputRows(start, width) for start, width in zip(starts, widths, strict=False)]
    most = max(max(own) for own in ranks) + room
    matrices = SlotMatrices(columns, starts[-1], parts, len(ranks), max(most, 1), dtype)
    pairs: list[list[tuple[torch.Tensor, torch.Tensor] | None]] = []
    for slot, own in enumerate(ranks):
        pairs.append([])
        for index, (part, rank) in enumerate(zip(parts, own, strict=True)):
            if rank == 0:
                pairs[-1].append(None)
                continue
            down = (torch.randn(rank, columns, generator=generator) / columns**0.5).to(dtype)
            up = torch.randn(rank, part.count, generator=generator).to(dtype)
            matrices.put(slot, index, down, up)
            pairs[-1].append((down, up))
    return Layer(columns, starts[-1], parts, pairs, matrices)


def activations(rows: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_float64(layer: Layer, y: torch.Tensor, x: torch.Tensor, slots: Sequence[int]) -> tuple[Any, Any]:
    """Return what y becomes, and the sum of the sizes of all that is added up in it."""
    wanted, sizes, inputs = y.double(), y.double().abs(), x.double()
    for row, slot in enumerate(slots):
        for part, pair in zip(layer.parts, layer.pairs[slot] if slot >= 0 else (), strict=False):
            if pair is not None:
                down, up = pair[0].double(), pair[1].double()
                own = slice(part.start, part.start + part.count)
                wanted[row, own] += (down @ inputs[row]) @ up
                sizes[row, own] += (down.abs() @ inputs[row].abs()) @ up.abs()
    return wanted, sizes


def check(layer: Layer, slots: Sequence[int], dtype: torch.dtype) -> None:
    x, y = activations(len(slots), layer.columns, dtype, 1), activations(len(slots), layer.outputs, dtype, 2)
    before = y.clone()
    rows = slotted_rows(np.array(slots, np.int32), len(layer.pairs))
    assert (rows is None) == all(slot == NO_SLOT for slot in slots)
    if rows is not None:
        layer.matrices.add(y, x, rows)
    wanted, sizes = in_float64(layer, before, x, slots)
    assert ((y.double() - wanted).abs() <= ERRORS[dtype] * sizes + 1e-30).all()
    untouched = [row for row, slot in enumerate(slots) if slot == NO_SLOT]
    assert torch.equal(y[untouched], before[untouched])


@st.composite
def layers(draw: st.DrawFn, dtype: torch.dtype) -> tuple[Layer, list[int]]:
    """A layer of one to three parts with a few slots, and runs of rows that go through them."""
    columns = draw(st.one_of(st.integers(1, 70), st.sampled_from([128, 896])))
    widths = draw(
        st.lists(st.one_of(st.integers(1, 40), st.sampled_from([64, 272, 520])), min_size=1, max_size=3)
    )
    rank = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 16, 33])
    same = st.lists(rank, min_size=len(widths), max_size=len(widths))
    ranks = draw(st.lists(same, min_size=1, max_size=5))
    runs = st.tuples(st.integers(NO_SLOT, len(ranks) - 1), st.sampled_from([1, 1, 1, 2, 3, 5, 8, 65, 130]))
    slots = [slot for slot, count in draw(st.lists(runs, min_size=1, max_size=7)) for _ in range(count)]
    gap, room = draw(st.integers(0, 3)), draw(st.integers(0, 9))
    return layer_of(columns, widths, ranks, dtype, gap, room, draw(st.integers(0, 9))), slots


@pytest.mark.parametrize("dtype", list(ERRORS))
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_batch_is_the_sum_of_its_rows(dtype: torch.dtype, data: st.DataObject) -> None:
    layer, slots = data.draw(layers(dtype))
    check(layer, slots, dtype)


@pytest.mark.parametrize("dtype", list(ERRORS))
def test_a_large_layer_is_shared_by_threads(dtype: torch.dtype) -> None:
    """Of the sizes of a model: single rows of eight slots, and a prompt that is cut into runs."""
    layer = layer_of(896, (896, 128, 128), [[16, 16, 16]] * 8, dtype)
    check(layer, [*range(8), *range(8), *[3] * 150, NO_SLOT], dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", list(ERRORS))
def test_what_a_row_becomes_hangs_neither_on_its_neighbours_nor_on_threads(dtype: torch.dtype) -> None:
    layer = layer_of(896, (896, 128), [[16, 7], [3, 0], [0, 8]], dtype)
    slots = [1, 0, 0, 2, *[0] * 70, 1, 2, 1]
    x, y = activations(len(slots), 896, dtype, 1), activations(len(slots), layer.outputs, dtype, 2)
    together, threads = y.clone(), torch.get_num_threads()
    for count in (threads, 1):
        torch.set_num_threads(count)
        try:
            together = y.clone()
            rows = slotted_rows(np.array(slots, np.int32), 3)
            assert rows is not None
            layer.matrices.add(together, x, rows)
        finally:
            torch.set_num_threads(threads)
        for row in (0, 1, 2, 3, 40, len(slots) - 1):
            alone, one = y[row : row + 1].clone(), slotted_rows(np.array(slots[row : row + 1], np.int32), 3)
            assert one is not None
            layer.matrices.add(alone, x[row : row + 1].clone(), one)
            assert torch.equal(alone[0], together[row])


def test_without_kernels_torch_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_KERNELS", "reference")
    layer = layer_of(70, (40, 17), [[3, 8], [0, 1], [5, 0]], torch.float32, gap=2)
    check(layer, [2, 0, NO_SLOT, 1, 0, 0], torch.float32)


def test_another_pair_in_a_slot_that_was_cleared_is_alone_there() -> None:
    layer = layer_of(40, (32, 20), [[8, 8], [4, 4]], torch.float32)
    layer.matrices.clear(0)
    layer.pairs[0] = [None, None]
    check(layer, [0, 1, 0], torch.float32)
    down, up = torch.ones(2, 40), torch.ones(2, 20)
    layer.matrices.put(0, 1, down, up)
    layer.pairs[0] = [None, (down, up)]
    check(layer, [0, 1, 0], torch.float32)


def test_what_overflows_in_one_adapter_stays_in_its_rows() -> None:
    """Its weights are finite, what they make of a row is not; the rows beside it are what they would be without it."""
    layer = layer_of(12, (6, 2, 4), [[1, 1, 1], [0, 0, 2], [3, 3, 3], [4, 4, 0]], torch.float32)
    layer.matrices.clear(2)
    for index, part in enumerate(layer.parts):
        layer.matrices.put(2, index, torch.full((3, 12), 3e38), torch.ones(3, part.count))
    slots = [0, 2, 1, NO_SLOT, 3]
    x, y = torch.full((5, 12), 7.0), torch.zeros(5, 12)
    rows = slotted_rows(np.array(slots, np.int32), 4)
    assert rows is not None
    layer.matrices.add(y, x, rows)
    assert not y[1].isfinite().all()
    wanted, _ = in_float64(layer, torch.zeros(5, 12), x, [0, NO_SLOT, 1, NO_SLOT, 3])
    others = [0, 2, 3, 4]
    torch.testing.assert_close(y[others].double(), wanted[others], atol=1e-4, rtol=1e-4)


# -- in the fused pass --------------------------------------------------------------------------------------


def adapted_decoder(path: Path, dtype: torch.dtype, slots: int) -> tuple[Decoder, AdapterShelf]:
    """A decoder of the fused pass with random matrices of several ranks in its slots, none in some of the layers."""
    opened = open_model(path)
    decoder = opened.load(dtype, Quantize.INT8, max_model_len=256, report=None, expert_cache=None)
    assert isinstance(decoder, Decoder)
    shelf = opened.adapt(decoder, ShelfSize(slots, 9, opened.adaptable()))
    generator = torch.Generator().manual_seed(3)
    for number, (parts, matrices) in enumerate(shelf._layers):
        for slot in range(slots):
            for index, part in enumerate(parts):
                rank = (1, 4, 0, 9, 6)[(number + slot + index) % 5]
                if rank:
                    columns = opened.adaptable()[part.module].in_features
                    down = torch.randn(rank, columns, generator=generator) / columns**0.5
                    up = torch.randn(rank, part.rows, generator=generator) * 0.2
                    matrices.put(slot, index, down.to(dtype), up.to(dtype))
    return decoder, shelf


@needs_kernels
@pytest.mark.parametrize("dtype", list(ERRORS))
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_fused_pass_equals_layer_by_layer_to_the_bit(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """A prompt, padding and decodes; logits of some rows alone, whose adapters the last layer goes on with."""
    make_tiny(kind, tmp_path)
    decoder, shelf = adapted_decoder(tmp_path, dtype, 3)
    assert decoder._fused is not None
    assert decoder._fused.max_tokens > 30
    owners, counts = [2, NO_SLOT, 0, 2], [20, 3, 1, 1]
    ids = np.arange(3, 30, dtype=np.int32)
    for rows in ([0, 3, 19, 22, 23, 24], [20], [], list(range(25))):
        made = []
        for run in (decoder.forward, decoder._forward):
            shelf.begin(owners, counts, len(ids))
            cache = decoder.allocate_kv(4 * BLOCKS_EACH, BLOCK)
            made.append(run(ids, layout([0] * 4, counts), cache, np.array(rows, np.int32)))
        assert torch.equal(*made)
    shelf.begin([NO_SLOT] * 4, counts, len(ids))
    base = decoder.forward(
        ids,
        layout([0] * 4, counts),
        decoder.allocate_kv(4 * BLOCKS_EACH, BLOCK),
        np.arange(25, dtype=np.int32),
    )
    assert torch.equal(base[20:23], made[0][20:23])  # the rows of no adapter
    assert not torch.equal(base[:20], made[0][:20])


# -- what the kernels are handed ----------------------------------------------------------------------------


@needs_kernels
def test_memory_of_another_size_is_refused() -> None:
    def memory(numbers: int) -> tuple[int, int]:
        kept.append(torch.zeros(numbers))
        return kept[-1].data_ptr(), kept[-1].nbytes

    kept: list[torch.Tensor] = []
    sizes = [2 * 4 * 10, 2 * 4 * 6, 2]
    for wrong in range(3):
        matrices = native().LowRank(10, 8, 2, 4, 0)
        given = [memory(size + (index == wrong)) for index, size in enumerate(sizes)]
        with pytest.raises(ValueError, match="takes"):
            matrices.add_part(2, 6, *given)
    for start, rows in ((3, 6), (-1, 6), (0, 9), (0, 0)):
        with pytest.raises(ValueError, match="outside the rows"):
            native().LowRank(10, 8, 2, 4, 0).add_part(start, rows, *map(memory, sizes))
    for none in ((0, 8, 2, 4, 0), (10, 8, 0, 4, 0), (10, 8, 2, -1, 0), (10, 8, 2, 4, 2)):
        with pytest.raises(ValueError, match="adapters"):
            native().LowRank(*none)
    matrices = native().LowRank(10, 8, 2, 4, 0)
    for _ in range(3):
        matrices.add_part(2, 6, *map(memory, sizes))
    with pytest.raises(ValueError, match="too many parts"):
        matrices.add_part(2, 6, *map(memory, sizes))
    one = np.array([1], np.int32)
    with pytest.raises(ValueError, match="slots that the layer does not have"):
        matrices.add(memory(8), memory(10), native().RowGroups(one, 3), 1)
    for y, x in ((9, 10), (8, 9)):
        with pytest.raises(ValueError, match="takes"):
            matrices.add(memory(y), memory(x), native().RowGroups(one, 2), 1)
    with pytest.raises(IndexError, match=r"slot 1 is outside 0\.\.0"):
        native().RowGroups(one, 1)


@needs_kernels
def test_the_pass_refuses_adapters_of_another_shape_or_batch(tmp_path: Path) -> None:
    make_tiny("qwen2", tmp_path)
    decoder, shelf = adapted_decoder(tmp_path, torch.float32, 2)
    ids, rows = np.arange(3, 8, dtype=np.int32), np.array([4], np.int32)
    for slots, count, error in ((2, 4, "another batch"), (3, 5, "does not have")):
        shelf.rows = slotted_rows(np.zeros(count, np.int32), slots)
        with pytest.raises(ValueError, match=error):
            decoder.forward(ids, layout([0], [5]), decoder.allocate_kv(BLOCKS_EACH, BLOCK), rows)


@needs_kernels
@pytest.mark.proof
@pytest.mark.timeout(600)
@each_lower_isa
def test_every_instruction_set_passes_the_same_tests(isa: str) -> None:
    pass_under(isa, __file__, "sum_of_its_rows or threads or to_the_bit", seconds=500)
