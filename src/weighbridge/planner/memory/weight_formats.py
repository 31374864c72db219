"""How many bytes a weight takes, by the format it is stored in and by what it is for.

Bits per quantised element include scales and zero points:
    awq, gptq   4 bits + (16-bit scale + 4-bit zero) per group of 128
    fp8, int8   8 bits, one scale per row, tensor or 128 x 128 block
    mxfp4       4 bits + 8-bit exponent per 32 (OCP MX)
    nvfp4       4 bits + fp8 scale per 16
    int4        4 bits + 16-bit scale per 32 where only experts are quantised (QAT), else as awq
    bnb-4bit    4 bits + 32-bit absmax per 64
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from weighbridge.errors import BadInput
from weighbridge.planner.model.architecture import Architecture
from weighbridge.planner.model.tensors import Kind, Tensor

_LINEAR = frozenset({Kind.ATTENTION, Kind.LINEAR, Kind.MLP, Kind.SHARED, Kind.EXPERT})
_EXPERTS = frozenset({Kind.EXPERT})


class Remark(StrEnum):
    """Something people should know of a format; the value is the sentence."""

    EXPERTS_ONLY = "only the routed experts are quantised, as in published checkpoints of such models"
    SECRET_MIX = "Unsloth's dynamic mixes are not public: give the file for exact sizes"


class Arithmetic(Enum):
    """How products with the weights are computed, which decides their speed."""

    DENSE = "in 16 bits"
    QUANTIZED = "activations are quantized before each product"
    UNPACKED = "integers of few bits that no unit multiplies: unpacked to 16 bits first"


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """`quantised` kinds take `bits` per element; the others `dense_bytes`."""

    name: str
    bits: float = 16.0
    quantised: frozenset[Kind] = frozenset()
    dense_bytes: int = 2
    skip_ends: bool = False  # first and last layer stay dense
    arithmetic: Arithmetic = Arithmetic.DENSE
    remark: Remark | None = None

    def element_bytes(self, tensor: Tensor, layers: int) -> float:
        ends = self.skip_ends and tensor.layer in (0, layers - 1)
        if tensor.kind in self.quantised and not ends:
            return self.bits / 8
        return float(self.dense_bytes)


_GROUP128 = 4 + 20 / 128
_FORMATS = {
    "bf16": WeightFormat("bf16"),
    "fp32": WeightFormat("fp32", dense_bytes=4),
    "fp8": WeightFormat("fp8", 8.0, _LINEAR, arithmetic=Arithmetic.QUANTIZED),
    "int8": WeightFormat("int8", 8.0, _LINEAR, arithmetic=Arithmetic.QUANTIZED),
    "awq": WeightFormat("awq", _GROUP128, _LINEAR, arithmetic=Arithmetic.UNPACKED),
    "gptq": WeightFormat("gptq", _GROUP128, _LINEAR, arithmetic=Arithmetic.UNPACKED),
    "gptq-8bit": WeightFormat("gptq-8bit", 8 + 20 / 128, _LINEAR, arithmetic=Arithmetic.UNPACKED),
    "int4": WeightFormat("int4", _GROUP128, _LINEAR, arithmetic=Arithmetic.UNPACKED),
    "nvfp4": WeightFormat("nvfp4", 4.5, _LINEAR - {Kind.LINEAR}, arithmetic=Arithmetic.QUANTIZED),
    "mxfp4": WeightFormat("mxfp4", 4.25, _EXPERTS),
    "mxfp8": WeightFormat("mxfp8", 8.25, _LINEAR, arithmetic=Arithmetic.QUANTIZED),
    "fbgemm-fp8": WeightFormat(
        "fbgemm-fp8", 8.0, frozenset({Kind.MLP}), skip_ends=True, arithmetic=Arithmetic.QUANTIZED
    ),
    "bnb-4bit": WeightFormat("bnb-4bit", 4.5, _LINEAR, arithmetic=Arithmetic.UNPACKED),
    "bnb-8bit": WeightFormat("bnb-8bit", 8.0, _LINEAR),
}
_ALIASES = {
    "bfloat16": "bf16", "float16": "bf16", "fp16": "bf16", "f16": "bf16", "half": "bf16", "none": "bf16",
    "float32": "fp32", "f32": "fp32", "fp8-e4m3": "fp8", "fp8-block": "fp8", "w8a8-fp8": "fp8",
    "w8a8": "int8", "w8a8-int8": "int8", "int8-w8a8": "int8", "w4a16": "gptq", "awq-4bit": "awq",
    "awq-marlin": "awq", "gptq-4bit": "gptq", "gptq-marlin": "gptq", "gptq-int8": "gptq-8bit", "4bit": "awq",
    "auto-round": "gptq", "auto-round-int4": "gptq", "autoround": "gptq", "bitsandbytes": "bnb-4bit",
    "fbgemm": "fbgemm-fp8", "modelopt-fp4": "nvfp4", "fp4": "nvfp4",
}  # fmt: skip
NAMES = tuple(_FORMATS)


def is_format(name: str) -> bool:
    """Return whether `name` is a format of vLLM and SGLang (GGUF types have names of their own)."""
    key = re.sub(r"[_ ]+", "-", name.strip().lower())
    return _ALIASES.get(key, key) in _FORMATS


def weight_format(name: str, architecture: Architecture) -> WeightFormat:
    """Return the format called `name`, as checkpoints of such a model use it. Raises BadInput for an unknown name.

    "-g64" or "-g-1" (one group a row) after awq, gptq or int4 sets the group size. Published nvfp4 checkpoints
    of experts models, and int4 ones with latent attention (Kimi), quantise the routed experts only; nvfp4 leaves
    linear attention in 16 bits; the others quantise every linear layer but the head.
    """
    key = re.sub(r"[_ ]+", "-", name.strip().lower())
    key = _ALIASES.get(key, key)
    group = re.fullmatch(r"(.*)-g(-1|\d+)", key)
    if group and _ALIASES.get(group.group(1), group.group(1)) in ("awq", "gptq", "int4"):
        return _grouped(_ALIASES.get(group.group(1), group.group(1)), 4, int(group.group(2)))
    if key not in _FORMATS:
        raise BadInput(
            f"weight format {name!r} is not known; known: {', '.join(NAMES)}, or a GGUF type like q4_k_m"
        )
    chosen = _FORMATS[key]
    if architecture.has_experts and (key == "nvfp4" or (key == "int4" and architecture.latent)):
        bits = 4.5 if key == "int4" else chosen.bits
        return replace(chosen, bits=bits, quantised=_EXPERTS, remark=Remark.EXPERTS_ONLY)
    return chosen


def published_format(architecture: Architecture) -> WeightFormat:
    """Return the format that quantization_config names, or 16 bits. Raises BadInput for an unknown method."""
    config = architecture.quantization
    if not config:
        return _FORMATS["bf16"]
    method = str(config.get("quant_method") or config.get("quant_algo") or "").lower()
    ignored = " ".join(str(x) for x in _strings(config.get("ignore"), config.get("modules_to_not_convert")))
    bits = _count(config.get("bits") or config.get("w_bit"))
    if method in ("compressed-tensors", "modelopt"):
        chosen = _from_groups(config)
    elif method in ("awq", "gptq", "auto-round", "autoround", "gptq_marlin", "awq_marlin"):
        chosen = _grouped("awq" if method.startswith("awq") else "gptq", bits or 4, config.get("group_size"))
    elif method == "bitsandbytes":
        chosen = _FORMATS["bnb-4bit" if config.get("load_in_4bit") else "bnb-8bit"]
    elif method in ("fp8", "mxfp4", "fbgemm_fp8", "nvfp4"):
        chosen = _FORMATS[method.replace("_", "-")]
    else:
        raise BadInput(
            f"config.json: quantization_config.quant_method {method!r} is not known; give --weights"
        )
    return _without(chosen, ignored)


def _from_groups(config: dict[str, object]) -> WeightFormat:
    """compressed-tensors and ModelOpt describe each group of layers by bits, type and group size."""
    algo = str(config.get("quant_algo") or config.get("format") or "").lower()
    groups = config.get("config_groups")
    weights: dict[str, object] = {}
    if isinstance(groups, dict) and groups:
        first = next(iter(groups.values()))
        if isinstance(first, dict) and isinstance(first.get("weights"), dict):
            weights = first["weights"]
    bits, kind = _count(weights.get("num_bits")), str(weights.get("type") or "")
    if "nvfp4" in algo or (bits == 4 and kind == "float"):
        return _FORMATS["nvfp4"]
    if "fp8" in algo or "float-quantized" in algo or (bits == 8 and kind == "float"):
        return _FORMATS["fp8"]
    if bits == 8:
        return _FORMATS["int8"]
    if bits == 4 or "w4" in algo or "int4" in algo:
        return _grouped("int4", 4, weights.get("group_size"), zeros=not weights.get("symmetric", True))
    raise BadInput("config.json: quantization_config has weights of a kind not known; give --weights")


def _grouped(name: str, bits: int, group: object, *, zeros: bool = True) -> WeightFormat:
    size = group if isinstance(group, int) and group > 0 else 0
    extra = (16 + (bits if zeros else 0)) / size if size else 0.0
    return WeightFormat(name, bits + extra, _LINEAR, arithmetic=Arithmetic.UNPACKED)


def _without(chosen: WeightFormat, ignored: str) -> WeightFormat:
    """Leave out the kinds whose modules the checkpoint says were not converted."""
    kinds = set(chosen.quantised)
    if re.search(r"self_attn|attention", ignored):
        kinds.discard(Kind.ATTENTION)
    if re.search(r"linear_attn|mamba|mixer", ignored):
        kinds.discard(Kind.LINEAR)
    if "shared_expert" in ignored:
        kinds.discard(Kind.SHARED)
    if re.search(r"\bmlp\.\(?(gate_proj|up_proj|down_proj|\*)|dense_mlp", ignored) and not chosen.skip_ends:
        kinds.discard(Kind.MLP)
    return replace(chosen, quantised=frozenset(kinds))


def _strings(*values: object) -> list[object]:
    return [item for value in values if isinstance(value, (list, tuple)) for item in value]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
