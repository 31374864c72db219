"""Tiny randomly initialised mixtures of experts of every family, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny import save_random

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 96}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 37}),
    "qwen2-moe": (
        "Qwen2Moe",
        {
            "num_experts": 12,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 96,
            "norm_topk_prob": False,
        },
    ),
    "qwen2-moe-mixed": (
        "Qwen2Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 32,
            "head_dim": 32,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe-raw": (
        "Qwen3Moe",
        {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": False},
    ),
    "olmoe": ("Olmoe", {"num_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 64}),
    "olmoe-clip": ("Olmoe", {"num_experts": 8, "num_experts_per_tok": 2, "clip_qkv": 1.5}),
}
MOE_FAMILIES = tuple(_FAMILIES)


def make_tiny_moe(family: str, directory: Path, **overrides: Any) -> Path:
    """Save a random mixture of experts with a small tokenizer; same seed, same weights."""
    name, extra = _FAMILIES[family]
    return save_random(name, {**extra, **overrides}, directory)
