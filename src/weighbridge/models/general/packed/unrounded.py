"""A model whose packed layers multiply with their weights in floats, without the rounding of activations.

Rounding makes much of little: two passes that differ in the last bit of an attention are far apart behind a few layers
in 8 bits. Without it they are as near as those of a model in floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.linear_hybrid import HybridLinear
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.compute.packed_forms import Form
from weighbridge.models.compute.repack import WEIGHTS_AT_ONCE
from weighbridge.models.experts.moe import ListedExperts
from weighbridge.models.general.packed.experts import OwnExperts
from weighbridge.models.general.packed.linears import OwnLinear


@contextmanager
def unrounded(model: Any) -> Iterator[None]:
    """Let no packed layer of a model round what it is asked, while this is open."""
    before: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        if isinstance(module, OwnLinear):
            before.append((module, "linear", module.linear))
            module.linear = in_floats(module.linear)
        elif isinstance(module, OwnExperts):
            before.append((module, "experts", module.experts))
            module.experts = ListedExperts([expert.with_linears(in_floats) for expert in module.listed])
    try:
        yield
    finally:
        for module, name, was in before:
            setattr(module, name, was)


def in_floats(linear: Linear) -> Linear:
    """Return a layer of the same weights that multiplies in floats; itself where it does."""
    if isinstance(linear, HybridLinear):
        return in_floats(linear.few)
    if isinstance(linear, PackedLinear) and Form.BFLOAT16 not in linear.forms:
        return _Unrounded(linear)
    return linear


class _Unrounded:
    """Reads its weights out of the codes, some rows at a time, each time it is called."""

    def __init__(self, packed: PackedLinear) -> None:
        self._packed = packed
        self.in_features, self.out_features = packed.in_features, packed.out_features

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        asked, parts = x.float(), []
        step = max(WEIGHTS_AT_ONCE // self.in_features, 1)
        for start in range(0, self.out_features, step):
            rows = np.arange(start, min(start + step, self.out_features), dtype=np.int32)
            weight = torch.empty(len(rows), self.in_features)
            self._packed.read_rows(weight, rows)
            parts.append(F.linear(asked, weight))
        y = torch.cat(parts, dim=1)
        bias = self._packed.bias
        return (y if bias is None else y + bias).to(x.dtype)
