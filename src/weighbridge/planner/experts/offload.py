"""Which experts to keep on the fast device when not all fit, what that is worth, and how to tell other engines.

A decode step reads what every token needs and the experts it chose: from fast memory where they are resident, from
slow memory (computed there, as llama.cpp and KTransformers do) where they are not. Speed is bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weighbridge.errors import BadInput
from weighbridge.planner.experts.layout import Parameters

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class OffloadMachine:
    """fast_bytes: memory of the fast device for weights. Bandwidths in bytes per second; `efficiency`: the share
    of a bandwidth that kernels reach."""

    fast_bytes: float
    fast_bandwidth: float
    slow_bandwidth: float
    efficiency: float = 0.8

    def check(self) -> None:
        """Raises BadInput."""
        for name in ("fast_bytes", "fast_bandwidth", "slow_bandwidth"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise BadInput(f"{name} must be more than 0, not {getattr(self, name)}", param=name)


@dataclass(frozen=True, slots=True)
class Split:
    """kept [sparse layers, experts]: experts on the fast device. hit_rate: share of a token's experts found there."""

    kept: Flags
    hit_rate: float
    fast_bytes: float
    tokens_per_second: float


def keep_hottest(
    parameters: Parameters, bytes_per_weight: float, heat: Floats | None, machine: OffloadMachine
) -> Split:
    """Fill what fast memory is left beside the resident weights with the experts that are used most.

    heat: tokens per expert [sparse layers, experts]; None: nothing is known, experts are taken layer by layer.
    Raises BadInput when not even the resident weights fit.
    """
    machine.check()
    shape = (parameters.sparse_layers, parameters.experts)
    use = _probabilities(heat, shape, parameters.top_k)
    room = machine.fast_bytes - parameters.resident * bytes_per_weight
    if room < 0:
        raise BadInput(
            f"the weights every token needs take {parameters.resident * bytes_per_weight / 1e9:.2f} GB, more "
            f"than the {machine.fast_bytes / 1e9:.2f} GB given: use fewer bits per weight or more memory"
        )
    count = min(int(room // (parameters.expert * bytes_per_weight)), use.size)
    kept = np.zeros(use.size, np.bool_)
    kept[np.argsort(-use, axis=None, kind="stable")[:count]] = True
    return evaluate(parameters, bytes_per_weight, use, kept.reshape(shape), machine)


def keep_last_layers(
    parameters: Parameters, bytes_per_weight: float, heat: Floats | None, machine: OffloadMachine
) -> Split:
    """Keep what llama.cpp's --n-cpu-moe can keep: all experts of the first layers on the CPU, the others fast."""
    machine.check()
    shape = (parameters.sparse_layers, parameters.experts)
    layer = parameters.experts * parameters.expert * bytes_per_weight
    room = machine.fast_bytes - parameters.resident * bytes_per_weight
    whole = min(max(int(room // layer), 0), shape[0])
    kept = np.zeros(shape, np.bool_)
    kept[shape[0] - whole :] = True
    return evaluate(
        parameters, bytes_per_weight, _probabilities(heat, shape, parameters.top_k), kept, machine
    )


def evaluate(
    parameters: Parameters, bytes_per_weight: float, use: Floats, kept: Flags, machine: OffloadMachine
) -> Split:
    """Return the speed of decoding one sequence.

    use: probability that a token chooses an expert [sparse layers, experts].
    """
    expert = parameters.expert * bytes_per_weight
    resident = parameters.resident * bytes_per_weight
    fast, slow = float(use[kept].sum()), float(use[~kept].sum())
    seconds = (resident + fast * expert) / machine.fast_bandwidth + slow * expert / machine.slow_bandwidth
    hit_rate = fast / (fast + slow) if fast + slow else 0.0
    return Split(kept, hit_rate, resident + kept.sum() * expert, machine.efficiency / seconds)


def _probabilities(heat: Floats | None, shape: tuple[int, int], top_k: int) -> Floats:
    if heat is None:
        return np.full(shape, top_k / shape[1])
    if heat.shape != shape:
        raise BadInput(
            f"loads are {heat.shape[0]} layers x {heat.shape[1]} experts, the model has {shape[0]} x {shape[1]}"
        )
    probabilities: Floats = np.minimum(heat / heat.sum(axis=1, keepdims=True) * top_k, 1.0)
    return probabilities


def engine_flags(split: Split, routed_bytes: float, first_sparse_layer: int = 0) -> dict[str, Any]:
    """Return the settings that come closest in other engines, which keep or leave whole layers.

    llama.cpp stores the experts of a layer as one tensor, so it moves layers; the layers with the least heat on
    the fast device go to the CPU. vLLM offloads weights of any kind, without regard to heat.
    routed_bytes: of all routed experts. first_sparse_layer: where sparse layers begin (3 in DeepSeek-V3).
    """
    per_layer = split.kept.sum(axis=1)
    layers, experts = split.kept.shape
    whole = round(int(per_layer.sum()) / experts)  # as many experts, in whole layers
    order = np.argsort(-per_layer, kind="stable")
    on_cpu = sorted(int(index) + first_sparse_layer for index in order[whole:])
    return {
        "llama.cpp": {
            "n_cpu_moe": first_sparse_layer + layers - whole if whole < layers else 0,
            "override_tensor": f"{override_pattern(on_cpu)}=CPU" if on_cpu else None,
        },
        "ktransformers": {
            "kt-num-gpu-experts": int(per_layer.sum() // layers),
            "kt-expert-placement-strategy": "frequency",
        },
        "vllm": {"cpu-offload-gb": round(float((~split.kept).mean()) * routed_bytes / 2**30, 2)},
    }


def override_pattern(layers: list[int]) -> str:
    """Return a regular expression for llama.cpp's -ot that names the expert tensors of exactly these layers."""
    numbers = "|".join(str(layer) for layer in layers)
    return rf"blk\.({numbers})\.ffn_(up|down|gate)_exps"
