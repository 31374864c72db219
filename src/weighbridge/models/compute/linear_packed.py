"""Linear layers on our own kernels: weights in 4 to 8 bits, or bfloat16, in tiles of 16 rows.

Against weights in few bits, activations are rounded to 8 bits on the way, with a scale per token and 32
columns; the products of a group are summed exactly in int32 and scaled in float32. bfloat16 weights are
multiplied as they are and summed in float32. `native/linear_forms.h` describes the packed layout.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.kernels.pages import weight_memory
from weighbridge.models.compute.memory import memory_of
from weighbridge.models.compute.packed_forms import Form
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized

#: What `native/linear_forms.h` describes; the kernels say which one they were built for.
LAYOUT = 2

try:
    _native: Any = importlib.import_module("weighbridge.models.compute.kernels._native")
except ImportError:  # built without a C++ compiler
    _native = None
if _native is not None and getattr(_native, "PACKED_LAYOUT", 1) != LAYOUT:
    logging.getLogger("weighbridge.models").warning(
        "The compiled kernels are older than the sources: weights are expanded, which is slow. Reinstall weighbridge."
    )
    _native = None

ROWS_PER_TILE = 16
_WORD_COLUMNS = 4  # neighbouring codes of one row inside a 64-byte register
_FLOAT16_TOP = 2.0**14  # where the largest scale of a matrix is put, so that small ones keep their precision
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def kernels_available() -> bool:
    """Whether the C++ kernels were built, and WEIGHBRIDGE_KERNELS does not ask for torch alone."""
    return _native is not None and os.environ.get("WEIGHBRIDGE_KERNELS") != "reference"


def multiplies_bfloat16() -> bool:
    """Whether the kernels of this CPU multiply bfloat16, so that `bfloat16_linear` works (AVX512-BF16)."""
    return kernels_available() and bool(_native.multiplies_bfloat16())


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows of a matrix in one form. codes and scales are bytes; weight = multiplier * what the form says."""

    form: Form
    rows: int
    columns: int
    codes: torch.Tensor
    scales: torch.Tensor | None
    multiplier: float = 1.0

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def matrix(self) -> Any:
        """Return the kernels' view: addresses only, so these rows must stay alive."""
        memory = map(memory_of, (self.codes, self.scales, None))
        return _native.PackedMatrix(*memory, self.multiplier, int(self.form), self.rows, self.columns)


