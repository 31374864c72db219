"""The tensors that a configuration calls for, and whether a file has them, before any of them is read.

One table for every architecture and both formats. What is computed from a tensor of another shape would be wrong, or
beyond its memory; what a file has and the table does not was part of the model, and would be left out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.files.config import ExpertsConfig, ModelConfig
from weighbridge.models.files.fields import shown

log = logging.getLogger("weighbridge.models")

#: Types of which every tensor may be.
PLAIN = ("F32", "F16", "BF16")

#: What files have beside their weights: tables that are computed anew, and an output matrix that is the embedding's.
_COMPUTED = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|attn_rot_embd\.weight|rope_freqs\.weight)|lm_head\.weight"
)
_IN_A_LAYER = re.compile(r"(model\.layers|blk)\.")
_OF_THE_OUTPUT = ("lm_head.bias", "output.bias", "model.norm.bias", "output_norm.bias")


@dataclass(frozen=True, slots=True)
class NeededTensor:
    """A tensor by its Hugging Face name, and its shape; vectors stay in plain floats."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a file says of a matrix or vector: the tensor that it is in, its own shape, and its type there."""

    name: str
    shape: tuple[int, ...]
    kind: str


class TensorTable(Protocol):
    """The table of tensors of a file. Nothing of their contents is read."""

    path: Path
    config: ModelConfig

    def stored(self, name: str) -> StoredTensor | None:
        """Return what the file says of the tensor with this Hugging Face name, or None."""
        ...

    def own_name(self, name: str) -> str:
        """Return what a file of this format calls the tensor with this Hugging Face name."""
        ...

    def own_names(self) -> Collection[str]:
        """Return the names of all tensors as the file has them."""
        ...

    @property
    def matrix_kinds(self) -> tuple[str, ...]:
        """Types of which a matrix may be."""
        ...


def needed(config: ModelConfig) -> Iterator[NeededTensor]:
    """Every tensor that a model of this configuration is made of, in the order of its layers."""
    hidden = config.hidden_size
    yield NeededTensor("model.embed_tokens.weight", (config.vocab_size, hidden))
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        yield from _attention(config, f"{prefix}self_attn.")
        yield from (NeededTensor(f"{prefix}{name}.weight", (hidden,)) for name in layer_norms(config))
        if config.experts is not None and config.experts.sparse_layers[index]:
            yield from _mixture(config.experts, hidden, prefix)
        else:
            yield from _gated(f"{prefix}mlp.", hidden, config.intermediate_size, config.mlp_bias)
    yield NeededTensor("model.norm.weight", (hidden,))
    if not config.tie_word_embeddings:
        yield NeededTensor("lm_head.weight", (config.vocab_size, hidden))


