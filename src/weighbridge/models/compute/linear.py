"""Linear layers behind one interface: dense weights by oneDNN or our kernels, few-bit weights by ours."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from weighbridge.models.compute.linear_packed import (
    bfloat16_linear,
    kernels_available,
    multiplies_bfloat16,
    quantized_linear,
)
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized

# Tokens for which oneDNN lays dense weights out. The layout it picks serves every other batch size too.
PACK_BATCH_HINT = 16


class Linear(Protocol):
    """y = x W^T + bias for activations x [tokens, in_features] in the compute dtype, contiguous."""

    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int:
        """Resident bytes of the weights, bias included."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in_features] to [tokens, out_features], both in the compute dtype."""
        ...


class DenseLinear:
    """Float32 or bfloat16 weights, reordered once into the blocked layout that oneDNN multiplies fastest.

    The packed copy is the only one kept, so the caller's tensor can be released. Where oneDNN is missing or
    has no bfloat16 for this CPU, the plain matrix and `F.linear` are used instead.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self.out_features, self.in_features = weight.shape
        self._bias = None if bias is None else bias.to(dtype).contiguous()
        self._packed = _can_pack(dtype)
        self._weight = weight.to(dtype).contiguous()
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, PACK_BATCH_HINT)
        self._element_size = dtype.itemsize

    @property
    def nbytes(self) -> int:
        bias = 0 if self._bias is None else self._bias.nbytes
        return self.out_features * self.in_features * self._element_size + bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed:
            y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return y
        return F.linear(x, self._weight, self._bias)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn or not torch._C._get_mkldnn_enabled():
        return False
    operators = torch.ops.mkldnn
    if not hasattr(operators, "_linear_pointwise") or not hasattr(operators, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def make_linear(
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    quantized: GroupQuantized | None = None,
) -> Linear:
    """Return a linear layer for weight [out, in], or for `quantized` codes of it, with activations in `dtype`.

    Codes are multiplied as they are where our kernels can; where those were not built, or the columns do not
    divide into groups of 32, the codes are expanded and the layer is dense.
    Raises ValueError without any weights.
    """
    if quantized is not None:
        if kernels_available() and quantized.codes.shape[1] % GROUP_SIZE == 0:
            return quantized_linear(quantized, bias, dtype)
        weight = torch.from_numpy(quantized.dequantized())
    if weight is None:
        raise ValueError("make_linear needs a weight or a quantized matrix")
    if dtype == torch.bfloat16 and weight.shape[1] % 2 == 0 and own_bfloat16_wins():
        return bfloat16_linear(weight, bias)
    return DenseLinear(weight, bias, dtype)


def own_bfloat16_wins() -> bool:
    """Whether our bfloat16 kernel is used instead of oneDNN's.

    With AVX512-BF16 it was measured faster at every number of tokens: 1.5x at 1 to 8, where a call of oneDNN
    costs 10 microseconds before it starts, 1.4x at 16, 1.2x at 64, 1.05x at 256. With AMX oneDNN multiplies
    whole tiles, several times faster on prompts, and one layout has to serve both.
    """
    return multiplies_bfloat16() and not torch.cpu._is_amx_tile_supported()
