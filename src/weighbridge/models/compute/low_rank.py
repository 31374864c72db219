"""What adapters add to linear layers: for each row of a batch the product of two narrow matrices, those of its slot.

To a row's output U D x is added, with D [rank, in] and U [out, rank] of the adapter in its slot. Parts of a layer
(queries, keys and values are one layer) have pairs of their own. Our kernels (`native/low_rank.cpp`) read each pair
once for all rows of a slot, wherever those lie in the batch; without them torch does the same, slot by slot.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from weighbridge.models.compute.kernels.api import Int32
from weighbridge.models.compute.kernels.pages import weight_memory
from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.linear_packed import kernels_available
from weighbridge.models.compute.memory import memory_of

#: Slot of rows that go through no adapter.
NO_SLOT = -1
#: Rows of U side by side in memory, rank after rank, as the kernels read them.
_TILE = 16
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def _kernels(dtype: torch.dtype) -> Any:
    """Return the compiled kernels; None where they were not built, are older than this file, or lack `dtype`."""
    if not kernels_available() or dtype not in _DTYPES:
        return None
    native: Any = importlib.import_module("weighbridge.models.compute.kernels._native")
    return native if hasattr(native, "LowRank") else None


class SlottedRows:
    """The rows of one batch by slot; worked out once and read by every layer."""

    def __init__(self, slots: Int32, limit: int) -> None:
        """`slots` [rows], each below `limit` or NO_SLOT."""
        self.slots, self.limit = slots, limit

    @cached_property
    def native(self) -> Any:
        native: Any = importlib.import_module("weighbridge.models.compute.kernels._native")
        return native.RowGroups(self.slots, self.limit)

    @cached_property
    def by_slot(self) -> list[tuple[int, torch.Tensor]]:
        """Each slot of the batch with its rows, as int64 indices."""
        present = np.unique(self.slots[self.slots >= 0]).tolist()
        return [(slot, torch.from_numpy(np.flatnonzero(self.slots == slot))) for slot in present]

    def select(self, rows: Int32) -> SlottedRows | None:
        """Return these rows alone; None where none of them has a slot."""
        return slotted_rows(self.slots[rows], self.limit)


def slotted_rows(slots: Int32, limit: int) -> SlottedRows | None:
    """Return the rows of a batch by their `slots` [rows]; None where there is nothing to add."""
    return SlottedRows(slots, limit) if (slots >= 0).any() else None


class RowExtras(Protocol):
    """What is added to the layers of a decoder, as far as the decoder has to know of it."""

    @property
    def rows(self) -> SlottedRows | None:
        """The rows of this batch to which something is added; None: to none."""
        ...

    def select(self, rows: Int32) -> None:
        """Go on with these rows of the batch alone."""
        ...


@dataclass(frozen=True, slots=True)
class OutputRows:
    """Rows of a layer's output, `count` from `start` on, that have a pair of matrices of their own."""

    start: int
    count: int


class SlotMatrices:
    """The matrices of all slots at one linear layer. Memory for them is set aside at once, and taken as it is written.

    D lies as it is, [rank, in]; U in tiles of 16 rows, [rank, 16] each and the last as narrow as its rows are: both in
    the order in which they are read, with nothing between, whatever rank there is room for.
    """

    def __init__(
        self,
        columns: int,
        outputs: int,
        parts: Sequence[OutputRows],
        slots: int,
        ranks: int,
        dtype: torch.dtype,
    ) -> None:
        self._kernels = kernels = _kernels(dtype)
        self._parts, self._columns, self._dtype = parts, columns, dtype
        self._down = [_room(slots, ranks * columns, dtype) for _ in parts]
        self._up = [_room(slots, ranks * part.count, dtype) for part in parts]
        self._held = torch.zeros(len(parts), slots, dtype=torch.int32)  # the rank of each, 0: it adds nothing
        if kernels is not None:
            self._native = kernels.LowRank(columns, outputs, slots, ranks, _DTYPES[dtype])
            for part, down, up, held in zip(parts, self._down, self._up, self._held, strict=True):
                self._native.add_part(part.start, part.count, memory_of(down), memory_of(up), memory_of(held))

    @property
    def nbytes(self) -> int:
        return sum(matrices.nbytes for matrices in (*self._down, *self._up))

    def put(self, slot: int, index: int, down: torch.Tensor, up: torch.Tensor) -> None:
        """Write D and the transpose of U [rank, rows] of a part into a slot that is clear, and that no batch reads."""
        rank, rows = up.shape
        self._down[index][slot, : down.numel()] = down.flatten()
        whole = rows // self._tile(rows) * self._tile(rows)
        tiles = up[:, :whole].reshape(rank, -1, self._tile(rows)).transpose(0, 1)
        self._up[index][slot, : rank * whole] = tiles.flatten()
        self._up[index][slot, rank * whole : rank * rows] = up[:, whole:].flatten()
        self._held[index, slot] = rank

    def clear(self, slot: int) -> None:
        """Take out what is in a slot that no batch reads any more."""
        self._held[:, slot] = 0

    def add(self, y: torch.Tensor, x: torch.Tensor, rows: SlottedRows) -> None:
        """Add what the slots of `rows` make of x [rows, in] to y [rows, out], in place."""
        if self._kernels is not None:
            memory = memory_of(y, self._dtype), memory_of(x, self._dtype)
            self._native.add(*memory, rows.native, torch.get_num_threads())
            return
        for slot, own in rows.by_slot:
            some, input_rows = y.index_select(0, own), x.index_select(0, own)
            for index, part in enumerate(self._parts):
                rank = int(self._held[index, slot])
                if rank:
                    down = self._down[index][slot, : rank * self._columns].view(rank, -1)
                    up = self._up[index][slot, : rank * part.count].view(rank, -1)
                    some[:, part.start : part.start + part.count].addmm_(input_rows @ down.T, up)
            y.index_copy_(0, own, some)

    def projection(self, matrix: Any) -> Any:
        """Return the kernels' view of a packed matrix with what is added to it; None where the kernels add nothing."""
        return None if self._kernels is None else self._kernels.Projection(matrix, self._native)

    def _tile(self, rows: int) -> int:
        """Torch multiplies by U as one tile."""
        return rows if self._kernels is None else _TILE


def _room(slots: int, numbers: int, dtype: torch.dtype) -> torch.Tensor:
    return weight_memory.take(slots * numbers * dtype.itemsize).view(dtype).view(slots, numbers)


class AdaptedLinear:
    """A linear layer with what the slots of a batch add to some of its rows."""

    def __init__(self, base: Linear, matrices: SlotMatrices, extras: RowExtras) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base, self.matrices, self._extras = base, matrices, extras

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.matrices.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in_features] to [tokens, out_features], both in the compute dtype."""
        y, rows = self.base(x), self._extras.rows
        if rows is not None:
            if len(x) != len(rows.slots):
                raise RuntimeError(f"a layer computes {len(x)} rows of a batch of {len(rows.slots)}")
            self.matrices.add(y, x, rows)
        return y
