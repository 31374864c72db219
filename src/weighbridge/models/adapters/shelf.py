"""All adapters over one model: their weights in slots, and the rows of each batch that go through them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weighbridge.models.adapters.peft_file import AdapterFile, MatrixShape
from weighbridge.models.adapters.rows import NO_SLOT, plan_rows
from weighbridge.models.adapters.sites import AdapterSite
from weighbridge.models.adapters.stacks import AdaptedLinear, BatchRows, SiteStacks
from weighbridge.models.compute.kernels.api import Int32
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
        self._rows = BatchRows()
        self._ranks = [0] * size.slots
        self._slots: Int32 = np.empty(0, np.int32)  # of the rows of the batch
        self._stacks: list[SiteStacks] = []
        for site in sites:
            parts = tuple(part for part in site.parts if part.module in size.modules)
            if parts:
                stacks = SiteStacks(parts, site.linear.in_features, size.slots, size.rank, dtype)
                site.put(AdaptedLinear(site.linear, stacks, self._rows))
                self._stacks.append(stacks)

    @property
    def nbytes(self) -> int:
        return sum(stacks.nbytes for stacks in self._stacks)

    def put(self, slot: int, adapter: AdapterFile) -> None:
        """Read an adapter's weights into a slot that is clear. Raises BadInput for what is no number."""
        pairs = adapter.read(self._dtype)  # and checked, before any is written
        for stacks in self._stacks:
            stacks.put(slot, pairs)
        self._ranks[slot] = adapter.rank

    def clear(self, slot: int) -> None:
        """Take an adapter out that no batch reads any more."""
        self._ranks[slot] = 0
        for stacks in self._stacks:
            stacks.clear(slot)

    # -- while a batch is computed ---------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether some row of the batch goes through an adapter."""
        return self._rows.plan is not None

    def begin(self, slots: Sequence[int], counts: Sequence[int], rows: int) -> None:
        """Take note of a batch: the slot of each sequence (NO_SLOT: none) and its tokens; rows beyond are padding."""
        if all(slot == NO_SLOT for slot in slots):
            self._rows.plan = None
            return
        self._slots = np.full(rows, NO_SLOT, np.int32)
        owners = np.repeat(np.asarray(slots, np.int32), counts)
        self._slots[: len(owners)] = owners
        self._rows.plan = plan_rows(self._slots, tuple(self._ranks))

    def select(self, rows: Int32) -> None:
        """Go on with these rows of the batch alone."""
        if self._rows.plan is not None:
            self._rows.plan = plan_rows(self._slots[rows], self._rows.plan.ranks)
