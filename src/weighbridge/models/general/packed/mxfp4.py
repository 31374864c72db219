"""Experts that a directory has in MXFP4, as gpt-oss is published: read as codes, which stay codes in memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from weighbridge.errors import BadInput, some_of
from weighbridge.models.files.fields import shown
from weighbridge.models.files.packed_tensors import ComputedBlocks, mxfp4_blocks
from weighbridge.models.files.tensors import PLAIN

METHOD = "mxfp4"
#: Types whose experts are published so, with the word of their configuration for an expert's width, which nothing else
#: of them has: a model of width one is made, and its experts are put in from the file.
WIDTHS = {"gpt_oss": "intermediate_size"}
_GROUP, _BYTES = 32, 16  # weights with one scale, and what they are in a file


def is_coded(name: str) -> bool:
    """Whether a tensor belongs to an expert's matrix in MXFP4, or is its bias."""
    return ".experts." in name and name.endswith(("_blocks", "_scales", "_bias"))


class CodedExperts:
    """The tensors of a file by name: codes [experts, rows, columns / 32, 16], scales [experts, rows, columns / 32] and
    biases [experts, rows]."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors
        for name, stored in tensors.items():
            expected = PLAIN if name.endswith("_bias") else ("U8",)
            if (kind := str(stored.get_dtype())) not in expected:
                what = "a bias" if name.endswith("_bias") else "codes of MXFP4"
                raise BadInput(f"tensor {shown(name)} has type {shown(kind)}, where {what} belong")

    @property
    def numbers(self) -> int:
        """How many weights they are."""
        return sum(2 * prod(one.get_shape()) for one in self._tensors.values())

    def check(self, layers: Mapping[str, Mapping[str, tuple[int, int, int]]]) -> None:
        """Raise BadInput where they are not what the layers' matrices want, by name [experts, rows, columns]."""
        left = set(self._tensors)
        for layer, matrices in layers.items():
            for matrix, shape in matrices.items():
                for part, wanted in _wanted(*shape).items():
                    name = f"{layer}.{matrix}_{part}"
                    if name not in left:
                        raise BadInput(f"there is no tensor {name}: the checkpoint is incomplete")
                    left.remove(name)
                    found = list(self._tensors[name].get_shape())
                    if found != wanted or shape[2] % _GROUP:
                        raise BadInput(f"tensor {name} has shape {found}, where {wanted} belongs")
        if left:
            names = some_of([shown(name) for name in sorted(left)])
            raise BadInput(f"there are tensors that the configuration has no place for: {names}")

    def count(self, layer: str) -> int:
        return int(self._tensors[f"{layer}.down_proj_bias"].get_shape()[0])

    def matrix(self, layer: str, matrix: str, expert: int) -> tuple[ComputedBlocks, torch.Tensor]:
        """Return [out, in] of an expert in its codes, and its bias."""
        stem = f"{layer}.{matrix}"
        codes, scales, bias = (
            self._tensors[f"{stem}_{part}"][expert] for part in ("blocks", "scales", "bias")
        )
        return mxfp4_blocks(codes.flatten(1).numpy(), scales.numpy(), "MXFP4"), bias


def _wanted(count: int, rows: int, columns: int) -> dict[str, list[int]]:
    groups = columns // _GROUP
    return {"blocks": [count, rows, groups, _BYTES], "scales": [count, rows, groups], "bias": [count, rows]}
