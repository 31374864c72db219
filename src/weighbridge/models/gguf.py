"""GGUF files: metadata, tensors under Hugging Face names, and the codes of quantised ones as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.quants import dequantize

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models import cache
from weighbridge.models.config import ModelConfig, RopeConfig
from weighbridge.models.quantized import GROUP_SIZE, GroupQuantized

#: GGUF architecture -> ours. Mistral files call themselves llama.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3"}

#: Architectures whose query and key rows the converter reorders, so that rotated pairs are neighbours.
PERMUTED = frozenset({"llama", "smollm3"})

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

_FLOAT_TYPES = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
_CODED_TYPES = {
    getattr(GGMLQuantizationType, name)
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's bytes, as they are in the file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is in the file. `shape` is outermost first; quantised rows are counted in elements."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile:
    """A memory-mapped GGUF file. Raises BadInput when the file is not one.

    Reading a header with a large vocabulary takes seconds, so the scalars of it and the places of the
    tensors are kept as a record; arrays are read from the file when they are asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = cache.weighbridge_home() / "gguf" / f"{cache.fingerprint([path])}.json"
        record = cache.load_record(kept)
        if record is None:
            record = _index(self._reader)
            cache.keep_record(kept, record)
        self._scalars: dict[str, Any] = record["scalars"]
        self._tensors = {
            name: Stored(kind, tuple(shape), offset, nbytes)
            for name, (kind, shape, offset, nbytes) in record["tensors"].items()
        }
        self._bytes = np.memmap(path, np.uint8, mode="r")
        self.architecture = str(self.value("general.architecture", ""))

    @cached_property
    def _reader(self) -> GGUFReader:
        try:
            return GGUFReader(self.path)
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise BadInput(f"{self.path} is not a readable GGUF file: {error}") from error

    def value(self, key: str, default: Any = None) -> Any:
        """A single metadata value as a Python type, or `default`."""
        return self._scalars.get(key, default)

    def array(self, key: str) -> list[Any]:
        """A metadata array; empty when it is not there."""
        field = self._reader.fields.get(key)
        return [] if field is None else list(field.contents())

    def setting(self, key: str, default: Any = None) -> Any:
        """A metadata value under the architecture's own prefix. Raises BadInput when it must be there and is not."""
        value = self.value(f"{self.architecture}.{key}", default)
        if value is None:
            raise BadInput(f"{self.path.name} lacks the metadata key {self.architecture}.{key}")
        return value

    def __contains__(self, name: str) -> bool:
        return gguf_name(name) in self._tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor by its GGUF name, outermost dimension first."""
        return self._find(name).shape

    def raw(self, name: str) -> torch.Tensor:
        """A tensor by its GGUF name, as float32."""
        return torch.from_numpy(_floats(self._find(name)))

    def tensor(self, name: str, config: ModelConfig) -> torch.Tensor:
        """A tensor by its Hugging Face name, float32, rows in Hugging Face's order. Raises UnsupportedModel."""
        stored = self._find(gguf_name(name))
        coded = _codes(stored)
        values = torch.from_numpy(_floats(stored)) if coded is None else coded.to_tensor()
        order = self._row_order(name, config)
        return values if order is None else values[torch.from_numpy(order)]

    def quantized(self, name: str, config: ModelConfig) -> GroupQuantized | None:
        """The codes of a Q4_0, Q4_1 or Q8_0 matrix; None for every other type."""
        coded = _codes(self._find(gguf_name(name)))
        order = self._row_order(name, config)
        if coded is None or order is None:
            return coded
        minimums = None if coded.minimums is None else coded.minimums[order]
        return GroupQuantized(coded.bits, coded.codes[order], coded.scales[order], minimums)

    def _find(self, name: str) -> Tensor:
        stored = self._tensors.get(name)
        if stored is None:
            raise BadInput(f"{self.path.name} has no tensor {name!r}: the file is incomplete")
        data = self._bytes[stored.offset : stored.offset + stored.nbytes]
        return Tensor(name, GGMLQuantizationType[stored.kind], stored.shape, data)

    def _row_order(self, name: str, config: ModelConfig) -> npt.NDArray[np.int64] | None:
        if self.architecture not in PERMUTED or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return None
        heads = config.num_heads if "q_proj" in name else config.num_kv_heads
        return rotate_half_order(heads, config.head_dim)


