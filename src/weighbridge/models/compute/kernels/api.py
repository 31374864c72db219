"""The seam between the decoder and whatever computes: torch reference, or our C++ for this CPU.

Activations are contiguous torch CPU tensors in the compute dtype (float32 or bfloat16), one row per token.
The residual stream is always float32. Kernels write into tensors they are given and allocate nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class BatchLayout:
    """Where each token of a batch sits. Built once per iteration, read by every layer.

    `positions[t]` is the token's position in its sequence, `slots[t]` = block id * block size + offset:
    where its key and value go. Sequence s owns rows query_starts[s] to query_starts[s + 1] and attends to
    its first `context_lens[s]` tokens (its new ones included), found through `block_tables[s]`.
    Query row r of a sequence sees positions <= context_len - num_queries + r (causal).
    All int32 and contiguous: [tokens], [tokens], [sequences + 1], [sequences], [sequences, max blocks].
    `state_slots` [sequences]: which states are whose, where a model keeps some (`ModelConfig.states`).
    """

    positions: Int32
    slots: Int32
    query_starts: Int32
    context_lens: Int32
    block_tables: Int32
    state_slots: Int32 | None = None

    @classmethod
    def of_one_text(cls, count: int, block_size: int) -> BatchLayout:
        """All of a text of `count` tokens at once, in the first blocks of a cache."""
        positions = np.arange(count, dtype=np.int32)
        return cls(
            positions=positions,
            slots=positions.copy(),
            query_starts=np.array([0, count], np.int32),
            context_lens=np.array([count], np.int32),
            block_tables=np.arange(-(-count // block_size), dtype=np.int32)[None, :].copy(),
        )


@dataclass(frozen=True, slots=True)
class States:
    """Where a forward pass leaves what the output matrix read: hidden states behind the last norm.

    `rows` [S] int32: which of the rows with logits leave theirs; `out` [S, hidden] in the compute dtype.
    """

    rows: Int32
    out: torch.Tensor


class KVCache(Protocol):
    """The paged pool of keys and values of all layers. Its memory layout is the kernels' own business."""

    num_blocks: int
    block_size: int

    @property
    def nbytes(self) -> int: ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in every layer (copy on write)."""
        ...

    def read(self, layer: int, slots: Int32) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `slots` as [tokens, kv heads, head dim], whatever the layout (tests, debugging)."""
        ...


class Kernels(Protocol):
    """One implementation for one instruction set."""

    name: str  # "avx512_bf16", "avx512", "avx2", "neon", "portable" or "reference"

    def allocate_kv(
        self, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KVCache:
        """Return a pool in float32, bfloat16, or int8 with a scale for each token and head."""
        ...

    def rms_norm(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
        """out[t] = weight * x[t] / rms(x[t]). x float32 [T, H]; out compute dtype [T, H]; weight float32 [H]."""
        ...

    def add_rms_norm(
        self, out: torch.Tensor, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> None:
        """residual += x in place (float32), then out = rms_norm(residual). x compute dtype [T, H]."""
        ...

    def rope_and_write(
        self,
        qkv: torch.Tensor,
        cache: KVCache,
        layer: int,
        layout: BatchLayout,
        cos_sin: torch.Tensor | None,
        num_heads: int,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> None:
        """Rotate queries in place inside `qkv`, rotate keys, and write keys and values to their slots in its dtype.

        qkv is [T, (num_heads + 2 kv_heads) * head_dim] in compute dtype: all queries, all keys, all values.
        cos_sin is float32 [max positions, head_dim]: head_dim/2 cosines, then head_dim/2 sines (rotate-half
        convention: element i pairs with i + head_dim/2); None: this layer does not rotate.
        q_norm and k_norm (float32 [head_dim]): per-head RMSNorm before the rotation; None: no norm.
        """
        ...

    def paged_attention(
        self,
        out: torch.Tensor,
        qkv: torch.Tensor,
        cache: KVCache,
        layer: int,
        layout: BatchLayout,
        num_heads: int,
        scale: float,
        window: int,
        softcap: float = 0.0,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Causal attention of a mixed batch (decodes, prompt chunks behind a cached prefix).

        Queries are the first num_heads * head_dim columns of `qkv`; out is [T, num_heads * head_dim] in
        compute dtype. Query head h reads KV head h // (num_heads // kv_heads). window > 0: a query at
        position p sees keys with p - window < position <= p. softcap > 0: a score s becomes softcap *
        tanh(s / softcap). sinks (float32 [num_heads]): a score beside those of a head's keys, which takes its share
        of the softmax and has no value. Softmax and sums in float32.
        """
        ...

    def silu_mul(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        """out = silu(gate) * up, gate_up [T, 2 I] = gate then up, out [T, I]."""
        ...

    def gelu_mul(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        """out = gelu(gate) * up, the tanh form; shapes as in `silu_mul`."""
        ...

    def gather_rows(self, out: torch.Tensor, table: torch.Tensor, rows: Int32) -> None:
        """out[i] = table[rows[i]]: embedding lookup (out float32, table compute dtype) and row selection."""
        ...

    def argmax(self, logits: torch.Tensor) -> Int32:
        """Index of the largest logit of each row, the first one on ties. logits float32 or bfloat16 [S, V]."""
        ...
