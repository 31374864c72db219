"""Our linear layers and experts in the place of a model's own: packed once, in few bits where that is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import torch

from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.linear import Linear, make_linear
from weighbridge.models.compute.linear_hybrid import hybrid_linear
from weighbridge.models.files.quantized import quantize
from weighbridge.models.general.packed.experts import find_experts, own_experts
from weighbridge.models.keeping import FileMatrix, Keeping, KeptAs
from weighbridge.models.kept_weights import KeptWeights

Report = Callable[[int, int], None]  # layers done, layers in all


class OwnLinear(torch.nn.Module):
    """One of our linear layers as a module."""

    def __init__(self, linear: Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.linear, self._dtype = linear, dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if rows.dtype is not self._dtype:
            rows = rows.to(self._dtype)
        return self.linear(rows.contiguous()).view(*x.shape[:-1], self.out_features)


def take_places(
    model: Any,
    names: Collection[str],
    keeping: Keeping,
    dtype: torch.dtype,
    kernels: Kernels,
    report: Report | None,
) -> KeptWeights:
    """Pack the linear layers `names` of `model` and its experts, one after another: the tensors of each are let go of.

    The output matrix keeps 8 bits even where the layers keep 4: it decides each token directly.
    """
    kept, head = KeptWeights(), model.get_output_embeddings()
    experts = list(find_experts(model))
    done, total = itertools.count(1), len(names) + len(experts)
    for name in sorted(names):
        module = model.get_submodule(name)
        bits = 8 if module is head else keeping.scheme.bits
        with torch.no_grad():
            linear = _packed(name, module.weight, module.bias, keeping, bits, dtype, kept)
        _put(model, name, OwnLinear(linear, dtype))
        if report is not None:
            report(next(done), total)

    def pack(name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return _packed(name, weight, bias, keeping, keeping.scheme.bits, dtype, kept)

    while experts:
        name, layer = experts.pop(0)
        with torch.no_grad():
            own = own_experts(name, layer, pack, dtype, kernels)
        del layer
        _put(model, name, own)
        if report is not None:
            report(next(done), total)
    return kept


def _put(model: Any, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _packed(
    name: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    keeping: Keeping,
    bits: int,
    dtype: torch.dtype,
    kept: KeptWeights,
) -> Linear:
    rows, columns = weight.shape
    bias = None if bias is None else bias.detach().to(dtype)
    what = keeping.linear([FileMatrix(name, rows, columns)], bits, bias is not None)
    kept.note(name, what)
    weight = weight.detach()
    if what.way is KeptAs.ROUNDED:
        quantized = quantize(weight, bits)
        if keeping.copies(columns):
            return hybrid_linear(quantized, bias, dtype)
        return make_linear(None, bias, dtype, quantized)
    return make_linear(weight.to(dtype), bias, dtype)
