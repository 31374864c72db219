"""Matrices of a GGUF file into the order in which the kernels read them: codes stay codes, and nothing is expanded."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import quantize

from weighbridge.models.compute.kernels.pages import weight_memory
from weighbridge.models.compute.linear_packed import ROWS_PER_TILE, PackedRows, kernels_available
from weighbridge.models.compute.packed_forms import FORM_OF, form_of
from weighbridge.models.files.quantized import GROUP_SIZE, StoredBlocks

_native: Any = (
    importlib.import_module("weighbridge.models.compute.kernels._native") if kernels_available() else None
)

#: Rows of a type without a form of its own that are floats at a time, in weights.
WEIGHTS_AT_ONCE = 1 << 20

#: Bytes of a file that are read before they are given back: what is mapped and read counts as memory of the process.
BYTES_AT_ONCE = 8 << 20


class NotFiniteError(ValueError):
    """A scale is no number; `index` says in which of the matrices."""

    def __init__(self, index: int) -> None:
        super().__init__(f"matrix {index} has a scale that is not finite")
        self.index = index


def keeps(blocks: StoredBlocks) -> bool:
    """Whether our kernels multiply these blocks, in one form or another."""
    return _native is not None and kernels_available() and blocks.columns % GROUP_SIZE == 0


def repacked(matrices: Sequence[StoredBlocks]) -> list[PackedRows]:
    """Return the rows of several matrices of the same columns, one below the other; neighbours in one form are joined.

    Raises NotFiniteError where a scale is no number.
    """
    return [_joined(run) for run in _runs(matrices)]


def _runs(matrices: Sequence[StoredBlocks]) -> list[list[tuple[int, StoredBlocks]]]:
    """Numbered matrices that can share one piece of memory: of one form, in whole tiles but for the last."""
    runs: list[list[tuple[int, StoredBlocks]]] = []
    for index, matrix in enumerate(matrices):
        above = matrices[index - 1]
        if index and form_of(above.kind) is form_of(matrix.kind) and above.rows % ROWS_PER_TILE == 0:
            runs[-1].append((index, matrix))
        else:
            runs.append([(index, matrix)])
    return runs


def _joined(run: Sequence[tuple[int, StoredBlocks]]) -> PackedRows:
    form, columns = form_of(run[0][1].kind), run[0][1].columns
    rows = sum(matrix.rows for _, matrix in run)
    codes, scales = (weight_memory.take(size) for size in _native.packed_sizes(int(form), rows, columns))
    packed = PackedRows(form, rows, columns, codes, scales)
    first = 0
    for index, matrix in run:
        for start, piece in _pieces(matrix):
            if not _fill(packed, first + start, piece):
                raise NotFiniteError(index)
            matrix.release()
        first += matrix.rows
    return packed


def _pieces(matrix: StoredBlocks) -> Iterator[tuple[int, StoredBlocks]]:
    """The matrix, some tiles of rows at a time; where its type has no form, rounded to Q8_0."""
    kept = matrix.kind in FORM_OF
    at_once = BYTES_AT_ONCE // matrix.blocks.shape[1] if kept else WEIGHTS_AT_ONCE // matrix.columns
    step = max(at_once // ROWS_PER_TILE, 1) * ROWS_PER_TILE
    for start in range(0, matrix.rows, step):
        order = matrix.order[start : start + step]
        if kept:
            yield start, replace(matrix, order=order)
        else:
            blocks = quantize(matrix.dequantized(start, start + len(order)), Kind.Q8_0)
            yield start, StoredBlocks(Kind.Q8_0, blocks, np.arange(len(blocks)), matrix.release)


def _fill(packed: PackedRows, first: int, matrix: StoredBlocks) -> bool:
    """Write `matrix` into the rows from `first` on, a whole number of tiles. Returns whether its scales are finite."""
    assert packed.scales is not None
    before = _native.packed_sizes(int(packed.form), first, packed.columns) if first else (0, 0)
    here = _native.packed_sizes(int(packed.form), matrix.rows, packed.columns)
    memory = [
        (tensor.data_ptr() + offset, size)
        for tensor, offset, size in zip((packed.codes, packed.scales), before, here, strict=True)
    ]
    blocks = matrix.blocks
    finite: bool = _native.repack(
        *memory,
        int(packed.form),
        int(matrix.kind),
        (blocks.ctypes.data, blocks.nbytes),
        np.ascontiguousarray(matrix.order, np.int64),
        packed.columns,
        torch.get_num_threads(),
    )
    return finite
