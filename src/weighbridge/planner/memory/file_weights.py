"""Exact weights: the tensors of a GGUF file, or of safetensors headers, with the shards that their names imply."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from weighbridge.errors import BadInput, said
from weighbridge.models.files.fields import MAX_COUNT, shown
from weighbridge.models.files.gguf_format import Contents
from weighbridge.planner.memory.gguf_mix import arithmetic_of
from weighbridge.planner.memory.weights import Stored, bulk_bits
from weighbridge.planner.model.architecture import Architecture, Attention
from weighbridge.planner.model.tensors import DRAFT, EMBED, HEAD, Kind, Shard, Tensor, all_tensors

_MAX_HEADER = 100_000_000  # as the safetensors library
_KINDS = (
    (r"vision|visual|audio|image|mm_projector|multi_modal|^v\.|^a\.|^mm\.", Kind.TOWER),
    (r"embed_tokens|token_embd|wte|word_embeddings", Kind.EMBED),
    (r"lm_head|^output\.weight", Kind.HEAD),
    (r"norm|\.bias$|conv1d|A_log|dt_bias|ssm_(a|d|dt|conv1d)\b|sinks|rope_freqs", Kind.SMALL),
    (r"shared_expert_gate|gate_inp|router|(mlp|moe|block_sparse_moe)\.gate\.", Kind.ROUTER),
    (r"shared_expert|shexp", Kind.SHARED),
    (r"experts|_exps", Kind.EXPERT),
    (r"linear_attn|mamba|mixer|ssm_|attn_qkv|attn_gate", Kind.LINEAR),
    (r"attn|attention", Kind.ATTENTION),
)
_WHOLE = re.compile(r"q_a_proj|kv_a_proj|attn_q_a|attn_kv_a|indexer|weights_proj")
_DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U64": 64, "U32": 32, "U16": 16, "F4": 4,
}  # fmt: skip

_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _HeaderEntry(msgspec.Struct):
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: Annotated[list[_Size], msgspec.Meta(max_length=8)]
    data_offsets: tuple[_Offset, _Offset]


def safetensors_weights(files: list[Path], architecture: Architecture) -> Stored:
    """Read the bytes of every tensor that the headers list. Nothing but headers is read."""
    sizes: dict[Tensor, float] = {}
    for path in files:
        for name, entry in _entries(path):
            tensor = named_tensor(name, entry.shape, architecture)
            start, end = entry.data_offsets
            if start > end:
                raise BadInput(f"{path}: tensor {shown(name)} ends before it starts: the file is damaged")
            sizes[tensor] = sizes.get(tensor, 0.0) + float(end - start)
            if entry.dtype not in _DTYPE_BITS:
                raise BadInput(
                    f"{path}: tensor {shown(name)} has type {shown(entry.dtype)}, which is not known"
                )
    if not sizes:
        raise BadInput(f"{files[0].parent}: the safetensors files hold no tensors")
    return Stored(sizes, "the file's own format", _bits(sizes, architecture))


def gguf_weights(contents: Contents, architecture: Architecture) -> Stored:
    """Return the bytes of every tensor of a GGUF file."""
    sizes: dict[Tensor, float] = {}
    for name, entry in contents.tensors.items():
        tensor = named_tensor(name, list(entry.shape), architecture)
        sizes[tensor] = sizes.get(tensor, 0.0) + float(entry.nbytes)
    kinds: Counter[str] = Counter()
    for entry in contents.tensors.values():
        if len(entry.shape) > 1:
            kinds[entry.kind.name] += entry.nbytes
    usual = kinds.most_common(1)[0][0] if kinds else ""
    return Stored(sizes, "+".join(sorted(kinds)), _bits(sizes, architecture), arithmetic_of(usual))


def _bits(sizes: dict[Tensor, float], architecture: Architecture) -> float:
    """Packed tensors show fewer elements than they hold: the architecture knows how many there are."""
    inner = {Kind.EXPERT, Kind.MLP, Kind.ATTENTION, Kind.LINEAR}
    elements = sum(t.elements for t in all_tensors(architecture) if t.kind in inner)
    stored = sum(size for t, size in sizes.items() if t.kind in inner and t.layer >= 0)
    return min(8 * stored / elements, 32.0) if elements else bulk_bits(sizes)


def _entries(path: Path) -> Iterator[tuple[str, _HeaderEntry]]:
    for name, fields in _header(path).items():
        if name == "__metadata__":
            continue
        try:
            yield name, msgspec.convert(fields, _HeaderEntry)
        except (msgspec.ValidationError, UnicodeError) as error:  # half of a surrogate pair
            raise BadInput(
                f"{path} is not a safetensors file: tensor {shown(name)}: {said(error)}"
            ) from error


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise BadInput(f"{path} is not a safetensors file: its header would take {length} bytes")
            header = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read: {said(error)}") from error
    if not isinstance(header, dict):
        raise BadInput(f"{path} is not a safetensors file: its header is no object")
    return header


def named_tensor(name: str, shape: list[int], architecture: Architecture) -> Tensor:
    """Return the tensor of this name in a file of Hugging Face or GGUF, with the kind and shard that it implies."""
    kind = next((kind for pattern, kind in _KINDS if re.search(pattern, name)), Kind.MLP)
    layer = _layer(name, kind, len(architecture.layers))
    columns = shape[-1] if shape else 1
    rows = math.prod(shape[:-1]) if len(shape) > 1 else 1
    shard, heads = Shard.SPLIT, 1
    if kind in (Kind.SMALL, Kind.ROUTER, Kind.TOWER) or _WHOLE.search(name):
        shard = Shard.WHOLE
    elif kind is Kind.EXPERT:
        shard = Shard.EXPERT
    elif re.search(r"\b(k_proj|v_proj|attn_k|attn_v)\b", name):
        mixers = [m for m in architecture.attention_layers if isinstance(m, Attention)]
        shard, heads = Shard.HEADS, mixers[0].kv_heads if mixers else 1
    return Tensor(name, layer, rows, columns, kind, shard, heads=heads)


def _layer(name: str, kind: Kind, layers: int) -> int:
    if kind is Kind.TOWER or kind is Kind.EMBED:
        return EMBED
    found = re.search(r"(?:layers|blk|h|blocks)\.(\d+)\.", name)
    if "mtp" in name or "nextn" in name or (found and int(found.group(1)) >= layers):
        return DRAFT
    return int(found.group(1)) if found else HEAD
