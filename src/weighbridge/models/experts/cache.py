"""Experts that do not all fit: the ones worth keeping are resident, the others come from a mapped file when needed.

While a layer computes, a thread loads what the next layer will probably want: its router, asked with this layer's
hidden states (the residual stream changes slowly; Eliseev and Mazur 2023). The numbers computed are those of a
model that is wholly in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.layers import Mlp
from weighbridge.models.compute.memory import memory_of
from weighbridge.models.experts.moe import combine, gather
from weighbridge.models.experts.moe_grouped import native_experts, packed_matrix
from weighbridge.models.experts.policy import HeatAware
from weighbridge.models.experts.routing import Router
from weighbridge.models.experts.ways import Expert

Load = Callable[[int, int], Mlp]  # layer and expert to its weights, safe to call from another thread


class Computation(Protocol):
    """The experts of one layer for one batch, in any order."""

    def compute(self, experts: Sequence[tuple[int, Mlp]]) -> None: ...

    def finish(self) -> torch.Tensor:
        """[tokens, hidden], once every chosen expert was computed."""
        ...


#: Hidden states, ids and weights of a batch, to what will compute it.
Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Computation]


class ExpertCache:
    """Residents of all layers and what is being loaded. Used by the engine's thread alone.

    Sparse layers are counted from 0 here; `compute` has an entry for each. memory: bytes for experts, those in
    flight included.
    """

    def __init__(
        self,
        load: Load,
        compute: Sequence[Compute],
        experts: int,
        top_k: int,
        expert_bytes: int,
        memory: int,
    ) -> None:
        """Raises BadInput for a memory too small to compute with."""
        layers = len(compute)
        self._flight = 2 * top_k  # experts loaded ahead or in use beside the residents
        capacity = min(memory // expert_bytes - self._flight, layers * experts)
        if capacity < layers:
            min_bytes = (layers + self._flight) * expert_bytes
            raise BadInput(
                f"--expert-cache {memory / 1e6:.0f} MB is too little: this model needs at least "
                f"{min_bytes / 1e6:.0f} MB, one expert per layer and {self._flight} in flight",
                param="expert_cache",
            )
        self.expert_bytes = expert_bytes
        self.capacity = capacity
        self._load = load
        self._compute = compute
        self._policy = HeatAware(layers, experts, capacity, min_per_visit=top_k)
        self._resident = {expert: load(*expert) for expert in sorted(self._policy.resident)}
        self._coming: dict[Expert, Future[Mlp]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weighbridge-experts")
        self.routers: list[Router] = []  # of every layer, in order: who will be asked ahead
        self._uses = self._prefetched = self._loads = 0

    def next_layer(self) -> CachedExperts:
        """Return the experts of the layer whose router was added last."""
        index = len(self.routers) - 1
        return CachedExperts(index, self, self._compute[index])

    @property
    def nbytes(self) -> int:
        return (self.capacity + self._flight) * self.expert_bytes

    def resident(self, layer: int, expert: int) -> Mlp | None:
        return self._resident.get((layer, expert))

    def obtain(self, layer: int, expert: int) -> Mlp:
        """Return an expert that is not resident: from a load under way, or loaded now."""
        coming = self._coming.pop((layer, expert), None)
        if coming is None:
            self._loads += 1
            return self._load(layer, expert)
        self._prefetched += 1
        return coming.result()

    def look_ahead(self, layer: int, x: torch.Tensor) -> None:
        """Begin to load what `layer` will probably need, while there is room."""
        if layer >= len(self.routers):
            return
        ids, _ = self.routers[layer](x)
        numbers, counts = np.unique(ids.numpy(), return_counts=True)
        for number in numbers[np.argsort(-counts, kind="stable")].tolist():
            key = (layer, number)
            if len(self._coming) >= self._flight:
                return
            if key not in self._resident and key not in self._coming:
                self._loads += 1
                self._coming[key] = self._thread.submit(self._load, *key)

    def visit(self, layer: int, experts: Sequence[int], missing: Sequence[int]) -> None:
        """Note that `layer` uses `experts`, `missing` of them not resident, and drop what has to leave for those."""
        self._uses += len(experts)
        _, gone = self._policy.visit(layer, experts)
        for expert in gone:
            self._resident.pop(expert, None)
        for key in [key for key in self._coming if key[0] == layer and key[1] not in missing]:
            self._coming.pop(key).cancel()  # looked ahead in vain

    def offer(self, layer: int, expert: int, mlp: Mlp) -> None:
        """Offer a missing expert that was computed: it stays if the policy wants it."""
        if (layer, expert) in self._policy.resident:
            self._resident[layer, expert] = mlp

    def report(self) -> dict[str, Any]:
        """Return the counters since the start, as plain JSON types."""
        return {
            "capacity": self.capacity,
            "resident_bytes": len(self._resident) * self.expert_bytes,
            "uses": self._uses,
            "hits": self._policy.hits,
            "misses": self._uses - self._policy.hits,
            "prefetched": self._prefetched,
            "hit_rate": self._policy.hits / self._uses if self._uses else 0.0,
            "lru_hits": self._policy.lru_hits,
            "lru_hit_rate": self._policy.lru_hits / self._uses if self._uses else 0.0,
            "follows": self._policy.follows,
            "loaded_bytes": self._loads * self.expert_bytes,
        }


class CachedExperts:
    """The experts of one layer in the feed-forward seat: residents first, the others as they arrive."""

    def __init__(self, layer: int, cache: ExpertCache, make: Compute) -> None:
        self.cache = cache
        self._layer = layer
        self._make = make

    @property
    def nbytes(self) -> int:
        """This layer's share of the cache."""
        return self.cache.nbytes // max(len(self.cache.routers), 1)

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        cache, layer = self.cache, self._layer
        computation = self._make(x, ids, weights)
        chosen = np.unique(ids.numpy()).tolist()
        resident = [(number, mlp) for number in chosen if (mlp := cache.resident(layer, number)) is not None]
        missing = [number for number in chosen if cache.resident(layer, number) is None]
        cache.look_ahead(layer + 1, x)
        if resident:
            computation.compute(resident)
        del resident  # what leaves is freed before more is loaded
        cache.visit(layer, chosen, missing)
        for number in missing:
            mlp = cache.obtain(layer, number)
            computation.compute([(number, mlp)])
            cache.offer(layer, number, mlp)
        return computation.finish()


