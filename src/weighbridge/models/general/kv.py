"""The paged pool of a model whose layers need not keep the same of a token: a cache of the kernels for each shape.

And what some of them carry for a sequence as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weighbridge.models.compute.kernels.api import Int32, Kernels, KVCache
from weighbridge.models.files.config import KvShape
from weighbridge.models.general.states.pool import StatePool


@dataclass(frozen=True, slots=True)
class KvPlace:
    """Where a layer's keys and values are: the cache, and its layer there."""

    cache: KVCache
    layer: int


class GroupedKVCache:
    """A `KVCache` over several, which have the same blocks: block b of the pool is block b of each."""

    def __init__(
        self,
        kernels: Kernels,
        shapes: Sequence[KvShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        states: StatePool | None = None,
    ) -> None:
        self.states = states
        self.num_blocks, self.block_size = num_blocks, block_size
        self._caches = {
            shape: kernels.allocate_kv(
                shapes.count(shape), num_blocks, block_size, shape.kv_heads, shape.head_dim, dtype
            )
            for shape in dict.fromkeys(shapes)
        }
        self.places = [
            KvPlace(self._caches[shape], shapes[:index].count(shape)) for index, shape in enumerate(shapes)
        ]

    @property
    def only(self) -> KVCache:
        """The one cache, where all layers keep the same of a token."""
        (cache,) = self._caches.values()
        return cache

    @property
    def nbytes(self) -> int:
        states = 0 if self.states is None else self.states.nbytes
        return states + sum(cache.nbytes for cache in self._caches.values())

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in every layer."""
        for cache in self._caches.values():
            cache.copy_block(source, target)

    def read(self, layer: int, slots: Int32) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `slots` as [tokens, kv heads, head dim], with their padding."""
        place = self.places[layer]
        return place.cache.read(place.layer, slots)
