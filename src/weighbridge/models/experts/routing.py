"""Which experts a token goes to: the router of a layer, and a trace of what routers chose."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F

from weighbridge.models.compute.kernels.api import Int32
from weighbridge.models.compute.linear_packed import kernels_available
from weighbridge.models.compute.memory import memory_of

_native: Any = (
    importlib.import_module("weighbridge.models.compute.kernels._native") if kernels_available() else None
)


def choose(logits: torch.Tensor, top_k: int, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `top_k` largest of a softmax over `logits` float32 [tokens, experts]: int32 ids and float32 weights,
    both [tokens, top_k] by falling weight; `normalize`: the weights of a token add up to 1."""
    tokens, experts = logits.shape
    if _native is None:
        weights, chosen = torch.topk(torch.softmax(logits, dim=-1), top_k, dim=-1)
        if normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return chosen.int(), weights
    ids = torch.empty(tokens, top_k, dtype=torch.int32)
    weights = torch.empty(tokens, top_k)
    places = memory_of(ids), memory_of(weights), memory_of(logits, torch.float32)
    _native.route(*places, tokens, experts, top_k, normalize)
    return ids, weights


class Router:
    """Scores of the experts for each token. Computed in float32, whatever the compute dtype.

    weight: float32 [experts, hidden].
    """

    def __init__(self, weight: torch.Tensor, top_k: int, normalize: bool) -> None:
        self.weight = weight.float().contiguous()
        self.top_k = top_k
        self.normalize = normalize

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states [tokens, hidden] to float32 [tokens, experts]."""
        return F.linear(x.float(), self.weight)

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen experts, int32 [tokens, top_k] by falling score, and their weights, float32 of that shape."""
        return choose(self.logits(x), self.top_k, self.normalize)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes


class RoutingTrace:
    """What the routers of one iteration chose: (layer, int32 [tokens, top_k]) in the order they ran."""

    def __init__(self) -> None:
        self._chosen: list[tuple[int, Int32]] = []

    def add(self, layer: int, ids: Int32) -> None:
        self._chosen.append((layer, ids))

    def take(self) -> list[tuple[int, Int32]]:
        """Return everything since the last call; an iteration that failed half way leaves nothing behind."""
        chosen, self._chosen = self._chosen, []
        return chosen
