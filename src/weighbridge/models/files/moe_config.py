"""The shape of a mixture of experts, read from Hugging Face's `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weighbridge.errors import BadInput
from weighbridge.models.files.fields import Fields

Json = dict[str, Any]

#: What transformers assumes for the experts of a family when config.json does not say.
MOE_DEFAULTS: dict[str, Json] = {
    "mixtral": {"experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    "qwen3_moe": {"experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "olmoe": {"experts": 64, "num_experts_per_tok": 8},
}


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """Experts of the sparse layers. Each token runs through `top_k` of `count` experts, and the shared one.

    The router takes the softmax over all experts, then the `top_k` largest; `normalize` divides those by their
    sum, which is the same as a softmax over them alone.
    """

    count: int
    top_k: int
    intermediate_size: int
    normalize: bool
    sparse_layers: tuple[bool, ...]  # False: this layer has an ordinary feed-forward block
    shared_intermediate_size: int = 0  # 0: no shared expert
    mixtral_names: bool = False  # tensors are called block_sparse_moe.experts.N.w1 instead of mlp.experts.N.…

    @property
    def num_sparse_layers(self) -> int:
        return sum(self.sparse_layers)


def read_experts(fields: Json, layers: int) -> ExpertsConfig | None:
    """The experts of a supported family, or None for a dense one. Raises BadInput naming the field."""
    family = fields["model_type"]
    if family not in MOE_DEFAULTS:
        return None
    defaults = MOE_DEFAULTS[family]
    count = _whole(fields, ("num_local_experts", "num_experts"), defaults["experts"])
    top_k = _whole(fields, ("num_experts_per_tok",), defaults["num_experts_per_tok"])
    if top_k > count:
        raise BadInput(f"config.json: num_experts_per_tok {top_k} is more than the {count} experts there are")
    size_name = "moe_intermediate_size" if "moe_intermediate_size" in defaults else "intermediate_size"
    shared = 0
    if "shared_expert_intermediate_size" in defaults:
        name = "shared_expert_intermediate_size"
        shared = _whole(fields, (name,), defaults[name])
    return ExpertsConfig(
        count=count,
        top_k=top_k,
        intermediate_size=_whole(fields, (size_name,), defaults.get(size_name)),
        normalize=family == "mixtral" or bool(fields.get("norm_topk_prob")),
        sparse_layers=_sparse_layers(fields, layers),
        shared_intermediate_size=shared,
        mixtral_names=family == "mixtral",
    )


def _sparse_layers(fields: Json, layers: int) -> tuple[bool, ...]:
    """Qwen has experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not exclude."""
    if not fields["model_type"].startswith("qwen"):
        return (True,) * layers
    step = _whole(fields, ("decoder_sparse_step",), 1)
    dense = fields.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise BadInput(f"config.json: mlp_only_layers must be a list of layers, not {dense!r}")
    return tuple(index not in dense and (index + 1) % step == 0 for index in range(layers))


def _whole(fields: Json, names: tuple[str, ...], default: int | None) -> int:
    """The first of `names` that is given."""
    return Fields(fields).whole(*names, default=default)
