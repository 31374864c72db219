"""Weights kept in few bits: one affine form for every source (our own rounding, GGUF Q4_0, Q4_1, Q8_0)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP_SIZE = 32


@dataclass(frozen=True, slots=True)
class GroupQuantized:
    """A [rows, columns] matrix as w = scale * code + minimum, with a scale per row and 32 columns.

    bits 4: codes are uint8 in 0..15 and minimums is set. bits 8: codes are int8 and minimums is None.
    codes [rows, columns]; scales and minimums float32 [rows, columns / 32].
    """

    bits: int
    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    minimums: npt.NDArray[np.float32] | None

    def dequantized(self) -> npt.NDArray[np.float32]:
        rows, columns = self.codes.shape
        groups = self.codes.reshape(rows, columns // GROUP_SIZE, GROUP_SIZE).astype(np.float32)
        values = groups * self.scales[:, :, None]
        if self.minimums is not None:
            values += self.minimums[:, :, None]
        return values.reshape(rows, columns)
