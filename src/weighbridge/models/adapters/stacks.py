"""The matrices of all adapters at one linear layer, in one piece of memory for each side, and what they add.

Slots lie next to each other within a rank: the first ranks of all slots are one matrix, so adapters of a small rank do
not pay for the room of large ones. The scale is in `up` already.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from weighbridge.models.adapters.rows import Mixed, RowPlan
from weighbridge.models.adapters.sites import SitePart
from weighbridge.models.compute.linear import Linear

Pair = tuple[torch.Tensor, torch.Tensor]


class SiteStacks:
    """`down` [parts, ranks, slots, in]; `up`, of each part, [ranks, slots, rows]. Parts read the same input."""

    def __init__(
        self, parts: tuple[SitePart, ...], columns: int, slots: int, ranks: int, dtype: torch.dtype
    ) -> None:
        self._parts = parts
        self._slots, self._ranks = slots, ranks
        self._down = torch.zeros(len(parts), ranks, slots, columns, dtype=dtype)
        self._up = [torch.zeros(ranks, slots, part.rows, dtype=dtype) for part in parts]
        self._held: tuple[frozenset[int], ...] = (frozenset(),) * len(parts)  # slots that add to each part

    @property
    def nbytes(self) -> int:
        return self._down.nbytes + sum(up.nbytes for up in self._up)

    def put(self, slot: int, pairs: Mapping[str, Pair]) -> None:
        """Write an adapter into a slot that is clear, and that no batch reads."""
        for index, part in enumerate(self._parts):
            pair = pairs.get(part.module)
            if pair is not None:
                down, up = pair
                self._down[index, : len(down), slot] = down
                self._up[index][: len(up), slot] = up
                self._hold(index, self._held[index] | {slot})

    def clear(self, slot: int) -> None:
        """Take an adapter out that no batch reads any more."""
        for index, held in enumerate(self._held):
            if slot in held:
                self._hold(index, held - {slot})
                self._down[index, :, slot] = 0.0
                self._up[index][:, slot] = 0.0

    def _hold(self, index: int, slots: frozenset[int]) -> None:
        self._held = (*self._held[:index], slots, *self._held[index + 1 :])

    def add(self, y: torch.Tensor, x: torch.Tensor, plan: RowPlan) -> None:
        """Add what the adapters of `plan` make of x [rows, in] to y [rows, out], in place."""
        for run in plan.segments:
            self._add_one(y[run.start : run.end], x[run.start : run.end], run.slot, plan.ranks[run.slot])
        for group in plan.groups:
            some = y.index_select(0, group.rows)
            self._add_one(some, x.index_select(0, group.rows), group.slot, plan.ranks[group.slot])
            y.index_copy_(0, group.rows, some)
        mixed = plan.mixed
        if mixed is None:
            return
        if mixed.rows is None:
            self._add_mixed(y, x, mixed)
        else:
            some = y.index_select(0, mixed.rows)
            self._add_mixed(some, x.index_select(0, mixed.rows), mixed)
            y.index_copy_(0, mixed.rows, some)

    def _add_one(self, y: torch.Tensor, x: torch.Tensor, slot: int, rank: int) -> None:
        for index, part in enumerate(self._parts):
            if slot in self._held[index]:
                inner = x @ self._down[index, :rank, slot].T
                y[:, part.start : part.start + part.rows].addmm_(inner, self._up[index][:rank, slot])

    def _add_mixed(self, y: torch.Tensor, x: torch.Tensor, mixed: Mixed) -> None:
        for index, inner in self._inner(x, mixed):
            part, up = self._parts[index], self._up[index][: mixed.ranks].flatten(0, 1)
            y[:, part.start : part.start + part.rows].addmm_(inner, up)

    def _inner(self, x: torch.Tensor, mixed: Mixed) -> list[tuple[int, torch.Tensor]]:
        """What `down` makes of x in each row's own slot, [rows, ranks * slots] of each part that adapters add to."""
        live = [index for index, held in enumerate(self._held) if held]
        if mixed.ranks == self._ranks and len(live) == len(self._parts):  # all of the memory: one product
            product, width = _own(x, self._down.flatten(0, 2), mixed), mixed.ranks * self._slots
            return [(index, product[:, index * width : (index + 1) * width]) for index in live]
        return [(index, _own(x, self._down[index, : mixed.ranks].flatten(0, 1), mixed)) for index in live]


def _own(x: torch.Tensor, down: torch.Tensor, mixed: Mixed) -> torch.Tensor:
    """Rows of x through the matrices of all slots, with what is not a row's own set to zero."""
    product = torch.mm(x, down.T)
    mixed.keep_own(product)
    return product


class BatchRows:
    """The rows of the batch that is computed now. One for all linear layers of a model."""

    def __init__(self) -> None:
        self.plan: RowPlan | None = None


class AdaptedLinear:
    """A linear layer with what adapters add to some of its rows."""

    def __init__(self, linear: Linear, stacks: SiteStacks, rows: BatchRows) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._linear, self._stacks, self._rows = linear, stacks, rows

    @property
    def nbytes(self) -> int:
        return self._linear.nbytes + self._stacks.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, in_features] to [tokens, out_features], both in the compute dtype."""
        y = self._linear(x)
        plan = self._rows.plan
        if plan is not None:
            if len(x) != plan.count:
                raise RuntimeError(f"a layer computes {len(x)} rows of a batch of {plan.count}")
            self._stacks.add(y, x, plan)
        return y
