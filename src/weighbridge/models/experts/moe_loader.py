"""Builds the feed-forward block of a layer, dense or sparse, from whatever packs linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.layers import Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.experts.cache import ExpertCache, Load, computation_of
from weighbridge.models.experts.file import MappedExperts, packed, write
from weighbridge.models.experts.moe import (
    LayerExperts,
    ListedExperts,
    NormedProjection,
    SharedExpert,
    SparseMlp,
)
from weighbridge.models.experts.moe_grouped import group
from weighbridge.models.experts.routing import Router
from weighbridge.models.files.config import ExpertsConfig, ModelConfig
from weighbridge.models.files.tensors import expert_matrices, gated_matrices, router_name


class Weights(Protocol):
    """What packs the tensors of a checkpoint."""

    dtype: torch.dtype  # activations compute in it

    def norm(self, name: str) -> torch.Tensor:
        """Return a tensor as float32."""
        ...

    def linear(self, names: Sequence[str], bias: bool, bits: int) -> Linear:
        """One linear layer from the rows of several matrices."""
        ...


def build_mlp(
    weights: Weights,
    config: ModelConfig,
    layer: int,
    kernels: Kernels,
    bits: int,
    cache: ExpertCache | None = None,
) -> Mlp | SparseMlp:
    """Build the feed-forward block of `layer`; with `cache`, the experts that are not resident are mapped."""
    experts = config.experts
    layer_prefix = f"model.layers.{layer}."
    prefix = f"{layer_prefix}mlp."
    if experts is None or not experts.sparse_layers[layer]:
        gate_up, down = (weights.linear(names, config.mlp_bias, bits) for names in gated_matrices(prefix))
        return Mlp(gate_up, down, kernels, config.activation)
    shared = None
    if experts.shared_intermediate_size:
        mlp = _mlp(weights, gated_matrices(prefix + "shared_expert."), False, kernels, bits)
        shared = SharedExpert(mlp, weights.norm(prefix + "shared_expert_gate.weight"))
    router = Router(weights.norm(router_name(experts, layer_prefix)), experts.top_k, experts.normalize)
    if cache is not None:
        cache.routers.append(router)
        return SparseMlp(layer, router, cache.next_layer(), shared)
    build = expert_builder(weights, experts, layer, kernels, bits)
    blocks = [build(index) for index in range(experts.count)]
    return SparseMlp(layer, router, arrange(blocks, weights.dtype), shared)


def arrange(experts: Sequence[Mlp], dtype: torch.dtype) -> LayerExperts:
    """Join all experts of a layer: in one call of our kernels where they can, else one after the other."""
    listed = ListedExperts(experts)
    return group(experts, dtype, listed) or listed


def make_cache(
    weights: Weights, config: ModelConfig, kernels: Kernels, bits: int, memory: int, directory: Path
) -> ExpertCache | None:
    """Return a cache of `memory` bytes for all experts of the model; None when all of them fit.

    Packed experts are written to `directory` once and mapped; dense ones come from the checkpoint itself.
    Raises BadInput for a dense model or too little memory, WeighbridgeError when the directory cannot be written.
    """
    experts = config.experts
    if experts is None:
        raise BadInput("--expert-cache is for mixtures of experts; this model is dense", param="expert_cache")
    sparse = [layer for layer, is_sparse in enumerate(experts.sparse_layers) if is_sparse]
    builds = [expert_builder(weights, experts, layer, kernels, bits) for layer in sparse]
    example = builds[0](0)
    forms = [form for linear in (example.gate_up, example.down) if (form := packed(linear)) is not None]
    all_packed = len(forms) == 2
    size = sum(form.nbytes for form in forms) if all_packed else example.nbytes
    if memory >= size * len(sparse) * experts.count:
        return None
    compute = [computation_of(example, experts.count, weights.dtype) for _ in sparse]
    if all_packed:
        write(directory, len(sparse), lambda row: [builds[row](index) for index in range(experts.count)])
        load: Load = MappedExperts(directory, len(sparse), weights.dtype, kernels).load
    else:
        load = lambda row, expert: builds[row](expert)  # noqa: E731
    return ExpertCache(load, compute, experts.count, experts.top_k, size, memory)


def expert_builder(
    weights: Weights, experts: ExpertsConfig, layer: int, kernels: Kernels, bits: int
) -> Callable[[int], Mlp]:
    """Return a function from the number of an expert to its packed feed-forward block."""
    prefix = f"model.layers.{layer}."
    return lambda expert: _mlp(weights, expert_matrices(experts, prefix, expert), False, kernels, bits)


def normed_projection(weights: Weights, config: ModelConfig, layer: int, qkv: Linear) -> Linear:
    """Return `qkv` with OLMoE's norms and clamp behind it where the model has them."""
    if not config.qk_norm_all_heads:
        return qkv
    prefix = f"model.layers.{layer}.self_attn."
    q_norm, k_norm = (weights.norm(f"{prefix}{name}_norm.weight") for name in "qk")
    return NormedProjection(qkv, q_norm, k_norm, config.rms_norm_eps, config.clip_qkv)


def _mlp(
    weights: Weights, names: tuple[list[str], list[str]], bias: bool, kernels: Kernels, bits: int
) -> Mlp:
    gate_up, down = names
    return Mlp(weights.linear(gate_up, bias, bits), weights.linear(down, bias, bits), kernels)
