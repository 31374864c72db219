"""The attention of a general model: its queries, keys and values as our kernels take them, on the paged cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from weighbridge.models.compute.kernels.api import BatchLayout, Kernels
from weighbridge.models.general.kv import GroupedKVCache, KvPlace
from weighbridge.models.general.seam import AttentionCall
from weighbridge.models.general.tracing import AttentionShape


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
        self._kernels.paged_attention(
            attended,
            qkv,
            place.cache,
            place.layer,
            self._layout,
            shape.heads,
            asked.scale,
            asked.window,
            asked.softcap,
            None if asked.sinks is None else asked.sinks.float().flatten(),
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
