"""What the engine asks of a model, whatever computes it: our decoder, or one of transformers over our cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from weighbridge.models.compute.kernels.api import BatchLayout, Int32, Kernels, KVCache, States
from weighbridge.models.compute.layers import DecoderLayer
from weighbridge.models.files.config import ModelConfig


class CausalModel(Protocol):
    """One forward pass over a mixed batch of prompt chunks and decodes, on a paged cache."""

    config: ModelConfig
    dtype: torch.dtype
    kernels: Kernels

    @property
    def layers(self) -> Sequence[DecoderLayer]:
        """The layers that are ours: none where transformers computes."""
        ...

    def allocate_kv(
        self, num_blocks: int, block_size: int, dtype: torch.dtype | None = None, sequences: int = 1
    ) -> KVCache:
        """Return a pool for this model's keys and values; without a `dtype` in the compute dtype.

        `sequences`: of how many at once it keeps states, where it has any (`ModelConfig.states`).
        """
        ...

    def forward(
        self,
        token_ids: Int32,
        layout: BatchLayout,
        cache: KVCache,
        rows: Int32,
        states: States | None = None,
    ) -> torch.Tensor:
        """As `Decoder.forward`: the logits of the tokens at `rows`, [len(rows), vocab] in `dtype`."""
        ...
