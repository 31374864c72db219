"""Bytes of cached keys and values, by cache type and engine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from weighbridge.errors import BadInput
from weighbridge.planner.model.architecture import Attention, Latent

#: Bytes per value and extra bytes of scales per head and side.
_TYPES: dict[str, tuple[float, int]] = {
    "bf16": (2.0, 0),
    "fp32": (4.0, 0),
    "fp8": (1.0, 0),
    "int8": (1.0, 0),
    "fp8_ds_mla": (1.0, 0),
    "int8_per_token_head": (1.0, 4),
    "fp8_per_token_head": (1.0, 4),
    "int4_per_token_head": (0.5, 4),
    "nvfp4": (9 / 16, 0),  # 4 bits and an fp8 scale per 16
    "q8_0": (34 / 32, 0),  # llama.cpp blocks of 32 values
    "q5_1": (24 / 32, 0),
    "q5_0": (22 / 32, 0),
    "q4_1": (20 / 32, 0),
    "q4_0": (18 / 32, 0),
    "iq4_nl": (18 / 32, 0),
}
_ALIASES = {
    "auto": "bf16", "fp16": "bf16", "f16": "bf16", "float16": "bf16", "bfloat16": "bf16", "half": "bf16",
    "f32": "fp32", "float32": "fp32", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "fp8_inc": "fp8",
}  # fmt: skip
NAMES = tuple(_TYPES)
_INDEX_SCALE = 4  # bytes: the indexer keeps fp8 keys and one float scale per 128


@dataclass(frozen=True, slots=True)
class KVType:
    name: str
    value_bytes: float
    scale_bytes: int  # per head and side (keys, values)
    padding: int = 1  # values of a head are padded to a multiple of this

    def attention_bytes(self, layer: Attention, tp: int) -> float:
        """Return the bytes per token that one tensor-parallel rank keeps for this layer."""
        heads = max(1, layer.kv_heads // tp)
        values = -(-layer.value_dim // self.padding) * self.padding
        return heads * ((layer.key_dim + values) * self.value_bytes + 2 * self.scale_bytes)

    def latent_bytes(self, layer: Latent) -> float:
        """Return the bytes per token of the compressed vector; every rank keeps all of it.

        fp8_ds_mla (vLLM, FlashMLA sparse): 512 fp8 values, four float scales, the rope part in 16 bits.
        """
        if self.name == "fp8_ds_mla":
            return layer.kv_rank + layer.kv_rank // 128 * 4 + 2 * layer.rope_dim
        return (layer.kv_rank + layer.rope_dim) * self.value_bytes

    @staticmethod
    def indexer_bytes(layer: Latent) -> int:
        """Return the bytes per token of the indexer's own cache: fp8 keys with a scale per 128 values."""
        if layer.indexer is None:
            return 0
        return layer.indexer.dim + _INDEX_SCALE * -(-layer.indexer.dim // 128)


def kv_type(name: str) -> KVType:
    """Return the cache type called `name`. Raises BadInput when it is not known."""
    key = re.sub(r"[- ]", "_", name.strip().lower())
    key = _ALIASES.get(key, key)
    if key not in _TYPES:
        raise BadInput(f"KV dtype {name!r} is not known; known: {', '.join(NAMES)}", param="kv_dtype")
    return KVType(key, *_TYPES[key])
