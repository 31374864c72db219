"""Which experts to keep on the fast device when not all fit, what that is worth, and how to tell other engines.

A decode step reads what every token needs and the experts it chose: from fast memory where they are resident, from
slow memory (computed there, as llama.cpp and KTransformers do) where they are not. Speed is bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weighbridge.errors import BadInput
from weighbridge.planner.experts.layout import Parameters
from weighbridge.planner.memory.memory import GIB, PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.architecture import Architecture
from weighbridge.planner.model.tensors import DRAFT, Kind, Tensor

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class OffloadMachine:
    """fast_bytes: memory of the fast device. reserved_bytes: what of it is not for weights: the cache, compute buffers.

    Bandwidths in bytes per second; `efficiency`: the share of a bandwidth that kernels reach.
    """

    fast_bytes: float
    fast_bandwidth: float
    slow_bandwidth: float
    efficiency: float = 0.8
    reserved_bytes: float = 0.0

    def room(self, resident_bytes: float) -> float:
        """What is left for experts. Raises BadInput when not even the resident weights fit."""
        left = self.fast_bytes - self.reserved_bytes - resident_bytes
        if left < 0:
            beside = (
                f" and the cache and buffers {self.reserved_bytes / 1e9:.2f} GB"
                if self.reserved_bytes
                else ""
            )
            raise BadInput(
                f"the weights every token needs take {resident_bytes / 1e9:.2f} GB{beside}, more than the "
                f"{self.fast_bytes / 1e9:.2f} GB given: use fewer bits per weight, a shorter --context or more memory"
            )
        return left

    def check(self) -> None:
        """Raises BadInput."""
        for name in ("fast_bytes", "fast_bandwidth", "slow_bandwidth"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise BadInput(f"{name} must be more than 0, not {getattr(self, name)}", param=name)


@dataclass(frozen=True, slots=True)
class MixtureBytes:
    """Where the bytes of a mixture are. `experts` [sparse layers]: one expert of each layer, since files that mix types
    have more bits in some. `resident`: what every token needs, of which `looked_up` is the input embedding that
    llama.cpp leaves in host memory."""

    experts: Floats
    resident: float
    looked_up: float = 0.0

    @staticmethod
    def even(parameters: Parameters, bits: float) -> MixtureBytes:
        """As if all weights had so many bits."""
        each = np.full(parameters.sparse_layers, parameters.expert * bits / 8)
        return MixtureBytes(each, parameters.resident * bits / 8)

    @staticmethod
    def stored(
        parameters: Parameters, tensors: Mapping[Tensor, float], architecture: Architecture
    ) -> MixtureBytes:
        """As the tensors of a file are, in bytes. What is for drafts only is left out."""
        at = {layer: place for place, layer in enumerate(parameters.sparse)}
        experts = np.zeros(len(at))
        resident = looked_up = 0.0
        for tensor, size in tensors.items():
            if tensor.kind is Kind.EXPERT and tensor.layer in at:
                experts[at[tensor.layer]] += size
            elif tensor.layer != DRAFT:
                resident += size
                if tensor.kind is Kind.EMBED and not architecture.tied:
                    looked_up += size
        return MixtureBytes(experts / parameters.experts, resident, looked_up)


@dataclass(frozen=True, slots=True)
class Split:
    """kept [sparse layers, experts]: experts on the fast device. hit_rate: share of a token's experts found there."""

    kept: Flags
    hit_rate: float
    fast_bytes: float
    tokens_per_second: float


def keep_hottest(
    parameters: Parameters, sizes: MixtureBytes, heat: Floats | None, machine: OffloadMachine
) -> Split:
    """Fill what fast memory is left beside the resident weights with the experts that are used most.

    heat: tokens per expert [sparse layers, experts]; None: nothing is known, experts are taken layer by layer.
    Raises BadInput when not even the resident weights fit.
    """
    machine.check()
    use = _probabilities(heat, (parameters.sparse_layers, parameters.experts), parameters.top_k)
    order = np.argsort(-use, axis=None, kind="stable")
    each = np.repeat(sizes.experts, parameters.experts)
    kept = _fitting(order, each, machine.room(sizes.resident))
    return evaluate(sizes, use, kept.reshape(use.shape), machine)


def keep_last_layers(
    parameters: Parameters, sizes: MixtureBytes, heat: Floats | None, machine: OffloadMachine
) -> Split:
    """Keep what llama.cpp's --n-cpu-moe can keep: all experts of the first layers on the CPU, the others fast."""
    machine.check()
    kept = np.zeros((parameters.sparse_layers, parameters.experts), np.bool_)
    kept[_first_fast(parameters, sizes, machine.room(sizes.resident)) :] = True
    use = _probabilities(heat, kept.shape, parameters.top_k)
    return evaluate(sizes, use, kept, machine)


