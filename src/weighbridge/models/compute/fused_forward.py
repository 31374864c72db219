"""The whole forward pass as one call of our kernels, for decoders whose every layer they can run."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from weighbridge.models.compute.kernels.api import BatchLayout, Int32, Kernels, KVCache, States
from weighbridge.models.compute.kernels.native_kernels import NativeKernels, NativeKVCache
from weighbridge.models.compute.layers import DecoderLayer, DecoderWeights, Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.linear_hybrid import HybridLinear
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.compute.low_rank import AdaptedLinear, SlottedRows
from weighbridge.models.compute.memory import memory_of
from weighbridge.models.files.config import Activation, ModelConfig

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
#: Different window sizes of one model; attention_plan.cpp keeps no more plans.
MAX_WINDOWS = 4
_NO_ROWS = np.empty(0, np.int32)


class FusedForward:
    """Bit for bit what `Decoder` computes call by call, in one parallel region without the interpreter.

    It serves batches of up to `max_tokens`, with up to `max_rows` sampled rows: above, the layers or the output
    matrix have a faster dense form.
    """

    def __init__(
        self, weights: DecoderWeights, matrices: Sequence[tuple[Any, ...]], max_tokens: float, max_rows: float
    ) -> None:
        native: Any = importlib.import_module("weighbridge.models.compute.kernels._native")
        config, embedding = weights.config, weights.embedding
        self.max_tokens, self.max_rows = max_tokens, max_rows
        self._weights = weights  # holds the memory that the addresses below point to
        self._forward = native.Forward(
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.rms_norm_eps,
            config.softmax_scale,
            _DTYPES[weights.dtype],
            (0, 0) if isinstance(embedding, PackedLinear) else memory_of(embedding),
            embedding.matrix if isinstance(embedding, PackedLinear) else None,
            config.vocab_size,
            memory_of(weights.cos_sin),
            weights.cos_sin.shape[0],
            memory_of(weights.final_norm),
            matrices[-1][0],
        )
        for layer, (qkv, output, gate_up, down) in zip(weights.layers, matrices[:-1], strict=True):
            self._forward.add_layer(
                memory_of(layer.input_norm),
                memory_of(layer.post_attention_norm),
                memory_of(layer.q_norm),
                memory_of(layer.k_norm),
                qkv,
                output,
                gate_up,
                down,
                layer.rotates,
                layer.window,
            )

    def serves(self, tokens: int, rows: int, cache: KVCache) -> bool:
        """Whether this pass is the fast one for a batch of `tokens`, `rows` of which are sampled."""
        return tokens <= self.max_tokens and rows <= self.max_rows and isinstance(cache, NativeKVCache)

    def __call__(
        self,
        token_ids: Int32,
        layout: BatchLayout,
        cache: KVCache,
        rows: Int32,
        states: States | None = None,
        adapted: SlottedRows | None = None,
    ) -> torch.Tensor:
        """As `Decoder.forward`; `adapted`: the rows to which adapters add."""
        assert isinstance(cache, NativeKVCache)
        logits = torch.empty(len(rows), self._weights.lm_head.out_features, dtype=self._weights.dtype)
        batch = (
            token_ids,
            layout.positions,
            layout.slots,
            layout.query_starts,
            layout.context_lens,
            layout.block_tables,
            rows,
            cache.pool,
            memory_of(logits),
            _NO_ROWS if states is None else states.rows,
            memory_of(None if states is None else states.out),
            torch.get_num_threads(),
        )
        self._forward.run(*batch, *(() if adapted is None else (adapted.native,)))
        return logits


def fuse(weights: DecoderWeights, kernels: Kernels) -> FusedForward | None:
    """Return the fused pass over `weights`; None where a part of it is not our kernels' (dense oneDNN, MoE, torch)."""
    if not isinstance(kernels, NativeKernels) or weights.dtype not in _DTYPES:
        return None
    if _is_beyond(weights.config):
        return None
    windows = {layer.window for layer in weights.layers}
    linears = [_linears(layer) for layer in weights.layers]
    if len(windows) > MAX_WINDOWS or any(linear is None for linear in linears):
        return None
    matrices, max_tokens = [], math.inf
    for group in linears:
        packed = [_packed(linear) for linear in group or ()]
        if any(matrix is None for matrix, _ in packed):
            return None
        matrices.append(tuple(matrix for matrix, _ in packed))
        max_tokens = min(max_tokens, *(limit for _, limit in packed))
    head, max_rows = _packed(weights.lm_head)
    if head is None:
        return None
    return FusedForward(weights, [*matrices, (head,)], max_tokens, max_rows)


def _is_beyond(config: ModelConfig) -> bool:
    """Whether a model computes what only `Decoder` does, call by call: Gemma."""
    plain = config.activation is Activation.SILU and config.local_rope is None
    return not plain or config.output_norms or config.embedding_scale != 1.0


def _linears(layer: DecoderLayer) -> tuple[Linear, Linear, Linear, Linear] | None:
    if not isinstance(layer.mlp, Mlp):
        return None
    return layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down


def _packed(linear: Linear) -> tuple[Any, float]:
    """Return the packed matrix of `linear` with what adapters add to it (None: it has none), and the largest number of
    tokens that it is meant for."""
    if isinstance(linear, AdaptedLinear):
        matrix, limit = _packed(linear.base)
        return (None if matrix is None else linear.matrices.projection(matrix)), limit
    if isinstance(linear, HybridLinear):
        matrix, _ = _packed(linear.few)
        return matrix, linear.many_from - 1
    return (linear.matrix if isinstance(linear, PackedLinear) else None), math.inf
