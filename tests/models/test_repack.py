"""Codes of GGUF files in the kernels' own order: what they stand for, and their products, against the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.instruction_sets import each_lower_isa, pass_under
from weighbridge.models.compute.kernels.pages import WeightMemory
from weighbridge.models.compute.linear_packed import PackedLinear, kernels_available
from weighbridge.models.compute.packed_forms import FORM_OF, Form
from weighbridge.models.compute.repack import NotFiniteError, repacked
from weighbridge.models.files.gguf import SUPPORTED
from weighbridge.models.files.quantized import StoredBlocks

pytestmark = pytest.mark.skipif(not kernels_available(), reason="the C++ kernels are not built")

QUANTISED = [kind for kind in SUPPORTED if kind not in (Kind.F32, Kind.F16, Kind.BF16)]

#: Where the float16 numbers of a block are, so that random bytes make no NaN of them.
HALVES = {
    **dict.fromkeys((Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.IQ4_NL, Kind.IQ4_XS), (0,)),
    **dict.fromkeys((Kind.Q4_1, Kind.Q5_1, Kind.Q4_K, Kind.Q5_K), (0, 2)),
    **{Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q6_K: (208,)},
    **dict.fromkeys((Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ1_S), (0,)),
    **{Kind.TQ1_0: (52,), Kind.TQ2_0: (64,), Kind.MXFP4: (), Kind.IQ1_M: ()},
}


def random_blocks(kind: Kind, rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Bytes as they come, with scales of the size that weights have."""
    generator = np.random.default_rng(seed)
    block_columns, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (rows * columns // block_columns, block_bytes)).astype(np.uint8)
    for offset in HALVES[kind]:
        scales = generator.uniform(-2e-3, 2e-3, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    if kind == Kind.MXFP4:
        blocks[:, 0] = generator.integers(110, 124, len(blocks))
    if kind == Kind.IQ1_M:  # its scale is spread over the high halves of four bytes
        blocks[:, 49::2] = np.array([0, 0, 0x60, 0x10], np.uint8)[: blocks[:, 49::2].shape[1]] | (
            blocks[:, 49::2] & 15
        )
    return blocks.reshape(rows, -1)


def stored(kind: Kind, rows: int, columns: int, seed: int = 0, order: object = None) -> StoredBlocks:
    rows_of = np.arange(rows) if order is None else np.asarray(order)
    return StoredBlocks(kind, random_blocks(kind, rows, columns, seed), rows_of, lambda: None)


def linear_of(matrices: list[StoredBlocks], dtype: torch.dtype = torch.float32) -> PackedLinear:
    return PackedLinear(repacked(matrices), None, dtype)


def read(linear: PackedLinear, rows: int) -> npt.NDArray[np.float32]:
    out = torch.empty(rows, linear.in_features)
    linear.read_rows(out, np.arange(rows, dtype=np.int32))
    return out.numpy()


def dequantized(matrices: list[StoredBlocks]) -> npt.NDArray[np.float32]:
    return np.concatenate([gguf.quants.dequantize(one.blocks, one.kind)[one.order] for one in matrices])


def product(weights: npt.NDArray[np.float32], x: torch.Tensor) -> npt.NDArray[np.float64]:
    """What the kernels compute: activations rounded to 8 bits per token and 32 columns, all else exact."""
    tokens, columns = x.shape
    values = x.float().numpy().reshape(tokens, columns // 32, 32)
    largest = np.abs(values).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded = np.rint(values * inverse) * (largest / np.float32(127)).astype(np.float64)
    return rounded.reshape(tokens, columns) @ weights.T.astype(np.float64)


def relative_error(y: torch.Tensor, expected: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(y.double().numpy() - expected) / (np.linalg.norm(expected) + 1e-30))


@pytest.mark.parametrize("kind", QUANTISED)
def test_codes_stand_for_what_the_reference_reads(kind: Kind) -> None:
    for rows in (1, 16, 37):
        matrix = stored(kind, rows, 512, seed=rows)
        ours, theirs = read(linear_of([matrix]), rows), dequantized([matrix])
        if kind in FORM_OF:
            np.testing.assert_allclose(ours, theirs, rtol=2e-7, atol=1e-9)
            continue
        # No form of its own: eight bits of the largest in its group, and the rounding of that scale.
        largest = np.abs(theirs).reshape(rows, -1, 32).max(axis=2, keepdims=True).repeat(32, axis=2)
        assert (
            np.abs(ours - theirs) <= 0.0045 * largest.reshape(theirs.shape) + 4e-6
        ).all()  # float16 of the smallest


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_for_every_number_of_tokens(kind: Kind, dtype: torch.dtype) -> None:
    matrix = stored(kind, 37, 512)
    linear = linear_of([matrix], dtype)
    x = torch.randn(33, 512, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = product(read(linear, 37), x)
    for tokens in range(1, 34):
        error = relative_error(linear(x[:tokens]), expected[:tokens])
        assert error < (3e-6 if dtype is torch.float32 else 5e-3), tokens


@pytest.mark.parametrize("kind", FORM_OF)
@pytest.mark.parametrize("extreme", [0x00, 0xFF])
def test_extreme_codes_stay_inside_integers(kind: Kind, extreme: int) -> None:
    matrix = stored(kind, 16, 256)
    keep = [
        matrix.blocks.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])[:, at : at + 2].copy()
        for at in HALVES[kind]
    ]
    blocks = np.full_like(matrix.blocks, extreme).reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    for at, halves in zip(HALVES[kind], keep, strict=True):
        blocks[:, at : at + 2] = halves
    if kind == Kind.MXFP4:
        blocks[:, 0] = 120
    matrix = StoredBlocks(kind, blocks.reshape(matrix.blocks.shape), matrix.order, lambda: None)
    linear = linear_of([matrix])
    # Alike, and by the half, the pair and the column: partial sums are largest where the signs of a group turn once.
    signs = [np.ones(256), *(1 - 2 * (np.arange(256) // period % 2) for period in (16, 4, 2, 1))]
    for sign in (*signs, *(-one for one in signs)):
        x = torch.from_numpy(np.tile(sign, (5, 1)) * 1e4).float()
        expected = product(read(linear, 16), x)
        scale = np.abs(product(np.abs(read(linear, 16)), x.abs())).max() + 1e-30
        for tokens in (1, 5):
            y = linear(x[:tokens]).double().numpy()
            assert np.abs(y - expected[:tokens]).max() / scale < 2e-6


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from([Kind.Q4_K, Kind.Q6_K, Kind.Q5_0, Kind.Q8_0, Kind.Q4_0]), min_size=1, max_size=3
    ),
    rows=st.lists(st.integers(1, 50), min_size=3, max_size=3),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 9),
)
def test_matrices_of_different_types_are_one_layer(
    kinds: list[Kind], rows: list[int], tokens: int, seed: int
) -> None:
    """Queries, keys and values in three types, in any order of rows, with a bias."""
    generator = np.random.default_rng(seed)
    matrices = [
        stored(kind, count, 256, seed + at, generator.permutation(count))
        for at, (kind, count) in enumerate(zip(kinds, rows, strict=False))
    ]
    weights = dequantized(matrices)
    bias = torch.randn(len(weights), generator=torch.Generator().manual_seed(seed))
    linear = PackedLinear(repacked(matrices), bias, torch.float32)
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(seed + 1))
    np.testing.assert_allclose(read(linear, len(weights)), weights, rtol=2e-7, atol=1e-9)
    assert relative_error(linear(x), product(weights, x) + bias.double().numpy()) < 3e-6


def test_neighbours_in_one_form_are_one_piece_of_memory() -> None:
    alike = [stored(Kind.Q4_K, 32, 256), stored(Kind.Q4_K, 5, 256, 1), stored(Kind.Q4_K, 5, 256, 2)]
    assert [part.rows for part in repacked(alike)] == [37, 5]
    mixed = [stored(Kind.Q4_K, 32, 256), stored(Kind.Q6_K, 16, 256)]
    assert [part.form for part in repacked(mixed)] == [Form.Q4_K, Form.Q6_K]


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (Kind.Q4_0, 4.5),
        (Kind.Q5_0, 5.5),
        (Kind.Q8_0, 8.5),
        (Kind.Q6_K, 6.5625),
        (Kind.Q4_K, 4.625),
        (Kind.Q5_K, 5.625),
    ],
)
def test_no_form_takes_more_room_than_the_file(kind: Kind, bits: float) -> None:
    """Scales of Q4_K and Q5_K take a byte where the file has six bits: 3 % of it."""
    [part] = repacked([stored(kind, 64, 512)])
    assert part.nbytes * 8 == 64 * 512 * bits


