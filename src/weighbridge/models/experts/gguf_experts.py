"""Mixtures of experts in GGUF files: their names, one expert out of a fused tensor, and what the file leaves unsaid.

A layer's experts are three tensors [experts, rows, columns]; before April 2024 each expert had its own. Whether
the weights of the chosen experts are normalised is part of an architecture's code in llama.cpp, not of its files.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from weighbridge.errors import BadInput
from weighbridge.models.files.gguf_format import TensorEntry
from weighbridge.models.files.moe_config import ExpertsConfig

if TYPE_CHECKING:
    from weighbridge.models.files.gguf import GgufFile

#: GGUF architectures with experts: their Hugging Face family, and whether a token's weights are normalised.
FAMILIES = {
    "llama": ("mixtral", True),
    "qwen2moe": ("qwen2_moe", False),
    "qwen3moe": ("qwen3_moe", True),
    "olmoe": ("olmoe", False),
}

#: Hugging Face names, behind the layer, of what surrounds the experts.
NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_FUSED = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")
_SINGLE = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)\.(\d+)\.weight")


def fused_name(name: str) -> str | None:
    """The tensor that holds an expert's matrix of this Hugging Face name; None for what is no expert's."""
    match = _EXPERT.fullmatch(name)
    return None if match is None else f"blk.{match[1]}.ffn_{match[3]}_exps.weight"


def find_expert(name: str, tensors: dict[str, TensorEntry]) -> TensorEntry | None:
    """The matrix of one expert by its Hugging Face name; None where the file has no such expert."""
    match = _EXPERT.fullmatch(name)
    if match is None:
        return None
    layer, expert, part = match.groups()
    fused = tensors.get(f"blk.{layer}.ffn_{part}_exps.weight")
    if fused is None:
        return tensors.get(f"blk.{layer}.ffn_{part}.{expert}.weight")
    return _slice(fused, int(expert))


def _slice(fused: TensorEntry, index: int) -> TensorEntry | None:
    if len(fused.shape) != 3 or index >= fused.shape[0]:
        return None
    size = fused.nbytes // fused.shape[0]
    return replace(fused, shape=fused.shape[1:], start=fused.start + index * size, nbytes=size)


def expert_names(entry: TensorEntry) -> list[str]:
    """Hugging Face names of the experts in a tensor; empty when it holds none."""
    fused, single = _FUSED.fullmatch(entry.name), _SINGLE.fullmatch(entry.name)
    if fused is not None:
        layer, part = fused.groups()
        numbers = [str(index) for index in range(entry.shape[0])]
    elif single is not None:
        layer, part, number = single.groups()
        numbers = [number]
    else:
        return []
    return [f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.weight" for number in numbers]


def read_experts(file: GgufFile, layers: int, count: int, top_k: int) -> ExpertsConfig:
    """The experts of `file`, which has `count` and uses `top_k`. Raises BadInput for sizes that do not fit."""
    if not 1 <= top_k <= count:
        raise BadInput(f"{file.path.name}: a token cannot use {top_k} of {count} experts")
    sparse = tuple(f"model.layers.{layer}.mlp.gate.weight" in file for layer in range(layers))
    if True not in sparse:
        raise BadInput(f"{file.path.name} declares {count} experts and has no router (ffn_gate_inp)")
    prefix = f"model.layers.{sparse.index(True)}.mlp."
    routed = file.shape(f"{prefix}gate.weight")[0]
    if routed != count:
        raise BadInput(f"{file.path.name} declares {count} experts, its router knows {routed}")
    shared = f"{prefix}shared_expert.gate_proj.weight"
    normalize = FAMILIES[file.architecture][1]
    return ExpertsConfig(
        count=count,
        top_k=top_k,
        intermediate_size=file.shape(f"{prefix}experts.{count - 1}.gate_proj.weight")[0],
        normalize=file.flag(f"{file.architecture}.expert_weights_norm", normalize),
        sparse_layers=sparse,
        shared_intermediate_size=file.shape(shared)[0] if shared in file else 0,
    )