class PackedLinear:
    """y = x W^T + bias on packed weights, whose rows may come in several forms."""

    def __init__(self, parts: Sequence[PackedRows], bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self.parts = parts  # the matrix holds addresses only: these keep the memory alive
        self.out_features, self.in_features = sum(part.rows for part in parts), parts[0].columns
        self.dtype = dtype
        self._dtype_number = _DTYPES[dtype]
        self.bias = None if bias is None else bias.float().contiguous()
        matrix = parts[0].matrix()
        for part in parts[1:]:
            matrix = matrix.stacked(part.matrix())
        self.matrix = matrix.with_bias(memory_of(self.bias))

    @property
    def forms(self) -> list[Form]:
        return [part.form for part in self.parts]

    @property
    def nbytes(self) -> int:
        """Resident bytes of the weights, scales and bias included."""
        return sum(part.nbytes for part in self.parts) + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in_features] to [tokens, out_features], both in the compute dtype."""
        tokens, columns = x.shape
        if x.dtype != self.dtype or columns != self.in_features or not x.is_contiguous():
            expected = f"contiguous {self.dtype} [tokens, {self.in_features}]"
            raise ValueError(f"expected {expected}, got {x.dtype} {tuple(x.shape)} with strides {x.stride()}")
        y = torch.empty(tokens, self.out_features, dtype=self.dtype)
        if tokens:
            threads = torch.get_num_threads()
            self.matrix.multiply(y.data_ptr(), x.data_ptr(), self._dtype_number, tokens, threads)
        return y

    def read_rows(self, out: torch.Tensor, ids: npt.NDArray[np.int32]) -> None:
        """Write the rows `ids` as floats: an embedding is looked up in the codes. out float32 [ids, in_features]."""
        self.matrix.read_rows(memory_of(out, torch.float32), ids, torch.get_num_threads())


def quantized_linear(
    quantized: GroupQuantized, bias: torch.Tensor | None, dtype: torch.dtype
) -> PackedLinear:
    """Pack weights of our own rounding: 0.625 or 1.0625 bytes of memory traffic per weight.

    Raises BadInput for a compute dtype other than float32 and bfloat16, or without the C++ kernels.
    """
    check_packable(dtype)
    rows, columns = quantized.codes.shape
    scales, multiplier = pack_scales(quantized)
    form = Form.Q4_1 if quantized.bits == 4 else Form.Q8_0
    return PackedLinear(
        [PackedRows(form, rows, columns, pack_codes(quantized), scales, multiplier)], bias, dtype
    )


def check_packable(dtype: torch.dtype) -> None:
    """Raise BadInput for a compute dtype other than float32 and bfloat16, or without the C++ kernels."""
    if _native is None:
        message = "quantised layers need the C++ kernels: install where there is a C++ compiler"
        raise BadInput(message, param="quantize")
    if dtype not in _DTYPES:
        raise BadInput(f"quantised layers compute in float32 or bfloat16, not {dtype}", param="dtype")


def bfloat16_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
    """Pack bfloat16 weights [out, in] for bfloat16 activations. Needs `multiplies_bfloat16` and an even `in`."""
    rows, columns = weight.shape
    tiles = -(-rows // ROWS_PER_TILE)
    padded = weight.to(torch.bfloat16).contiguous()
    if rows % ROWS_PER_TILE:
        padded = torch.nn.functional.pad(padded, (0, 0, 0, -rows % ROWS_PER_TILE))
    pairs = padded.view(torch.int32).numpy().reshape(tiles, ROWS_PER_TILE, columns // 2)
    codes = _aligned(pairs.transpose(0, 2, 1))
    return PackedLinear([PackedRows(Form.BFLOAT16, rows, columns, codes, None)], bias, torch.bfloat16)


def pack_codes(quantized: GroupQuantized) -> torch.Tensor:
    """Return the codes in the order the kernels read them: uint8 [tiles, groups, 4 or 8, 16 rows, 4 columns]."""
    rows, columns = quantized.codes.shape
    tiles, groups = -(-rows // ROWS_PER_TILE), columns // GROUP_SIZE
    codes = np.zeros((tiles * ROWS_PER_TILE, columns), np.uint8)
    codes[:rows] = quantized.codes.view(np.uint8)
    if quantized.bits == 8:
        codes ^= 0x80  # the same as adding 128
    # Four columns move as one 32-bit word.
    words = codes.view(np.uint32).reshape(tiles, ROWS_PER_TILE, groups, GROUP_SIZE // _WORD_COLUMNS)
    words = words.transpose(0, 2, 3, 1)
    if quantized.bits == 4:
        words = words[:, :, :4] | (words[:, :, 4:] << np.uint32(4))
    return _aligned(words)


def pack_scales(quantized: GroupQuantized) -> tuple[torch.Tensor, float]:
    """Return scales (and minimums) as float16 [tiles, groups, 1 or 2, 16 rows], and the power of two to multiply by.

    float16 keeps 11 bits, and all that GGUF stores; the power of two keeps weights out of its subnormals.
    """
    parts = [quantized.scales] if quantized.minimums is None else [quantized.scales, quantized.minimums]
    rows, groups = quantized.scales.shape
    tiles = -(-rows // ROWS_PER_TILE)
    largest = max(float(np.abs(part).max()) for part in parts)
    exponent = math.floor(math.log2(_FLOAT16_TOP / largest)) if largest > 0 else 0
    halves = np.zeros((tiles * ROWS_PER_TILE, groups, len(parts)), np.float16)
    for index, part in enumerate(parts):
        halves[:rows, :, index] = np.ldexp(part, exponent)
    packed = halves.reshape(tiles, ROWS_PER_TILE, groups, len(parts)).transpose(0, 2, 3, 1)
    return _aligned(packed), math.ldexp(1.0, -exponent)


def _aligned(array: npt.NDArray[np.generic]) -> torch.Tensor:
    """Return a copy in C order, as bytes in memory that is aligned to 64."""
    packed = weight_memory.take(array.nbytes)
    packed.numpy().view(array.dtype).reshape(array.shape)[...] = array
    return packed
