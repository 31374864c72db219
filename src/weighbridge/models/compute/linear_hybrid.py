"""Few-bit weights for few tokens, dense weights for many, where tiles multiply them (`keeping.Keeping.copies`)."""

from __future__ import annotations

import torch

from weighbridge.models.compute.linear import DenseLinear, Linear, make_linear
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.files.quantized import GroupQuantized

#: Tokens that go to the dense form. It was measured to be 1.25 times faster from 64 on with 896 columns, from 8 or 16
#: with 1,536 (AMX, two cores); a fixed number, so that what a server keeps and how it rounds does not hang on the noise
#: of its start.
MANY_FROM = 32


class HybridLinear:
    """Two forms of the same matrix in memory; calls of `many_from` tokens and more go to `many`."""

    def __init__(self, few: Linear, many: Linear, many_from: int) -> None:
        self.in_features, self.out_features = few.in_features, few.out_features
        self.few = few
        self._many = many
        self.many_from = many_from

    @property
    def nbytes(self) -> int:
        """Resident bytes of both forms."""
        return self.few.nbytes + self._many.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in_features] to [tokens, out_features], both in the compute dtype."""
        return self._many(x) if x.shape[0] >= self.many_from else self.few(x)


def rounded_linear(
    quantized: GroupQuantized, bias: torch.Tensor | None, dtype: torch.dtype, *, copied: bool
) -> Linear:
    """Return the codes, with their expansion beside them for many tokens where it is `copied`."""
    if copied:
        return hybrid_linear(quantized, bias, dtype)
    return make_linear(None, bias, dtype, quantized)


def hybrid_linear(quantized: GroupQuantized, bias: torch.Tensor | None, dtype: torch.dtype) -> Linear:
    """Return the codes, and from `MANY_FROM` tokens on their expansion to `dtype`.

    Where nothing multiplies the codes, the expansion is all that is kept.
    """
    few = make_linear(None, bias, dtype, quantized)
    if not isinstance(few, PackedLinear):
        return few
    return HybridLinear(few, DenseLinear(torch.from_numpy(quantized.dequantized()), bias, dtype), MANY_FROM)
