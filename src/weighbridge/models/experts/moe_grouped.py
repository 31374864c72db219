"""The experts of a layer on our own kernels, in one call."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from weighbridge.models.compute.layers import Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.linear_hybrid import HybridLinear
from weighbridge.models.compute.linear_packed import PackedLinear, kernels_available
from weighbridge.models.compute.memory import memory_of
from weighbridge.models.experts.moe import LayerExperts

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_native: Any = (
    importlib.import_module("weighbridge.models.compute.kernels._native") if kernels_available() else None
)


class GroupedExperts:
    """Experts on packed weights, in one parallel region for the layer. The same numbers as one by one, to the bit.

    Batches that bring an expert more than `max_tokens` on average go to `listed`, whose linear layers have a
    faster form for them (None: they have not).
    """

    def __init__(
        self, experts: Sequence[Mlp], dtype: torch.dtype, max_tokens: int | None, listed: LayerExperts
    ) -> None:
        self._native = native_experts(experts[0], len(experts), dtype)
        for index, expert in enumerate(experts):
            self._native.set(index, packed_matrix(expert.gate_up), packed_matrix(expert.down))
        self.experts = experts  # they own the memory
        self._max_tokens = max_tokens
        self._listed = listed

    @property
    def nbytes(self) -> int:
        return self._listed.nbytes

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        tokens, top_k = ids.shape
        if self._max_tokens is not None and tokens * top_k > self._max_tokens * len(self.experts):
            return self._listed(x, ids, weights)
        x = x.contiguous()
        out = torch.empty_like(x)
        self._native.run(
            memory_of(out),
            memory_of(x),
            memory_of(ids, torch.int32),
            memory_of(weights, torch.float32),
            tokens,
            top_k,
            torch.get_num_threads(),
        )
        return out


def native_experts(example: Mlp, count: int, dtype: torch.dtype) -> Any:
    """Return the kernels' view of `count` experts shaped as `example`, none set yet; None where it is not packed."""
    matrices = packed_matrix(example.gate_up), packed_matrix(example.down)
    if _native is None or None in matrices:
        return None
    return _native.Experts(example.gate_up.in_features, example.down.in_features, _DTYPES[dtype], count)


def group(experts: Sequence[Mlp], dtype: torch.dtype, listed: LayerExperts) -> GroupedExperts | None:
    """Return `experts` as one group; None where some of their matrices are not our kernels'."""
    linears = [linear for expert in experts for linear in (expert.gate_up, expert.down)]
    if _native is None or any(packed_matrix(linear) is None for linear in linears):
        return None
    limits = [linear.many_from - 1 for linear in linears if isinstance(linear, HybridLinear)]
    return GroupedExperts(experts, dtype, min(limits) if limits else None, listed)


def packed_matrix(linear: Linear) -> Any:
    """Return the kernels' own view of the weights of `linear`, or None when it has none."""
    if isinstance(linear, HybridLinear):
        return packed_matrix(linear.few)
    return linear.matrix if isinstance(linear, PackedLinear) else None
