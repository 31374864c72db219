"""Random LoRA adapters as PEFT saves them, and the models that they make of a base, merged by hand."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
PREFIX = "base_model.model."


def adaptable(model: torch.nn.Module, targets: Collection[str]) -> dict[str, torch.nn.Linear]:
    """The linear layers of a model of transformers whose names end in one of `targets`."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in targets
    }


def lora_tensors(
    modules: Mapping[str, torch.nn.Linear], rank: int, seed: int, ranks: Mapping[str, int] | None = None
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in modules.items():
        r = next((one for end, one in (ranks or {}).items() if name.endswith(f".{end}")), rank)
        down = torch.randn(r, module.in_features, generator=generator) / math.sqrt(module.in_features)
        up = torch.randn(module.out_features, r, generator=generator) * 0.1
        tensors |= {f"{PREFIX}{name}.lora_A.weight": down, f"{PREFIX}{name}.lora_B.weight": up}
    return tensors


def lora_config(targets: Collection[str], **fields: Any) -> dict[str, Any]:
    """What PEFT writes for a plain adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "target_modules": sorted(targets),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
        **fields,
    }


def make_lora(
    model: torch.nn.Module, directory: Path, targets: Collection[str] = ALL, *, seed: int = 0, **fields: Any
) -> Path:
    """Save a random adapter over `model`, which is one of transformers."""
    config = lora_config(targets, **fields)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = lora_tensors(adaptable(model, targets), config["r"], seed, config["rank_pattern"])
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def merged(model: torch.nn.Module, directory: Path) -> torch.nn.Module:
    """The model with an adapter in its weights: W + alpha / r * B A, or by the root of r where ranks are stabilised."""
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter_model.safetensors")
    whole = copy.deepcopy(model)
    modules = dict(whole.named_modules())
    with torch.no_grad():
        for key, down in tensors.items():
            if ".lora_A." in key:
                name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
                alpha = next(
                    (one for end, one in config["alpha_pattern"].items() if name.endswith(f".{end}")),
                    config["lora_alpha"],
                )
                rank = len(down)
                scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
                modules[name].weight += scale * (tensors[key.replace("lora_A", "lora_B")] @ down)
    return whole
