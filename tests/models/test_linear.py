"""Linear layers: dense against float64, quantised against the same integer arithmetic in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.models.instruction_sets import each_lower_isa, pass_under
from weighbridge.errors import BadInput
from weighbridge.models.compute.linear import DenseLinear, make_linear
from weighbridge.models.compute.linear_hybrid import MANY_FROM, HybridLinear, hybrid_linear
from weighbridge.models.compute.linear_packed import (
    bfloat16_linear,
    kernels_available,
    multiplies_bfloat16,
    pack_scales,
    quantized_linear,
)
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized, quantize

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}  # bfloat16 outputs have 8 bits

needs_kernels = pytest.mark.skipif(not kernels_available(), reason="the C++ kernels are not built")


def random_matrix(rows: int, columns: int, bits: int, seed: int = 0) -> GroupQuantized:
    generator = np.random.default_rng(seed)
    scales = generator.uniform(1e-4, 1e-2, (rows, columns // GROUP_SIZE)).astype(np.float32)
    if bits == 8:
        codes = generator.integers(-128, 128, (rows, columns)).astype(np.int8)
        return GroupQuantized(8, codes, scales, None)
    minimums = (scales * generator.uniform(-15, 2, scales.shape)).astype(np.float32)
    return GroupQuantized(4, generator.integers(0, 16, (rows, columns)).astype(np.uint8), scales, minimums)


def integer_product(matrix: GroupQuantized, x: torch.Tensor) -> npt.NDArray[np.float64]:
    """What the kernels compute: activations rounded per token and group, integer sums, then the scales."""
    rows, columns = matrix.codes.shape
    tokens, groups = x.shape[0], columns // GROUP_SIZE
    values = x.float().numpy().reshape(tokens, groups, GROUP_SIZE)
    largest = np.abs(values).max(axis=2)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded = np.rint(values * inverse[:, :, None]).astype(np.int64)
    token_scales = (largest / np.float32(127)).astype(np.float64)

    codes = matrix.codes.astype(np.int64).reshape(rows, groups, GROUP_SIZE)
    sums = np.einsum("ngk,tgk->tng", codes, rounded)
    y = np.einsum("tng,ng,tg->tn", sums.astype(np.float64), as_float16(matrix.scales, matrix), token_scales)
    if matrix.minimums is not None:
        weighted = rounded.sum(axis=2) * token_scales
        y += np.einsum("ng,tg->tn", as_float16(matrix.minimums, matrix), weighted)
    return y


def as_float16(values: npt.NDArray[np.float32], matrix: GroupQuantized) -> npt.NDArray[np.float64]:
    _, multiplier = pack_scales(matrix)
    return (values / np.float32(multiplier)).astype(np.float16).astype(np.float64) * multiplier


def relative_error(y: torch.Tensor, expected: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(y.double().numpy() - expected) / (np.linalg.norm(expected) + 1e-30))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_dense_equals_the_plain_product(dtype: torch.dtype, with_bias: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(77, 130), torch.randn(77) if with_bias else None
    layer = make_linear(weight, bias, dtype)
    for tokens in (0, 1, 3, 16, 65):
        x = torch.randn(tokens, 130).to(dtype)
        y = layer(x)
        expected = x.double() @ weight.to(dtype).double().T
        if bias is not None:
            expected += bias.to(dtype).double()
        assert y.dtype == dtype
        assert y.shape == (tokens, 77)
        assert relative_error(y, expected.numpy()) < TOLERANCE[dtype]


def test_dense_without_onednn_uses_the_plain_matrix() -> None:
    weight, x = torch.randn(9, 5), torch.randn(4, 5)
    with torch.backends.mkldnn.flags(enabled=False):
        layer = make_linear(weight, None, torch.float32)
        torch.testing.assert_close(layer(x), x @ weight.T)
    assert layer.nbytes == weight.nbytes


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantized_equals_integer_arithmetic_for_every_token_count(bits: int, dtype: torch.dtype) -> None:
    matrix = random_matrix(37, 96, bits)
    bias = torch.randn(37, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer = quantized_linear(matrix, bias, dtype)
    x = torch.randn(70, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = integer_product(matrix, x) + bias.double().numpy()
    for tokens in range(71):
        assert relative_error(layer(x[:tokens]), expected[:tokens]) < TOLERANCE[dtype]


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (16, 64), (17, 32), (960, 576), (33, 9728)])
def test_quantized_shapes(bits: int, rows: int, columns: int) -> None:
    matrix = random_matrix(rows, columns, bits)
    layer = quantized_linear(matrix, None, torch.float32)
    for tokens in (1, 5, 13):
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens))
        assert relative_error(layer(x), integer_product(matrix, x)) < TOLERANCE[torch.float32]


@needs_kernels
def test_more_tokens_than_one_block_equal_one_by_one() -> None:
    matrix = random_matrix(40, 2048, 4)
    layer = quantized_linear(matrix, None, torch.float32)
    x = torch.randn(500, 2048, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(layer(x), torch.cat([layer(row[None]) for row in x]), rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(threads: int) -> None:
    layer = quantized_linear(random_matrix(100, 256, 8), None, torch.float32)
    x = torch.randn(50, 256, generator=torch.Generator().manual_seed(4))
    before, expected = torch.get_num_threads(), layer(x)
    try:
        torch.set_num_threads(threads)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize(("bits", "bound"), [(4, 0.08), (8, 0.015)])
def test_quantized_is_close_to_the_float_product(bits: int, bound: float) -> None:
    torch.manual_seed(5)
    weight, x = torch.randn(576, 576) * 0.05, torch.randn(20, 576)
    x[:, 7] *= 50.0  # an outlier channel, as real activations have: only its own group may lose precision
    matrix = quantize(weight, bits)
    y = make_linear(None, None, torch.float32, quantized=matrix)(x)
    assert relative_error(y, (x.double() @ weight.double().T).numpy()) < bound
    assert relative_error(y, x.double().numpy() @ matrix.dequantized().T.astype(np.float64)) < 0.015


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_values_stay_inside_integers(bits: int) -> None:
    matrix = random_matrix(16, 64, bits)
    matrix.codes[...] = 15 if bits == 4 else -128
    for sign in (1.0, -1.0):
        x = torch.full((3, 64), sign * 1e4)
        y = quantized_linear(matrix, None, torch.float32)(x)
        assert relative_error(y, integer_product(matrix, x)) < 2e-6


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no kernels for bfloat16 weights on this CPU")
@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (37, 96), (130, 1538)])
def test_own_bfloat16_equals_the_plain_product(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(8)
    weight, bias = torch.randn(rows, columns, generator=generator), torch.randn(rows, generator=generator)
    layer = bfloat16_linear(weight, bias)
    x = torch.randn(70, columns, generator=generator).bfloat16()
    expected = (x.double() @ weight.bfloat16().double().T + bias.double()).numpy()
    for tokens in range(71):
        y = layer(x[:tokens])
        assert y.dtype == torch.bfloat16
        assert relative_error(y, expected[:tokens]) < TOLERANCE[torch.bfloat16]
    assert layer.nbytes <= (rows + 15) * (2 * columns + 4)


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no kernels for bfloat16 weights on this CPU")
def test_own_bfloat16_is_no_less_exact_than_onednn() -> None:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(64, 1536, generator=generator).bfloat16()
    x = torch.randn(30, 1536, generator=generator).bfloat16()
    expected = (x.double() @ weight.double().T).numpy()
    own = relative_error(bfloat16_linear(weight, None)(x), expected)
    assert own <= 1.05 * relative_error(DenseLinear(weight, None, torch.bfloat16)(x), expected)


def test_odd_columns_still_give_a_layer() -> None:
    weight, x = torch.randn(8, 33).bfloat16(), torch.randn(3, 33).bfloat16()
    y = make_linear(weight, None, torch.bfloat16)(x)
    assert relative_error(y, (x.double() @ weight.double().T).numpy()) < TOLERANCE[torch.bfloat16]


@needs_kernels
def test_zeros_and_nan() -> None:
    layer = quantized_linear(random_matrix(16, 64, 4), None, torch.float32)
    x = torch.zeros(2, 64)
    assert not layer(x).any()
    x[1, 40] = torch.nan
    y = layer(x)
    assert not y[0].any()
    assert y[1].isnan().all()


@needs_kernels
@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_scales_keep_their_precision_at_any_magnitude(factor: float) -> None:
    base = random_matrix(20, 64, 8)
    matrix = GroupQuantized(8, base.codes, base.scales * np.float32(factor), None)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(6))
    y = quantized_linear(matrix, None, torch.float32)(x)
    assert relative_error(y, x.double().numpy() @ matrix.dequantized().T.astype(np.float64)) < 0.02


@needs_kernels
def test_quantized_layers_are_small() -> None:
    rows, columns = 640, 1024
    four = quantized_linear(random_matrix(rows, columns, 4), None, torch.bfloat16)
    eight = quantized_linear(random_matrix(rows, columns, 8), None, torch.bfloat16)
    assert four.nbytes == rows * columns * 5 // 8
    assert eight.nbytes == rows * columns * 17 // 16


@needs_kernels
def test_wrong_activations_are_refused() -> None:
    layer = quantized_linear(random_matrix(16, 64, 4), None, torch.bfloat16)
    for x in (torch.zeros(2, 64), torch.zeros(2, 32).bfloat16(), torch.zeros(64, 2).bfloat16().T):
        with pytest.raises(ValueError, match="expected contiguous"):
            layer(x)


def test_quantize_refuses_what_it_cannot_do() -> None:
    with pytest.raises(BadInput, match="4 or 8 bits"):
        quantize(torch.zeros(4, 64), 5)
    with pytest.raises(BadInput, match="multiple of 32"):
        quantize(torch.zeros(4, 50), 4)


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.074), (8, 0.006)])
def test_quantize_rounds_well(bits: int, bound: float) -> None:
    weight = torch.randn(200, 320, generator=torch.Generator().manual_seed(7))
    matrix = quantize(weight, bits)
    assert relative_error(torch.from_numpy(matrix.dequantized()), weight.double().numpy()) < bound


def test_quantize_of_many_rows_equals_quantize_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(11))
    whole = quantize(weight, 4).dequantized()
    monkeypatch.setattr("weighbridge.models.files.quantized.ELEMENTS_AT_ONCE", 64 * 7)
    np.testing.assert_array_equal(quantize(weight, 4).dequantized(), whole)


def test_reference_kernels_expand_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_KERNELS", "reference")
    layer = make_linear(None, None, torch.float32, quantized=random_matrix(16, 64, 4))
    assert isinstance(layer, DenseLinear)
    assert isinstance(make_linear(torch.zeros(4, 4), None, torch.bfloat16), DenseLinear)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_keeps_constant_and_zero_groups(bits: int) -> None:
    weight = torch.zeros(3, 64)
    weight[1], weight[2, :32] = 0.25, -3.0
    np.testing.assert_allclose(quantize(weight, bits).dequantized(), weight.numpy(), rtol=1e-6)


class Recorder:
    """Spends `fixed` operations and `repeats` per token, and remembers how many tokens it saw."""

    in_features = out_features = 4
    nbytes = 10

    def __init__(self, repeats: int, fixed: int) -> None:
        self.repeats, self.fixed, self.seen = repeats, fixed, [0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape[0])
        for _ in range(self.fixed + self.repeats * x.shape[0]):
            torch.empty(1)
        return x


def test_hybrid_switches_at_its_token_count() -> None:
    few, many = Recorder(0, 0), Recorder(0, 0)
    layer = HybridLinear(few, many, 8)
    for tokens in (1, 7, 8, 9):
        layer(torch.zeros(tokens, 4))
    assert few.seen[1:] == [1, 7]
    assert many.seen[1:] == [8, 9]
    assert layer.nbytes == 20


@needs_kernels
def test_a_hybrid_layer_computes_the_same_on_both_sides() -> None:
    matrix = random_matrix(48, 64, 8)
    layer = hybrid_linear(matrix, None, torch.float32)
    assert isinstance(layer, HybridLinear)
    x = torch.randn(MANY_FROM + 2, 64, generator=torch.Generator().manual_seed(10))
    exact = x.double().numpy() @ matrix.dequantized().T.astype(np.float64)
    errors = [relative_error(layer(x[:n]), exact[:n]) for n in (MANY_FROM - 1, MANY_FROM, MANY_FROM + 2)]
    assert errors[0] < 0.02
    assert max(errors[1:]) < 1e-5 < errors[0]


def test_without_kernels_a_matrix_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_KERNELS", "reference")
    matrix = random_matrix(48, 64, 8)
    assert isinstance(hybrid_linear(matrix, None, torch.float32), DenseLinear)


@needs_kernels
@each_lower_isa
def test_every_instruction_set_passes_the_same_tests(isa: str) -> None:
    pass_under(isa, __file__, "integer_arithmetic or integers")
