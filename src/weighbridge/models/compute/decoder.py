"""The decoder: one forward pass over a mixed batch of prompt chunks and decodes, on a paged KV cache."""

from __future__ import annotations

import numpy as np
import torch

from weighbridge.models.compute.fused_forward import fuse
from weighbridge.models.compute.kernels.api import BatchLayout, Int32, Kernels, KVCache, States
from weighbridge.models.compute.layers import DecoderLayer, DecoderWeights
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.compute.low_rank import RowExtras


class Decoder:
    """Llama-shaped decoder. The residual stream is float32; everything between norms is in `dtype`."""

    def __init__(self, weights: DecoderWeights, kernels: Kernels) -> None:
        self.weights = weights
        self.config = weights.config
        self.dtype = weights.dtype
        self.layers = weights.layers
        self.kernels = kernels
        self.extras: RowExtras | None = None
        self._fused = fuse(weights, kernels)

    def adapt(self, extras: RowExtras) -> None:
        """Take note of what is added to some rows from now on, by layers that were put into the weights for it."""
        self.extras = extras
        self._fused = fuse(self.weights, self.kernels)

    def allocate_kv(
        self, num_blocks: int, block_size: int, dtype: torch.dtype | None = None, sequences: int = 1
    ) -> KVCache:
        """As `CausalModel.allocate_kv`; our families keep no states."""
        config = self.config
        return self.kernels.allocate_kv(
            config.num_layers,
            num_blocks,
            block_size,
            config.num_kv_heads,
            config.head_dim,
            dtype or self.dtype,
        )

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Int32,
        layout: BatchLayout,
        cache: KVCache,
        rows: Int32,
        states: States | None = None,
    ) -> torch.Tensor:
        """Run `token_ids` [T] through the model, writing their keys and values into `cache`.

        Tokens past the layout's positions are padding: they go through every linear layer and nowhere else
        (static batching pays for them). Returns the logits of the tokens at `rows`, which are ascending
        indices into T: [len(rows), vocab] in `dtype`. `states`: whose hidden states are wanted too, and where.
        """
        adapted = None if self.extras is None else self.extras.rows
        if self._fused is not None and self._fused.serves(len(token_ids), len(rows), cache):
            return self._fused(token_ids, layout, cache, rows, states, adapted)
        return self._forward(token_ids, layout, cache, rows, states)

    def _forward(
        self,
        token_ids: Int32,
        layout: BatchLayout,
        cache: KVCache,
        rows: Int32,
        states: States | None = None,
    ) -> torch.Tensor:
        """Run kernel by kernel, for layers of any kind."""
        kernels, eps = self.kernels, self.config.rms_norm_eps
        residual = torch.empty(len(token_ids), self.config.hidden_size)
        if isinstance(self.weights.embedding, PackedLinear):
            self.weights.embedding.read_rows(residual, token_ids)
        else:
            kernels.gather_rows(residual, self.weights.embedding, token_ids)
        if self.config.embedding_scale != 1.0:
            residual.mul_(self.config.embedding_scale)
        hidden = torch.empty(residual.shape, dtype=self.dtype)
        kernels.rms_norm(hidden, residual, self.layers[0].input_norm, eps)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            attended = self._attend(index, layer, hidden, layout, cache)
            if index == last and len(rows) < len(token_ids):
                # Behind the last attention nothing mixes tokens: go on with the sampled rows alone.
                attended, residual = self._select(attended, rows), self._select(residual, rows)
                hidden = hidden[: len(rows)]
                if self.extras is not None:
                    self.extras.select(rows)
                if not len(rows):
                    return torch.empty(0, self.config.vocab_size, dtype=self.dtype)
            projected = self._normed(layer.output(attended), layer.attention_output_norm)
            kernels.add_rms_norm(hidden, residual, projected, layer.post_attention_norm, eps)
            next_norm = self.weights.final_norm if index == last else self.layers[index + 1].input_norm
            added = self._normed(layer.mlp(hidden), layer.mlp_output_norm)
            kernels.add_rms_norm(hidden, residual, added, next_norm, eps)
        if states is not None:
            state_rows = torch.from_numpy(states.rows.astype(np.int64))
            torch.index_select(hidden, 0, state_rows, out=states.out)
        return self.weights.lm_head(hidden)

    def _attend(
        self, index: int, layer: DecoderLayer, hidden: torch.Tensor, layout: BatchLayout, cache: KVCache
    ) -> torch.Tensor:
        heads, real = self.config.num_heads, len(layout.positions)
        qkv = layer.qkv(hidden)
        table = self.weights.rotation(layer)
        attended = qkv.new_empty(qkv.shape[0], heads * self.config.head_dim)
        if real < qkv.shape[0]:
            attended[real:] = 0.0
        attended_real, qkv = attended[:real], qkv[:real]
        self.kernels.rope_and_write(
            qkv, cache, index, layout, table, heads, layer.q_norm, layer.k_norm, self.config.rms_norm_eps
        )
        self.kernels.paged_attention(
            attended_real, qkv, cache, index, layout, heads, self.config.softmax_scale, layer.window
        )
        return attended

    def _normed(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        if weight is None:
            return x
        normed = torch.empty_like(x)
        self.kernels.rms_norm(normed, x.float(), weight, self.config.rms_norm_eps)
        return normed

    @staticmethod
    def _select(x: torch.Tensor, rows: Int32) -> torch.Tensor:
        return x.index_select(0, torch.from_numpy(rows.astype(np.int64)))
