"""Which GGML type llama.cpp's quantizer gives each tensor, for the file types that people download.

The rules are those of `llama_tensor_get_type` (llama.cpp, src/llama-quant.cpp): the name of a file type says
the usual type, and a few tensors that hurt quality most get more bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from weighbridge.errors import BadInput
from weighbridge.planner.memory.weight_formats import Arithmetic
from weighbridge.planner.model.architecture import Architecture, Attention, ExpertBlock
from weighbridge.planner.model.tensors import EMBED, HEAD, Kind, Tensor, all_tensors

_BASE = {
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0",
    "Q5_1": "Q5_1", "Q8_0": "Q8_0", "F16": "F16", "BF16": "BF16", "F32": "F32", "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS", "IQ3_S": "IQ3_S", "IQ3_XXS": "IQ3_XXS", "IQ2_XS": "IQ2_XS", "IQ2_M": "IQ2_S",
    "MXFP4": "Q8_0",
}  # fmt: skip
#: A row that is no multiple of 256 cannot take a K type; this one instead.
_FALLBACK = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
_ALWAYS_F32 = {Kind.SMALL, Kind.ROUTER}
FILE_TYPES = tuple(_BASE)


@dataclass(frozen=True, slots=True)
class FileType:
    """A type of GGUF file. `dynamic`: Unsloth's mix of that name, whose rules are not public."""

    name: str
    dynamic: bool

    @property
    def type_name(self) -> str:
        """The GGML type of most of its tensors."""
        return _BASE[self.name]


def file_type(name: str) -> FileType | None:
    """Return the type of GGUF file that `name` means; None for other formats."""
    key = name.strip().upper().replace("-", "_")
    dynamic = key.startswith("UD_")
    key = key.removeprefix("UD_").replace("_XL", "_L" if "Q3" in key else "_M")
    if dynamic and key in ("Q2_K_M", "Q2_K_L"):
        key = "Q2_K"
    if dynamic and key in ("Q6_K_M", "Q8_K_M"):
        key = "Q6_K" if "6" in key else "Q8_0"
    return FileType(key, dynamic) if key in _BASE else None


def gguf_bytes(architecture: Architecture, name: str, *, drafts: bool = False) -> dict[Tensor, int]:
    """Return the bytes of every tensor of a GGUF file of type `name`. Raises BadInput when the type is not known."""
    kind = file_type(name)
    if kind is None:
        raise BadInput(f"GGUF type {name!r} is not known; known: {', '.join(FILE_TYPES)}")
    tensors = list(all_tensors(architecture, drafts=drafts))
    mix = _Mix(architecture, kind.name, tensors, dynamic=kind.dynamic and architecture.has_experts)
    return {tensor: tensor_bytes(tensor, mix.type_of(tensor)) for tensor in tensors}


def arithmetic_of(type_name: str) -> Arithmetic:
    """Return how products with weights of a GGML type are computed."""
    few = type_name.startswith(("Q2_", "Q3_", "Q4_", "Q5_", "IQ"))
    return Arithmetic.UNPACKED if few else Arithmetic.DENSE


def tensor_bytes(tensor: Tensor, type_name: str) -> int:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    return int(-(-tensor.elements // block) * size)


class _Mix:
    """The quantizer's state: it counts attention values and down projections as they come."""

    def __init__(
        self, architecture: Architecture, name: str, tensors: Iterable[Tensor], *, dynamic: bool
    ) -> None:
        self._name = name
        self._dynamic = dynamic
        self._base = _BASE[name]
        self._layers = len(architecture.layers)
        self._tied = architecture.tied
        self._eight = any(
            isinstance(x.feed_forward, ExpertBlock) and x.feed_forward.count == 8 for x in architecture.layers
        )
        self._queries_per_key = max(
            (m.heads // m.kv_heads for m in architecture.attention_layers if isinstance(m, Attention)),
            default=1,
        )
        self._large = self._layers == 80 and self._queries_per_key == 8  # "70B" to llama.cpp
        values = [t.layer for t in tensors if t.name in ("attn_v", "attn_kv_b") and t.layer >= 0]
        self._value_order = {layer: order for order, layer in enumerate(values)}

    def type_of(self, tensor: Tensor) -> str:
        if tensor.kind in _ALWAYS_F32:
            return "F32"
        if tensor.kind is Kind.TOWER:
            return "F16"
        if self._base in ("F16", "BF16", "F32"):
            return self._base
        if self._name == "MXFP4" and tensor.kind is Kind.EXPERT:
            return "MXFP4"
        chosen = self._raised(tensor)
        if tensor.columns % 256 and chosen in _FALLBACK:
            return _FALLBACK[chosen]
        return chosen

    def _raised(self, tensor: Tensor) -> str:
        name, base = self._name, self._base
        if self._dynamic:  # Unsloth: experts as the name says, what every token passes through in 8 bits
            return base if tensor.kind is Kind.EXPERT else "Q8_0"
        if tensor.layer == HEAD or (tensor.layer == EMBED and self._tied and tensor.name == "token_embd"):
            return base if base == "Q8_0" else "Q6_K"
        if not name.startswith(("Q2_K", "Q3_K", "Q4_K", "Q5_K")):
            return "Q8_0" if self._eight and tensor.name in ("attn_k", "attn_v") else base
        match tensor.name:
            case "attn_v" | "attn_kv_b":
                return self._values(tensor.layer)
            case "attn_k":
                return "Q8_0" if self._eight else base
            case "ffn_down" | "ffn_down_exps" | "ffn_down_shexp":
                return self._down(tensor.layer)
            case "attn_output":
                return self._output()
            case "attn_qkv":
                return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(
                    name, base
                )
        return base

    def _values(self, layer: int) -> str:
        if self._eight:
            return "Q8_0"
        order, count = self._value_order.get(layer, 0), max(len(self._value_order), 1)
        chosen = self._base
        match self._name:
            case "Q2_K":
                chosen = "Q4_K" if self._queries_per_key >= 4 else "Q3_K"
            case "Q3_K_M":
                chosen = "Q5_K" if order < 2 else "Q4_K"
            case "Q3_K_L":
                chosen = "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(order, count):
                chosen = "Q6_K"
            case "Q4_K_S" if order < 4:
                chosen = "Q5_K"
        return "Q5_K" if self._large and chosen in ("Q3_K", "Q4_K") else chosen

    def _down(self, layer: int) -> str:
        layers = self._layers
        match self._name:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if layer < layers // 16 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _more_bits(layer, layers):
                return "Q6_K"
            case "Q4_K_S" if layer < layers // 8:
                return "Q5_K"
        return self._base

    def _output(self) -> str:
        if self._eight:
            return "Q5_K" if self._name in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M") else self._base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self._name, self._base)


def _more_bits(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