class ListedComputation:
    """Computes one expert after the other, for every kind of linear layer."""

    def __init__(self, count: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        self._gathered, self._order, self._bounds = gather(x, ids, count)
        self._outputs = torch.empty_like(self._gathered)
        self._weights = weights

    def compute(self, experts: Sequence[tuple[int, Mlp]]) -> None:
        for number, mlp in experts:
            start, end = self._bounds[number], self._bounds[number + 1]
            self._outputs[start:end] = mlp(self._gathered[start:end])

    def finish(self) -> torch.Tensor:
        return combine(self._outputs, self._order, self._weights, self._outputs.dtype)


class NativeComputation:
    """Computes packed experts with our kernels."""

    def __init__(self, native: Any, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        self._native = native
        self._x, self._ids, self._weights = x.contiguous(), ids, weights  # kept alive until finish
        self._out = torch.empty_like(self._x)
        places = memory_of(ids, torch.int32), memory_of(weights, torch.float32)
        native.begin(memory_of(self._out), memory_of(self._x), *places, *ids.shape)

    def compute(self, experts: Sequence[tuple[int, Mlp]]) -> None:
        for number, mlp in experts:
            self._native.set(number, packed_matrix(mlp.gate_up), packed_matrix(mlp.down))
        self._native.compute([number for number, _ in experts], torch.get_num_threads())

    def finish(self) -> torch.Tensor:
        self._native.finish(torch.get_num_threads())
        return self._out


def computation_of(example: Mlp, count: int, dtype: torch.dtype) -> Compute:
    """Return what computes `count` experts that are stored as `example` is."""
    native = native_experts(example, count, dtype)
    if native is None:
        return lambda x, ids, weights: ListedComputation(count, x, ids, weights)
    return lambda x, ids, weights: NativeComputation(native, x, ids, weights)
