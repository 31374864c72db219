"""Our linear layers and experts in the place of a model's own: packed once, in few bits where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.finite import is_finite
from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.linear import Linear, make_linear
from weighbridge.models.compute.linear_hybrid import rounded_linear
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.compute.repack import NotFiniteError, repacked
from weighbridge.models.files.packed_tensors import ComputedBlocks
from weighbridge.models.files.quantized import quantize
from weighbridge.models.general.packed.experts import OwnExperts, find_experts, matrix_of, own_experts
from weighbridge.models.general.packed.mxfp4 import CodedExperts
from weighbridge.models.general.packed.places import PlacedMatrices
from weighbridge.models.general.packed.proof import check_made
from weighbridge.models.keeping import FileMatrix, Keeping, Kept, KeptAs
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


class Packer:
    """Packs what a model has of matrices, one after another; `kept` is what became of them.

    `placed`: matrices that the files have in few bits, whose rows the model has by their numbers.
    """

    def __init__(
        self, keeping: Keeping, dtype: torch.dtype, kernels: Kernels, placed: PlacedMatrices | None = None
    ) -> None:
        self.kept = KeptWeights()
        self._keeping, self._dtype, self._kernels, self._placed = keeping, dtype, kernels, placed

    def take_places(self, model: Any, names: Collection[str], report: Report | None) -> None:
        """Pack the linear layers `names` of `model` and its experts: the tensors of each are let go of.

        The output matrix keeps 8 bits even where the layers keep 4: it decides each token directly.
        """
        left = [name for name in sorted(names) if not isinstance(model.get_submodule(name), OwnLinear)]
        self._take(model, left, [name for name, _ in find_experts(model)], report)

    def take_placed(self, model: Any, placed: PlacedMatrices, report: Report | None) -> None:
        """Pack those of them that the files have in few bits, as codes.

        Raises BadInput for a scale or a bias that is no number.
        """
        held = {place.rpartition(".")[0] for place in placed.shapes}
        experts = [name for name, _ in find_experts(model) if name in held]
        self._take(model, sorted(held.difference(experts)), experts, report)

    def _take(
        self, model: Any, linears: Sequence[str], experts: Sequence[str], report: Report | None
    ) -> None:
        head, total = model.get_output_embeddings(), len(linears) + len(experts)
        for done, name in enumerate([*linears, *experts], 1):
            module = model.get_submodule(name)
            with torch.no_grad():
                if name in experts:
                    own: torch.nn.Module = self._experts(name, module)
                else:
                    bits = 8 if module is head else self._keeping.scheme.bits
                    place = f"{name}.weight"
                    own = OwnLinear(self._linear(place, name, module.weight, module.bias, bits), self._dtype)
            _put(model, name, own)
            if report is not None:
                report(done, total)

    def take_coded(self, model: Any, coded: CodedExperts, report: Report | None) -> None:
        """Put the experts that a file has in few bits into a model that was made without them.

        Raises BadInput for a scale or a bias that is no number.
        """
        layers = list(find_experts(model))
        for done, (name, module) in enumerate(layers, 1):

            def matrix(one: str, index: int, name: str = name) -> Linear:
                blocks, bias = coded.matrix(name, one, index)
                what = f"{name}.experts.{index}.{one}"
                return self._coded(what, [blocks], bias, self._keeping.scheme.bits)

            _put(model, name, own_experts(module, matrix, coded.count(name), self._dtype, self._kernels))
            if report is not None:
                report(done, len(layers))

    def _experts(self, name: str, module: Any) -> OwnExperts:
        bits = self._keeping.scheme.bits

        def matrix(one: str, index: int) -> Linear:
            what = f"{name}.experts.{index}.{one}"
            return self._linear(f"{name}.{one}", what, *matrix_of(module, one, index), bits)

        return own_experts(module, matrix, module.down_proj.shape[0], self._dtype, self._kernels)

    def _linear(
        self, place: str, name: str, weight: torch.Tensor, bias: torch.Tensor | None, bits: int
    ) -> Linear:
        """Pack one matrix; `place` is the parameter that it is in, or is a part of."""
        if self._placed is not None and place in self._placed.shapes:
            return self._coded(name, self._placed.pieces(place, weight), bias, bits)
        rows, columns = weight.shape
        what = self._keeping.linear([FileMatrix(name, rows, columns)], bits, bias is not None)
        self.kept.note(name, what)
        return self._made(what, weight.detach(), bias, bits)

    def _coded(
        self, name: str, pieces: Sequence[ComputedBlocks], bias: torch.Tensor | None, bits: int
    ) -> Linear:
        if bias is not None and not is_finite(bias):
            raise BadInput(f"the bias of matrix {name} has what is no number")
        matrices = [FileMatrix(name, one.rows, one.columns, one.kind, one.label) for one in pieces]
        what = self._keeping.linear(matrices, bits, bias is not None)
        self.kept.note(name, what)
        if what.way is KeptAs.CODES:
            try:
                rows = repacked(pieces)
            except NotFiniteError as error:
                raise BadInput(f"matrix {name} has a scale that is no number") from error
            made: Linear = PackedLinear(rows, None if bias is None else bias.to(self._dtype), self._dtype)
        else:
            weight = torch.cat([torch.from_numpy(one.dequantized(0, one.rows)) for one in pieces])
            if not is_finite(weight):
                raise BadInput(f"matrix {name} has a scale that is no number")
            made = self._made(what, weight, bias, bits)
        check_made(
            name, made, pieces, bias, self._dtype, rounded_to=bits if what.way is KeptAs.ROUNDED else 8
        )
        return made

    def _made(self, what: Kept, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> Linear:
        bias = None if bias is None else bias.detach().to(self._dtype)
        if what.way is not KeptAs.ROUNDED:
            return make_linear(weight.to(self._dtype), bias, self._dtype)
        return rounded_linear(quantize(weight, bits), bias, self._dtype, copied=bool(what.copy))


def _put(model: Any, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
