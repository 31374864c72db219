"""Matrices that a directory has in few bits, and where a model keeps each of their rows.

Transformers renames what files hold, puts experts one behind the other and joins or cuts matrices; none of that is said
here once more. In the place of each matrix it is given a stand-in, one column with the numbers of the rows, and a model
whose coded layers are as narrow: where the numbers are found after loading, the rows belong.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from weighbridge.errors import BadInput, UnsupportedModel, some_of
from weighbridge.models.files.fields import shown
from weighbridge.models.files.packed_tensors import ComputedBlocks, Floats, PackedTensors, is_part
from weighbridge.models.general.packed.experts import find_experts, first_of

#: What row numbers are kept in: exact, and a type that parameters may have.
NUMBERS = torch.float64
#: Pieces of files that one matrix may be put together from.
MAX_PIECES = 64

Shape = tuple[int, ...]


class PlacedMatrices:
    """The packed matrices among the tensors of a directory. `shapes`: of the stand-ins, by the parameters they fill."""

    def __init__(self, packed: PackedTensors, tensors: Collection[str]) -> None:
        self._packed = packed
        self._names = list(packed.matrices(tensors))
        self._sizes = [packed.shape(name) for name in self._names]
        self._firsts = [0, *accumulate(rows for rows, _ in self._sizes)]
        self._held = {name for name in tensors if is_part(name, tensors)}
        self._held.update(filter(None, map(packed.main, self._names)))
        self.shapes: dict[str, Shape] = {}
        self._columns: dict[str, int] = {}

    def holds(self, tensor: str) -> bool:
        """Whether a tensor is a packed matrix, or belongs to one."""
        return tensor in self._held

    @property
    def numbers(self) -> int:
        """How many weights they are."""
        return sum(rows * columns for rows, columns in self._sizes)

    def stand_ins(self) -> dict[str, torch.Tensor]:
        """Return what transformers is given for each: the numbers of its rows [rows, 1]."""
        spans = zip(self._names, pairwise(self._firsts), strict=True)
        return {name: torch.arange(*span, dtype=NUMBERS)[:, None] for name, span in spans}

    def find_places(self, skeleton: Any, linears: Collection[str], tensors: Collection[str]) -> None:
        """Find the parameters of a model on the meta device that they fill. `tensors`: of the directory, in floats.

        Raises UnsupportedModel for one that is neither a linear layer that is only called nor a matrix of experts, and
        for one that is in few bits in part.
        """
        whole = {f"{name}.weight": skeleton.get_submodule(name).weight.shape for name in linears}
        turned = set()
        for name, layer in find_experts(skeleton):
            for matrix in (first_of(layer), "down_proj"):
                whole[f"{name}.{matrix}"] = getattr(layer, matrix).shape
                if layer.is_transposed:
                    turned.add(f"{name}.{matrix}")
        filled = _filled(skeleton, self._names)
        if other := sorted(filled - whole.keys()):
            raise UnsupportedModel(
                f"it does more than multiply with matrices that its files have in few bits ({some_of(other)})"
            )
        if filled & set(getattr(skeleton, "all_tied_weights_keys", None) or ()):
            raise UnsupportedModel("its files have in few bits what the model shares between two places")
        if mixed := sorted(filled & _filled(skeleton, tensors)):
            raise UnsupportedModel(
                f"its files have some parts of {some_of(mixed)} in few bits, and others not"
            )
        for name in sorted(filled):
            axis = 1 if name in turned else -1
            shape = list(whole[name])
            self._columns[name], shape[axis] = shape[axis], 1
            self.shapes[name] = tuple(shape)

    def pieces(self, place: str, rows: torch.Tensor) -> list[ComputedBlocks]:
        """Return the matrices whose rows these numbers are, one below the other; `place` is the parameter.

        Raises BadInput for rows of other widths, UnsupportedModel for an order that is not the files'.
        """
        found = list(self._runs(rows))
        if len(found) > MAX_PIECES:
            raise UnsupportedModel(f"the rows of {place} are in another order than in the files")
        for index, _, _ in found:
            if (columns := self._sizes[index][1]) != self._columns[place]:
                raise BadInput(
                    f"matrix {shown(self._names[index])} has {columns} columns, where {self._columns[place]} belong"
                )
        return [_cut(self._packed.blocks(self._names[index]), start, end) for index, start, end in found]

    def _runs(self, rows: torch.Tensor) -> Iterator[tuple[int, int, int]]:
        """Yield which matrix, and from which of its rows to which, for neighbours that are neighbours in the files."""
        numbers = rows.detach().flatten().numpy().astype(np.int64)
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            start, end = int(run[0]), int(run[-1]) + 1
            while start < end:
                index = bisect(self._firsts, start) - 1
                first, stop = self._firsts[index], min(end, self._firsts[index + 1])
                yield index, start - first, stop - first
                start = stop


def narrowed(model_class: type[Any], places: Mapping[str, Shape]) -> type[Any]:
    """Return a class of models whose parameters at `places` hold numbers of rows."""

    class Narrowed(model_class):  # type: ignore[misc]
        def __init__(self, *asked: Any, **options: Any) -> None:
            super().__init__(*asked, **options)
            for name, shape in places.items():
                module, _, last = name.rpartition(".")
                stand_in = torch.empty(shape, dtype=NUMBERS)
                setattr(self.get_submodule(module), last, torch.nn.Parameter(stand_in, requires_grad=False))

    # Transformers knows by these what to rename.
    Narrowed.__name__, Narrowed.__qualname__ = model_class.__name__, model_class.__qualname__
    Narrowed.__module__ = model_class.__module__
    return Narrowed


def _filled(skeleton: Any, names: Collection[str]) -> set[str]:
    """Return the parameters that transformers would fill from these tensors."""
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    held = skeleton.state_dict()
    found: set[str] = set()
    for name in names:
        key, pattern = rename_source_key(name, renamings, converters, skeleton.base_model_prefix, held)
        if key not in held and name in held:
            key, pattern = name, None
        targets = by_pattern[pattern].target_patterns if pattern is not None else [""]
        found.update(key.replace(targets[0], target, 1) for target in targets)
    return found


def _cut(blocks: ComputedBlocks, start: int, end: int) -> ComputedBlocks:
    """Return rows of a matrix, which is itself where they are all."""
    if (start, end) == (0, blocks.rows):
        return blocks

    def exact(first: int, last: int) -> Floats:
        return blocks.exact(start + first, start + last)

    return replace(blocks, order=blocks.order[start:end], exact=exact)
