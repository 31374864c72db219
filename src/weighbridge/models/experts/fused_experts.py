"""Safetensors whose experts are one tensor per layer, as transformers 5 keeps them: one expert's part of it.

`experts.gate_up_proj` is [experts, 2 * size, hidden], gate above up, and `experts.down_proj` [experts, hidden, size];
some files have each matrix transposed. Every family calls the block `mlp` there, and its router `mlp.gate`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from weighbridge.errors import BadInput
from weighbridge.models.files.config import ModelConfig

_EXPERT = re.compile(r"(model\.layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
_ROUTER = re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.gate\.weight")
_PARTS = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1, "down_proj": 2, "w2": 2}


@dataclass(frozen=True, slots=True)
class Part:
    """Where a matrix is: all of tensor `name` (expert None), or of one expert the half `half` (None: both)."""

    name: str
    expert: int | None = None
    half: int | None = None


def locate(name: str, stored: Collection[str]) -> Part | None:
    """The place of what a checkpoint does not have under its usual `name`; None: it has it nowhere."""
    router = _ROUTER.fullmatch(name)
    if router is not None:
        return _if_stored(Part(f"{router[1]}.mlp.gate.weight"), stored)
    match = _EXPERT.fullmatch(name)
    kind = None if match is None else _PARTS.get(match[3])
    if match is None or kind is None:
        return None
    stem = f"{match[1]}.mlp.experts"
    tensor = f"{stem}.down_proj" if kind == 2 else f"{stem}.gate_up_proj"
    return _if_stored(Part(tensor, int(match[2]), None if kind == 2 else kind), stored)


def _if_stored(part: Part, stored: Collection[str]) -> Part | None:
    return part if part.name in stored else None


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows or columns of one expert's matrix: `start` to `end` along the outer or inner axis, then turned or not."""

    start: int
    end: int
    transposed: bool


def cut(part: Part, shape: list[int], config: ModelConfig) -> Cut:
    """How to take `part` out of a tensor of this shape. Raises BadInput when it is not that of the model."""
    experts = config.experts
    assert experts is not None
    size, hidden = experts.intermediate_size, config.hidden_size
    usual = (hidden, size) if part.half is None else (2 * size, hidden)
    if len(shape) != 3 or shape[0] != experts.count or tuple(shape[1:]) not in (usual, usual[::-1]):
        expected = [experts.count, *usual]
        raise BadInput(f"tensor {part.name!r} has shape {shape}, not {expected}: the checkpoint is damaged")
    transposed = tuple(shape[1:]) != usual
    if part.half is None:
        return Cut(0, usual[0], transposed)
    return Cut(part.half * size, (part.half + 1) * size, transposed)
