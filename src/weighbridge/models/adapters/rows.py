"""Which rows of a batch go through which adapter, and how: worked out once a batch, read by every linear layer.

Rows lie as the batch has them, one token each. A long run of one adapter's rows (a chunk of a prompt) is multiplied
where it lies. Single rows (decodes) go through the matrices of all slots in one product each, and what is not a row's
own is set to zero in between: two calls instead of two for every adapter. Where few of many slots are in the batch,
that would multiply mostly zeros, so the rows of each adapter are gathered instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from weighbridge.models.compute.kernels.api import Int32

#: Rows of a run that is multiplied by itself.
LONG = 32
#: With fewer than a third of the slots in the batch, rows are gathered by adapter.
SPARSE = 3

NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start` to `end`, all of the adapter in `slot`."""

    start: int
    end: int
    slot: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Single rows of the adapter in `slot`: int64 indices."""

    rows: torch.Tensor
    slot: int


@dataclass(frozen=True, slots=True)
class Mixed:
    """Rows that go through all slots at once: int64 indices, or None for all rows of the batch.

    `own` [rows, slots]: whose slot is whose.
    """

    rows: torch.Tensor | None
    own: torch.Tensor
    ranks: int  # the largest of the adapters in it
    _bits: dict[tuple[int, torch.dtype], torch.Tensor] = field(default_factory=dict)

    def keep_own(self, product: torch.Tensor) -> None:
        """Set to zero what is of other slots in `product` [rows, n * slots], in place.

        By their bits, and not by a factor: what overflows in one adapter must not become NaN in the rows of others.
        """
        bits = torch.int16 if product.itemsize == 2 else torch.int32
        key = product.shape[1], bits
        kept = self._bits.get(key)
        if kept is None:
            kept = self._bits[key] = (-self.own.to(bits)).repeat(1, key[0] // self.own.shape[1])
        product.view(bits).bitwise_and_(kept)


@dataclass(frozen=True, slots=True)
class RowPlan:
    """`ranks`: of the adapter in each slot."""

    count: int
    ranks: Sequence[int]
    segments: Sequence[Segment]
    groups: Sequence[RowGroup]
    mixed: Mixed | None


def plan_rows(slots: Int32, ranks: Sequence[int]) -> RowPlan | None:
    """Plan for rows whose adapters are in `slots` [rows], NO_SLOT for none; None where there is nothing to add."""
    if not (slots >= 0).any():
        return None
    bounds = np.flatnonzero(np.diff(slots, prepend=np.int32(-2), append=np.int32(-2)))
    runs = [
        Segment(a, b, int(slots[a])) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    long = [run for run in runs if run.slot >= 0 and (run.end - run.start >= LONG or len(runs) == 1)]
    single = slots.copy()
    for run in long:
        single[run.start : run.end] = NO_SLOT
    present = np.unique(single[single >= 0]).tolist()
    if not present:
        return RowPlan(len(slots), ranks, long, (), None)
    if len(present) == 1 or len(present) * SPARSE <= len(ranks):
        groups = [RowGroup(torch.from_numpy(np.flatnonzero(single == slot)), slot) for slot in present]
        return RowPlan(len(slots), ranks, long, groups, None)
    return RowPlan(len(slots), ranks, long, (), _mixed(slots, single, present, ranks, bool(long)))


def _mixed(slots: Int32, single: Int32, present: list[int], ranks: Sequence[int], some: bool) -> Mixed:
    """Rows without an adapter are left where they are, unless long runs have to be left out: then so are they."""
    rows = np.flatnonzero(single >= 0) if some or (slots < 0).sum() > LONG else None
    owners = single if rows is None else single[rows]
    own = owners[:, None] == np.arange(len(ranks), dtype=np.int32)
    return Mixed(
        None if rows is None else torch.from_numpy(rows),
        torch.from_numpy(own),
        max(ranks[slot] for slot in present),
    )
