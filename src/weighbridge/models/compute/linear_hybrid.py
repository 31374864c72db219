"""Few-bit weights for few tokens, dense weights for many, where a measurement says that it pays."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from weighbridge.models.compute.linear import DenseLinear, Linear, make_linear
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.files.quantized import GROUP_SIZE, GroupQuantized

TOKEN_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_ROUNDS = 5

#: How many times faster than the codes the dense form must be at some number of tokens to be worth its memory.
WORTH_KEEPING = 1.25


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


def hybrid_linear(
    quantized: GroupQuantized, bias: torch.Tensor | None, dtype: torch.dtype, many_from: int | None
) -> Linear:
    """Return the codes, and from `many_from` tokens on their expansion to `dtype`; None: the codes alone.

    Where the expansion wins from the first token on, or nothing multiplies the codes, it is all that is kept.
    """
    few = make_linear(None, bias, dtype, quantized)
    if many_from is None or not isinstance(few, PackedLinear):
        return few
    dense = DenseLinear(torch.from_numpy(quantized.dequantized()), bias, dtype)
    return dense if many_from <= 1 else HybridLinear(few, dense, many_from)


def measure_crossover(
    few: Linear, many: Linear, dtype: torch.dtype, token_counts: Sequence[int] = TOKEN_COUNTS
) -> int | None:
    """Return the number of tokens from which `many` pays, here and now; None: it does not within `token_counts`.

    It pays where it is `WORTH_KEEPING` times faster, which also keeps the answer from changing with the noise
    of a start. Each count is timed as the best of five alternating calls, which takes some milliseconds in
    all for a layer of a small model.
    """
    crossover = None
    for tokens in sorted(token_counts, reverse=True):
        x = torch.randn(tokens, few.in_features).to(dtype)
        best = [float("inf"), float("inf")]
        for _ in range(_ROUNDS):
            for index, layer in enumerate((few, many)):
                start = time.perf_counter()
                layer(x)
                best[index] = min(best[index], time.perf_counter() - start)
        if best[0] < WORTH_KEEPING * best[1]:
            break
        crossover = tokens
    return crossover


def measure_quantized_crossover(rows: int, columns: int, bits: int, dtype: torch.dtype) -> int | None:
    """Tokens from which dense weights pay beside `bits`-bit ones of shape [rows, columns] on this machine.

    None on CPUs with VNNI and without AMX, where integers win at every length of prompt, for 4 bits with AVX2
    alone too, and where no kernel multiplies codes.
    """
    generator = np.random.default_rng(0)
    scales = np.full((rows, columns // GROUP_SIZE), 0.01, np.float32)
    if bits == 4:
        codes = generator.integers(0, 16, (rows, columns), np.uint8)
        quantized = GroupQuantized(4, codes, scales, -8 * scales)
    else:
        quantized = GroupQuantized(8, generator.integers(-127, 128, (rows, columns), np.int8), scales, None)
    few = make_linear(None, None, dtype, quantized)
    if not isinstance(few, PackedLinear):
        return None
    dense = DenseLinear(torch.from_numpy(quantized.dequantized()), None, dtype)
    return measure_crossover(few, dense, dtype)
