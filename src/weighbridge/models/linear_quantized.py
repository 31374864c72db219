"""Linear layers whose weights stay in 4 or 8 bits, multiplied by our kernels in integers.

Activations are rounded to 8 bits on the way, with a scale per token and 32 columns; the products of a group
are summed exactly in int32 and scaled in float32. `native/linear.h` describes the packed layout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weighbridge.errors import BadInput
from weighbridge.models.quantized import GROUP_SIZE, GroupQuantized

_native: Any
try:
    from weighbridge.models.kernels import _native
except ImportError:  # built without a C++ compiler
    _native = None

ROWS_PER_TILE = 16
_REGISTER_COLUMNS = 4  # neighbouring columns of one row inside a 64-byte register
_FLOAT16_TOP = 2.0**14  # where the largest scale of a matrix is put, so that small ones keep their precision
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def kernels_available() -> bool:
    """Whether the C++ kernels were built, so that `QuantizedLinear` can run."""
    return _native is not None


class QuantizedLinear:
    """y = x W^T + bias for weights in 4 or 8 bits: 0.625 or 1.0625 bytes of memory traffic per weight.

    Raises BadInput for an activation dtype other than float32 and bfloat16, or without the C++ kernels.
    """

    def __init__(self, quantized: GroupQuantized, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        if _native is None:
            message = "quantised layers need the C++ kernels: install where there is a C++ compiler"
            raise BadInput(message, param="quantize")
        if dtype not in _DTYPES:
            raise BadInput(f"quantised layers compute in float32 or bfloat16, not {dtype}", param="dtype")
        self.out_features, self.in_features = quantized.codes.shape
        self.bits = quantized.bits
        self._dtype = dtype
        self._dtype_number = _DTYPES[dtype]
        self._codes = pack_codes(quantized)
        self._scales, multiplier = pack_scales(quantized)
        self._bias = None if bias is None else _pad(bias.float(), self.out_features)
        self._matrix = _native.QuantizedMatrix(
            codes=self._codes.data_ptr(),
            scales=self._scales.data_ptr(),
            bias=0 if self._bias is None else self._bias.data_ptr(),
            multiplier=multiplier,
            bits=self.bits,
            rows=self.out_features,
            columns=self.in_features,
        )

    @property
    def nbytes(self) -> int:
        bias = 0 if self._bias is None else self._bias.nbytes
        return self._codes.nbytes + self._scales.nbytes + bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        tokens, columns = x.shape
        if x.dtype != self._dtype or columns != self.in_features or not x.is_contiguous():
            expected = f"contiguous {self._dtype} [tokens, {self.in_features}]"
            raise ValueError(f"expected {expected}, got {x.dtype} {tuple(x.shape)} with strides {x.stride()}")
        y = torch.empty(tokens, self.out_features, dtype=self._dtype)
        if tokens:
            threads = torch.get_num_threads()
            self._matrix.multiply(y.data_ptr(), x.data_ptr(), self._dtype_number, tokens, threads)
        return y


def pack_codes(quantized: GroupQuantized) -> torch.Tensor:
    """Codes in the order the kernels read them: uint8 [tiles, groups, 4 or 8, 16 rows, 4 columns]."""
    rows, columns = quantized.codes.shape
    tiles, groups = -(-rows // ROWS_PER_TILE), columns // GROUP_SIZE
    codes = np.zeros((tiles * ROWS_PER_TILE, columns), np.uint8)
    codes[:rows] = quantized.codes.view(np.uint8)
    if quantized.bits == 8:
        codes[:rows] ^= 0x80  # the same as adding 128
        codes[rows:] = 0x80
    # Four columns move as one 32-bit word.
    words = codes.view(np.uint32).reshape(tiles, ROWS_PER_TILE, groups, GROUP_SIZE // _REGISTER_COLUMNS)
    words = words.transpose(0, 2, 3, 1)
    if quantized.bits == 4:
        words = words[:, :, :4] | (words[:, :, 4:] << np.uint32(4))
    return _aligned(words)


def pack_scales(quantized: GroupQuantized) -> tuple[torch.Tensor, float]:
    """Scales (and minimums) as float16 [tiles, groups, 1 or 2, 16 rows], and the power of two to multiply by.

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
    """A copy in C order as bytes in memory that torch aligns to 64 bytes."""
    packed = torch.empty(array.nbytes, dtype=torch.uint8)
    packed.numpy().view(array.dtype).reshape(array.shape)[...] = array
    return packed


def _pad(bias: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.nn.functional.pad(bias, (0, -rows % ROWS_PER_TILE)).contiguous()
