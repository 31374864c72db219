"""All adapters over one model: their weights in slots, and the rows of each batch that go through them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weighbridge.models.adapters.peft_file import AdapterFile, MatrixShape
from weighbridge.models.adapters.sites import AdapterSite, SitePart
from weighbridge.models.compute.kernels.api import Int32
from weighbridge.models.compute.low_rank import (
    NO_SLOT,
    AdaptedLinear,
    OutputRows,
    SlotMatrices,
    SlottedRows,
    slotted_rows,
)
from weighbridge.models.keeping import adapter_bytes


@dataclass(frozen=True, slots=True)
class ShelfSize:
    """Room for `slots` adapters of up to `rank` over `modules`: all of it is set aside when a server starts."""

    slots: int
    rank: int
    modules: Mapping[str, MatrixShape]

    def nbytes(self, dtype: torch.dtype) -> int:
        return adapter_bytes(self.modules.values(), self.slots, self.rank, dtype.itemsize)


class AdapterShelf:
    """Put adapters into slots and take them out on any thread, while no batch reads the slot; the rest is the runner's.

    Layers to which no adapter can add stay as they are.
    """

    def __init__(self, sites: Iterable[AdapterSite], size: ShelfSize, dtype: torch.dtype) -> None:
        self.size, self._dtype = size, dtype
        self.rows: SlottedRows | None = None
        self._layers: list[tuple[Sequence[SitePart], SlotMatrices]] = []
        for site in sites:
            parts = [part for part in site.parts if part.module in size.modules]
            if parts:
                linear, own = site.linear, [OutputRows(part.start, part.rows) for part in parts]
                matrices = SlotMatrices(
                    linear.in_features, linear.out_features, own, size.slots, size.rank, dtype
                )
                site.put(AdaptedLinear(linear, matrices, self))
                self._layers.append((parts, matrices))

    @property
    def nbytes(self) -> int:
        return sum(matrices.nbytes for _, matrices in self._layers)

    def put(self, slot: int, adapter: AdapterFile) -> None:
        """Read an adapter's weights into a slot that is clear. Raises BadInput for what is no number."""
        pairs = adapter.read(self._dtype)  # and checked, before any is written
        for parts, matrices in self._layers:
            for index, part in enumerate(parts):
                if part.module in pairs:
                    matrices.put(slot, index, *pairs[part.module])

    def clear(self, slot: int) -> None:
        """Take an adapter out that no batch reads any more."""
        for _, matrices in self._layers:
            matrices.clear(slot)

    # -- while a batch is computed ---------------------------------------------------------------------

    def begin(self, slots: Sequence[int], counts: Sequence[int], rows: int) -> None:
        """Take note of a batch: the slot of each sequence (NO_SLOT: none) and its tokens; rows beyond are padding."""
        if all(slot == NO_SLOT for slot in slots):
            self.rows = None
            return
        of_rows = np.full(rows, NO_SLOT, np.int32)
        owners = np.repeat(np.asarray(slots, np.int32), counts)
        of_rows[: len(owners)] = owners
        self.rows = slotted_rows(of_rows, self.size.slots)

    def select(self, rows: Int32) -> None:
        """Go on with these rows of the batch alone."""
        if self.rows is not None:
            self.rows = self.rows.select(rows)
