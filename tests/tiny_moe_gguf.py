"""Tiny mixtures of experts as GGUF files, written the way llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests.tiny_gguf import finish, permute, write_byte_level, write_shape

_ARCHITECTURES = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "olmoe": "olmoe"}
_PARTS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def write_moe_gguf(
    directory: Path,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    fused: bool = True,
    **metadata: int,
) -> Path:
    """The mixture in `directory` as a GGUF file; matrices as `kind`, vectors and routers as float32.

    fused: a layer's experts in three tensors, as since April 2024; else each in its own. `metadata` are counts that
    replace those of the model, under the architecture's prefix.
    """
    config = json.loads((directory / "config.json").read_text())
    architecture = _ARCHITECTURES[config["model_type"]]
    writer = GGUFWriter(path, architecture)
    write_shape(writer, config)
    experts = config.get("num_local_experts") or config["num_experts"]
    counts = {"expert_count": experts, "expert_used_count": config["num_experts_per_tok"], **metadata}
    for key, value in counts.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if config.get("clip_qkv"):
        writer.add_clamp_kqv(config["clip_qkv"])
    _write_tensors(writer, load_file(directory / "model.safetensors"), config, architecture, kind, fused)
    write_byte_level(writer, Tokenizer.from_file(str(directory / "tokenizer.json")), "gpt-2")
    writer.add_chat_template((directory / "chat_template.jinja").read_text())
    finish(writer)
    return path


def _write_tensors(
    writer: GGUFWriter,
    tensors: dict[str, np.ndarray],
    config: dict[str, Any],
    architecture: str,
    kind: GGMLQuantizationType,
    fused: bool,
) -> None:
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.upper()), config["num_hidden_layers"]
    )
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors.items():
        parts = name.split(".")
        if ".experts." in name:
            layer, number, part = int(parts[2]), int(parts[-3]), _PARTS[parts[-2]]
            experts.setdefault(f"blk.{layer}.ffn_{part}", {})[number] = values
            continue
        if architecture == "llama" and parts[-2] in heads:
            values = permute(values, heads[parts[-2]])
        if name.endswith("shared_expert_gate.weight"):
            values = values.reshape(-1)  # [1, hidden] there, [hidden] here
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        plain = values.ndim < 2 or "ffn_gate_inp" in theirs
        _add(writer, theirs, values, GGMLQuantizationType.F32 if plain else kind)
    for stem, matrices in experts.items():
        if fused:
            _add(writer, f"{stem}_exps.weight", np.stack([matrices[i] for i in range(len(matrices))]), kind)
            continue
        for number, values in matrices.items():
            _add(writer, f"{stem}.{number}.weight", values, kind)


def _add(writer: GGUFWriter, name: str, values: np.ndarray, kind: GGMLQuantizationType) -> None:
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
