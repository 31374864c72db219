"""The attention of a general model: its queries, keys and values as our kernels take them, on the paged cache.

The kernels have neither soft caps nor sinks: layers that ask for them are computed in torch, over what the cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from weighbridge.models.compute.kernels.api import BatchLayout, Kernels
from weighbridge.models.general.kv import GroupedKVCache, KvPlace
from weighbridge.models.general.seam import AttentionCall
from weighbridge.models.general.tracing import AttentionShape

QUERY_ROWS_AT_A_TIME = 256  # bounds the score matrix of a long prompt


class PagedPass:
    """One forward pass over a batch. Layers come in the order in which they were traced."""

    def __init__(
        self,
        kernels: Kernels,
        shapes: Sequence[AttentionShape],
        layout: BatchLayout,
        cache: GroupedKVCache,
        dtype: torch.dtype,
    ) -> None:
        self._kernels, self._shapes, self._layout, self._cache = kernels, shapes, layout, cache
        self._dtype = dtype
        self._next = 0

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        asked: AttentionCall,
    ) -> torch.Tensor:
        shape = self._shapes[self._next]
        self._next += 1
        place, size = self._cache.places[shape.kept], shape.kv.head_dim
        tokens, real = query.shape[2], len(self._layout.positions)
        if shape.writes:
            qkv = self._rows([query, key, value], size, real)
            self._write(qkv, place, shape.heads)
        else:  # an earlier layer's: room for them is all that the kernel asks
            qkv = self._rows([query, key, key], size, real)
        attended = qkv.new_empty(real, shape.heads * size)
        if asked.softcap or asked.sinks is not None:
            self._attend_in_torch(attended, qkv, place, shape, asked)
        else:
            self._kernels.paged_attention(
                attended, qkv, place.cache, place.layer, self._layout, shape.heads, asked.scale, asked.window
            )
        heads = attended.view(real, shape.heads, size)[..., : shape.value_dim]
        if tokens > real:
            heads = F.pad(heads, (0, 0, 0, 0, 0, tokens - real))
        return heads.to(query.dtype)[None]

    def _rows(self, parts: list[torch.Tensor], size: int, real: int) -> torch.Tensor:
        """Return [T, (heads + 2 kv heads) * size]: each part [1, heads, T, dim], padded with zeros."""
        rows = [part[0].transpose(0, 1)[:real] for part in parts]
        rows = [F.pad(part, (0, size - part.shape[2])) if part.shape[2] < size else part for part in rows]
        return torch.cat(rows, dim=1).to(self._dtype).flatten(1)

    def _write(self, qkv: torch.Tensor, place: KvPlace, heads: int) -> None:
        self._kernels.rope_and_write(
            qkv, place.cache, place.layer, self._layout, None, heads, None, None, 0.0
        )

    def _attend_in_torch(
        self,
        out: torch.Tensor,
        qkv: torch.Tensor,
        place: KvPlace,
        shape: AttentionShape,
        asked: AttentionCall,
    ) -> None:
        layout, size, dim = self._layout, place.cache.block_size, shape.kv.head_dim
        queries = qkv[:, : shape.heads * dim].view(-1, shape.heads, dim)
        for sequence, context in enumerate(layout.context_lens.tolist()):
            begin, end = layout.query_starts[sequence : sequence + 2].tolist()
            first = context - (end - begin)  # position of the first query
            seen = max(first - asked.window + 1, 0) if asked.window else 0
            at = np.arange(seen, context)
            slots = (layout.block_tables[sequence, at // size] * size + at % size).astype(np.int32)
            keys, values = (part.float().transpose(0, 1) for part in place.cache.read(place.layer, slots))
            for row in range(begin, end, QUERY_ROWS_AT_A_TIME):
                query = queries[row : min(end, row + QUERY_ROWS_AT_A_TIME)].float().transpose(0, 1)
                position = first - seen + row - begin
                attended = capped_attention(query, keys, values, position, asked)
                out[row : row + query.shape[1]] = attended.transpose(0, 1).flatten(1).to(out.dtype)


def capped_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, asked: AttentionCall
) -> torch.Tensor:
    """Return causal attention [heads, rows, dim] with a soft cap and sinks, in float32.

    query [heads, rows, dim], its first row at `position` of keys and values [kv heads, context, dim].
    """
    heads, rows, dim = query.shape
    kv_heads, context, _ = keys.shape
    grouped = query.reshape(kv_heads, heads // kv_heads * rows, dim)
    scores = (grouped @ keys.transpose(1, 2) * asked.scale).view(heads, rows, context)
    if asked.softcap:
        scores = torch.tanh(scores / asked.softcap) * asked.softcap
    ahead = torch.arange(context)[None, :] - torch.arange(position, position + rows)[:, None]
    hidden = ahead > 0
    if asked.window:
        hidden |= ahead <= -asked.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if asked.sinks is not None:
        sinks = asked.sinks.float().view(heads, 1, 1).expand(heads, rows, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :context]
    else:
        weights = scores.softmax(dim=-1)
    mixed = weights.reshape(kv_heads, -1, context) @ values
    return mixed.view(heads, rows, dim)