@pytest.mark.parametrize("kind", [kind for kind in FORM_OF if HALVES[kind]])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_scale_that_is_no_number_is_found(kind: Kind, bad: float) -> None:
    for at in HALVES[kind]:
        good, matrix = stored(kind, 16, 512), stored(kind, 19, 512)
        size = gguf.GGML_QUANT_SIZES[kind][1]
        matrix.blocks.reshape(-1, size)[-1, at : at + 2] = np.array([bad], np.float16).view(np.uint8)
        with pytest.raises(NotFiniteError) as caught:
            repacked([good, matrix])
        assert caught.value.index == 1


@each_lower_isa
def test_every_instruction_set_multiplies_the_same(isa: str) -> None:
    pass_under(isa, __file__, "products or extreme or different or stand")


def test_matrices_lie_side_by_side_and_apart() -> None:
    memory = WeightMemory()
    pieces = [memory.take(size) for size in (1, 100, 64, 70 << 20, 3)]
    for piece, value in zip(pieces, range(1, 6), strict=True):
        piece.fill_(value)
    assert [piece.data_ptr() % 64 for piece in pieces] == [0] * 5
    assert pieces[1].data_ptr() - pieces[0].data_ptr() == 64
    for piece, value in zip(pieces, range(1, 6), strict=True):
        assert bool((piece == value).all())