def _first_fast(parameters: Parameters, sizes: MixtureBytes, room: float) -> int:
    """The first sparse layer from which on all fit."""
    taken = np.cumsum(sizes.experts[::-1] * parameters.experts)
    return parameters.sparse_layers - int(np.searchsorted(taken, room, side="right"))


def _fitting(order: npt.NDArray[np.int64], sizes: Floats, room: float) -> Flags:
    """Of things with `sizes` those that fit into `room`, when they are taken in an order and what is too large left."""
    kept = np.zeros(len(sizes), np.bool_)
    for place in order.tolist():
        if sizes[place] <= room:
            kept[place] = True
            room -= sizes[place]
    return kept


def evaluate(sizes: MixtureBytes, use: Floats, kept: Flags, machine: OffloadMachine) -> Split:
    """Return the speed of decoding one sequence.

    use: probability that a token chooses an expert [sparse layers, experts].
    """
    read = use * sizes.experts[:, None]  # bytes of each expert that a token reads, on average
    fast, slow = float(read[kept].sum()), float(read[~kept].sum())
    seconds = (sizes.resident + fast) / machine.fast_bandwidth + slow / machine.slow_bandwidth
    found = float(use[kept].sum()) / float(use.sum()) if use.sum() else 0.0
    on_device = sizes.resident + float((kept * sizes.experts[:, None]).sum())
    return Split(kept, found, on_device, machine.efficiency / seconds)


def _probabilities(heat: Floats | None, shape: tuple[int, int], top_k: int) -> Floats:
    if heat is None:
        return np.full(shape, top_k / shape[1])
    if heat.shape != shape:
        raise BadInput(
            f"loads are {heat.shape[0]} layers x {heat.shape[1]} experts, the model has {shape[0]} x {shape[1]}"
        )
    probabilities: Floats = np.minimum(heat / heat.sum(axis=1, keepdims=True) * top_k, 1.0)
    return probabilities


def serving_bytes(architecture: Architecture, context: int, kv_dtype: str) -> float:
    """Return what is on the fast device beside weights when llama.cpp serves `context` tokens: the cache, and compute
    buffers at the upper end of their estimate, since flags that need more than there is are of no use."""
    deployment = Deployment(engine="llama.cpp", max_model_len=context, kv_dtype=kv_dtype)
    plan = plan_memory(PlannedModel(architecture.family, architecture), deployment, None)
    assert plan.kv is not None, "llama.cpp's cache has a size without a device"
    return plan.kv.pool_bytes + (plan.overheads.activation.high + plan.overheads.framework.high) * GIB


def engine_flags(
    split: Split, parameters: Parameters, sizes: MixtureBytes, machine: OffloadMachine
) -> dict[str, Any]:
    """Return the settings that come closest in other engines, which keep or leave whole layers, and fit.

    llama.cpp stores the experts of a layer as one tensor, so it moves layers; the layers with the least heat on
    the fast device go to the CPU. vLLM offloads weights of any kind, without regard to heat.
    """
    per_layer = split.kept.sum(axis=1)
    room = machine.room(sizes.resident)
    layers = sizes.experts * parameters.experts
    beside = room + sizes.looked_up
    whole = _fitting(np.argsort(-per_layer, kind="stable"), layers, beside)
    on_cpu = [layer for layer, stays in zip(parameters.sparse, whole, strict=True) if not stays]
    first = _first_fast(parameters, sizes, beside)
    left = float((~split.kept * sizes.experts[:, None]).sum()) / 2**30
    return {
        "llama.cpp": {
            "n_cpu_moe": parameters.sparse[first - 1] + 1 if first else 0,
            "override_tensor": f"{override_pattern(on_cpu)}=CPU" if on_cpu else None,
        },
        "ktransformers": {
            "kt-num-gpu-experts": min(int(room // sizes.experts.sum()), parameters.experts),
            "kt-expert-placement-strategy": "frequency",
        },
        "vllm": {"cpu-offload-gb": math.ceil(left * 100) / 100},
    }


def override_pattern(layers: list[int]) -> str:
    """Return a regular expression for llama.cpp's -ot that names the expert tensors of exactly these layers: those that
    its own --n-cpu-moe names, with gate and up in one tensor or in two."""
    numbers = "|".join(str(layer) for layer in layers)
    return rf"blk\.({numbers})\.ffn_(up|down|gate|gate_up)_(ch|)exps"
