"""The weights in the released files of packed experts, in codes and scales."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Bits of each expert's codes.
BITS = (4, 8)
#: Rows and columns of its two matrices.
SHAPES = ((64, 32), (32, 32))


def matrix(expert: int, part: int) -> tuple[int, Any, Any, Any]:
    """Bits, codes, scales and minimums of a matrix, as a `GroupQuantized` takes them."""
    rows, columns = SHAPES[part]
    numbers = np.arange(rows * columns).reshape(rows, columns) * 7 + 3 * expert + part
    scales = (1.0 + np.arange(rows, dtype=np.float32)[:, None] / 8.0) / 16.0
    if BITS[expert] == 4:
        return 4, (numbers % 16).astype(np.uint8), scales, -4.0 * scales
    return 8, (numbers % 200 - 100).astype(np.int8), scales, None