def layer_norms(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of a layer's norms over the hidden state."""
    usual = ("input_layernorm", "post_attention_layernorm")
    wrapped = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    return usual + wrapped if config.output_norms else usual


def _attention(config: ModelConfig, prefix: str) -> Iterator[NeededTensor]:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield from _linear(f"{prefix}{name}_proj", rows, config.hidden_size, config.qkv_bias)
    yield from _linear(f"{prefix}o_proj", config.hidden_size, queries, config.output_bias)
    if config.qk_norm or config.qk_norm_all_heads:
        widths = (queries, keys) if config.qk_norm_all_heads else (config.head_dim, config.head_dim)
        for name, width in zip("qk", widths, strict=True):
            yield NeededTensor(f"{prefix}{name}_norm.weight", (width,))


def _mixture(experts: ExpertsConfig, hidden: int, prefix: str) -> Iterator[NeededTensor]:
    size = experts.intermediate_size
    for number in range(experts.count):
        gate_up, down = expert_matrices(experts, prefix, number)
        yield from (NeededTensor(name, (size, hidden)) for name in gate_up)
        yield NeededTensor(down[0], (hidden, size))
    yield NeededTensor(router_name(experts, prefix), (experts.count, hidden))
    if experts.shared_intermediate_size:
        yield from _gated(f"{prefix}mlp.shared_expert.", hidden, experts.shared_intermediate_size, False)
        yield NeededTensor(f"{prefix}mlp.shared_expert_gate.weight", (1, hidden))


def _gated(prefix: str, hidden: int, size: int, bias: bool) -> Iterator[NeededTensor]:
    yield from _linear(f"{prefix}gate_proj", size, hidden, bias)
    yield from _linear(f"{prefix}up_proj", size, hidden, bias)
    yield from _linear(f"{prefix}down_proj", hidden, size, bias)


def _linear(stem: str, rows: int, columns: int, bias: bool) -> Iterator[NeededTensor]:
    yield NeededTensor(f"{stem}.weight", (rows, columns))
    if bias:
        yield NeededTensor(f"{stem}.bias", (rows,))


def gated_matrices(prefix: str) -> tuple[list[str], list[str]]:
    """Return the names of the (gate and up) and down matrices of a feed-forward block."""
    return [f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight"], [f"{prefix}down_proj.weight"]


def expert_matrices(experts: ExpertsConfig, prefix: str, expert: int) -> tuple[list[str], list[str]]:
    """Return the names of an expert's (gate and up) and down matrices; `prefix` is the layer's, with a dot."""
    if experts.mixtral_names:
        stem = f"{prefix}block_sparse_moe.experts.{expert}."
        return [f"{stem}w1.weight", f"{stem}w3.weight"], [f"{stem}w2.weight"]
    return gated_matrices(f"{prefix}mlp.experts.{expert}.")


def router_name(experts: ExpertsConfig, prefix: str) -> str:
    """Return the name of a layer's router; `prefix` is the layer's, with a dot."""
    return f"{prefix}{'block_sparse_moe' if experts.mixtral_names else 'mlp'}.gate.weight"


def check_tensors(table: TensorTable) -> None:
    """Raise BadInput or UnsupportedModel, naming the first tensor that is not as the configuration needs it.

    It stops at the first one: a configuration that claims a billion experts costs no more than one that is right.
    """
    used: set[str] = set()
    for need in needed(table.config):
        stored = table.stored(need.name)
        if stored is None:
            raise BadInput(
                f"{table.path} has no tensor {table.own_name(need.name)!r}, which the configuration needs with shape "
                f"{list(need.shape)}: the file is incomplete, or the configuration is another model's"
            )
        _check(table, need, stored)
        used.add(stored.name)
    _check_surplus(table, set(table.own_names()) - used)


def _check(table: TensorTable, need: NeededTensor, stored: StoredTensor) -> None:
    # GGUF leaves a leading 1 out.
    if stored.shape != need.shape and (1, *stored.shape) != need.shape:
        raise BadInput(
            f"tensor {stored.name!r} of {table.path} has shape {shown(list(stored.shape))}, but the configuration "
            f"needs {list(need.shape)}: the file is damaged, or the configuration is another model's"
        )
    kinds = PLAIN if len(need.shape) == 1 else table.matrix_kinds
    if stored.kind not in kinds:
        raise UnsupportedModel(
            f"tensor {stored.name!r} of {table.path} has type {shown(stored.kind)}, which is not supported there "
            f"({', '.join(kinds)} are)"
        )


def _check_surplus(table: TensorTable, surplus: Collection[str]) -> None:
    """Refuse what would change the result of a layer or of the output; the rest is noted and left unread."""
    ignored = []
    for name in sorted(surplus):
        if _COMPUTED.fullmatch(name):
            continue
        if _IN_A_LAYER.match(name) or name in _OF_THE_OUTPUT:
            raise BadInput(
                f"{table.path} has a tensor {shown(name)} that its configuration has no place for: without it the "
                "answers would be wrong, so the configuration is another model's or the model is not supported"
            )
        ignored.append(name)
    if ignored:
        log.warning("%s: %d tensors are not used, such as %s", table.path, len(ignored), shown(ignored[0]))