def rotate_half_order(heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Row of the file for each row of ours: the file interleaves the halves of a head, we keep them apart."""
    rows = np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face tensor: model.layers.3.self_attn.q_proj.weight is blk.3.attn_q.weight."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, index, rest = stem.split(".", 3)
        return f"blk.{index}.{_LAYER_NAMES.get(rest, rest)}.{kind}"
    return f"{_TOP_NAMES.get(stem, stem)}.{kind}"


def _index(reader: GGUFReader) -> dict[str, Any]:
    """What of the header is needed at every start."""
    scalars = {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0] != GGUFValueType.ARRAY
    }
    tensors = {
        tensor.name: (
            tensor.tensor_type.name,
            [int(size) for size in reversed(tensor.shape)],
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    }
    return {"scalars": scalars, "tensors": tensors}


def _floats(tensor: Tensor) -> npt.NDArray[np.float32]:
    kind = tensor.kind
    if kind not in _FLOAT_TYPES and kind not in _CODED_TYPES:
        known = ", ".join(sorted(one.name for one in _FLOAT_TYPES | _CODED_TYPES))
        raise UnsupportedModel(f"tensor {tensor.name!r} has type {kind.name}, which is not supported ({known} are)")
    if kind in _FLOAT_TYPES:
        data = tensor.data.view(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
        if kind == GGMLQuantizationType.BF16:
            data = (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return np.array(data, dtype=np.float32).reshape(tensor.shape)  # a copy: the file is mapped read-only
    rows = tensor.data.reshape(math.prod(tensor.shape[:-1]), -1)
    return np.asarray(dequantize(rows, kind), dtype=np.float32).reshape(tensor.shape)


def _codes(tensor: Tensor) -> GroupQuantized | None:
    """Blocks of 32: Q4_0 is scale, 16 bytes; Q4_1 scale, minimum, 16 bytes; Q8_0 scale, 32 bytes.

    A byte of the 4-bit kinds holds code j in its low and code j + 16 in its high half.
    """
    kind = tensor.kind
    if len(tensor.shape) != 2:
        return None
    data = np.asarray(tensor.data).reshape(tensor.shape[0], -1)
    if kind == GGMLQuantizationType.Q8_0:
        blocks = data.reshape(data.shape[0], -1, 2 + GROUP_SIZE)
        codes = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(data.shape[0], -1)
        return GroupQuantized(8, codes, _half(blocks, 0), None)
    if kind not in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1):
        return None
    head = 2 if kind == GGMLQuantizationType.Q4_0 else 4
    blocks = data.reshape(data.shape[0], -1, head + GROUP_SIZE // 2)
    packed = blocks[:, :, head:]
    codes4 = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(data.shape[0], -1)
    scales = _half(blocks, 0)
    minimums = scales * np.float32(-8.0) if head == 2 else _half(blocks, 2)
    return GroupQuantized(4, codes4, scales, minimums)


def _half(blocks: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[np.float32]:
    """The float16 at `offset` of each block, as float32 [rows, blocks]."""
    halves = np.ascontiguousarray(blocks[:, :, offset : offset + 2]).view(np.float16)
    return halves[:, :, 0].astype(np.float32)


def read_config(file: GgufFile) -> ModelConfig:
    """The shape of the model in `file`. Raises UnsupportedModel for architectures we do not run."""
    if file.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModel(f"GGUF architecture {file.architecture!r} is not supported ({known} are)")
    if file.setting("expert_count", 0):
        raise UnsupportedModel(f"{file.path.name} is a mixture of experts, which is not supported yet")
    heads = int(file.setting("attention.head_count"))
    hidden = int(file.setting("embedding_length"))
    head_dim = int(file.setting("attention.key_length", hidden // heads))
    layers = int(file.setting("block_count"))
    architecture = ARCHITECTURES[file.architecture]
    window = int(file.setting("attention.sliding_window", 0))
    return ModelConfig(
        architecture=architecture,
        vocab_size=file.shape("token_embd.weight")[0],
        hidden_size=hidden,
        intermediate_size=int(file.setting("feed_forward_length")),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(file.setting("attention.head_count_kv", heads)),
        head_dim=head_dim,
        max_position_embeddings=int(file.setting("context_length")),
        rms_norm_eps=float(file.setting("attention.layer_norm_rms_epsilon")),
        rope=_rope(file),
        rotary_layers=tuple(architecture != "smollm3" or (index + 1) % 4 != 0 for index in range(layers)),
        sliding_windows=(window,) * layers,
        tie_word_embeddings="lm_head.weight" not in file,
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in file,
        output_bias="model.layers.0.self_attn.o_proj.bias" in file,
        mlp_bias="model.layers.0.mlp.down_proj.bias" in file,
        qk_norm="model.layers.0.self_attn.q_norm.weight" in file,
        eos_token_ids=(int(file.value("tokenizer.ggml.eos_token_id", 0)),),
        bos_token_id=file.value("tokenizer.ggml.bos_token_id"),
    )


def _rope(file: GgufFile) -> RopeConfig:
    theta = float(file.setting("rope.freq_base", 10_000.0))
    scaling = str(file.setting("rope.scaling.type", "none"))
    factors: tuple[float, ...] | None = None
    if "rope_freqs.weight" in file.names():
        factors = tuple(file.raw("rope_freqs.weight").tolist())
    if scaling == "none":
        return RopeConfig(theta, divisors=factors)
    return RopeConfig(
        theta,
        scaling=scaling,
        factor=float(file.setting("rope.scaling.factor", 1.0)),
        original_max_position_embeddings=int(file.setting("rope.scaling.original_context_length", 8192)),
        divisors=factors,
    )
