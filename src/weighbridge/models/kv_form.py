"""How keys and values are kept, and what a token of them takes: the server sizes its pool by it, and so does a plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from weighbridge.errors import BadInput
from weighbridge.models.files.config import ModelConfig

#: Values are padded to a full register, see `native/kv_layout.h`.
PADDING = 16


class KvForm(StrEnum):
    """The type of keys and values in the cache."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"  # with a scale for each token and head, of its key and of its value

    @property
    def element_bytes(self) -> int:
        return {KvForm.FLOAT32: 4, KvForm.BFLOAT16: 2, KvForm.INT8: 1}[self]

    @property
    def scale_bytes(self) -> int:
        """Of one token and head, on each side."""
        return 4 if self is KvForm.INT8 else 0


#: As `--kv-dtype` names them; `auto` is the compute dtype.
NAMES = {
    "f32": KvForm.FLOAT32,
    "float32": KvForm.FLOAT32,
    "bf16": KvForm.BFLOAT16,
    "bfloat16": KvForm.BFLOAT16,
    "int8": KvForm.INT8,
}


def kv_form(name: str, dtype: str) -> KvForm:
    """Return what `--kv-dtype` asks for; `dtype` is the compute dtype. Raises BadInput for another word."""
    if name == "auto":
        return KvForm(dtype)
    if name not in NAMES:
        raise BadInput(f"KV dtype {name!r} is not known: use f32, bf16, int8 or auto", param="kv_dtype")
    return NAMES[name]


@dataclass(frozen=True, slots=True)
class HeadSize:
    """Elements of one head's key and value; the value's with its padding."""

    key: int
    value: int

    @classmethod
    def of(cls, head_dim: int) -> HeadSize:
        return cls(head_dim, -(-head_dim // PADDING) * PADDING)


def token_bytes(config: ModelConfig, form: KvForm) -> int:
    """Return what a token keeps in all layers."""
    return sum(shape.kv_heads * _head_bytes(shape.head_dim, form) for shape in config.kv_shapes)


def _head_bytes(head_dim: int, form: KvForm) -> int:
    head = HeadSize.of(head_dim)
    return (head.key + head.value) * form.element_bytes + 2 * form.scale_bytes
