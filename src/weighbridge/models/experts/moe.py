"""Mixture of experts in the decoder's feed-forward seat: route each token, run its experts, add them up.

Routing is dropless: an expert runs exactly the tokens that chose it, whatever their number, so a token's result
does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from weighbridge.models.compute.kernels.api import Int32
from weighbridge.models.compute.layers import FeedForward, Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.experts.routing import Router, RoutingTrace


class LayerExperts(Protocol):
    """All experts of one layer."""

    @property
    def nbytes(self) -> int:
        """Resident bytes of the weights."""
        ...

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Weighted sum of each token's experts: [tokens, hidden] in the compute dtype."""
        ...


class ListedExperts:
    """One feed-forward block per expert, over the tokens gathered for it. Works with every kind of `Linear`."""

    def __init__(self, experts: Sequence[FeedForward]) -> None:
        self._experts = experts

    @property
    def nbytes(self) -> int:
        return sum(expert.nbytes for expert in self._experts)

    def __call__(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gathered, order, bounds = gather(x, ids, len(self._experts))
        outputs = torch.empty_like(gathered)
        for expert in np.flatnonzero(np.diff(bounds)).tolist():
            start, end = bounds[expert], bounds[expert + 1]
            outputs[start:end] = self._experts[expert](gathered[start:end])
        return combine(outputs, order, weights, x.dtype)


def gather(x: torch.Tensor, ids: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, Int32]:
    """Repeat each row of `x` once per chosen expert, sorted by expert.

    Returns the rows [tokens * top_k, hidden], the place of each (token, choice) pair among them and where the
    rows of each expert begin [count + 1].
    """
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)  # tokens stay in order within an expert
    bounds = np.zeros(count + 1, np.int32)
    np.cumsum(np.bincount(flat.numpy(), minlength=count), out=bounds[1:])
    return x.index_select(0, order // ids.shape[1]), order, bounds


def combine(
    outputs: torch.Tensor, order: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Undo `gather` and add each token's experts in float32, one after the other, best first."""
    tokens, top_k = weights.shape
    back = torch.empty(outputs.shape, dtype=torch.float32)
    back[order] = outputs.float()
    weighted = back.view(tokens, top_k, -1).mul_(weights[:, :, None])
    total = weighted[:, 0]
    for choice in range(1, top_k):
        total = total + weighted[:, choice]
    return total.to(dtype)


class SharedExpert:
    """A feed-forward block that every token runs through, scaled by a gate of its own (Qwen2-MoE)."""

    def __init__(self, mlp: Mlp, gate: torch.Tensor) -> None:
        self._mlp = mlp
        self._gate = gate.float().reshape(1, -1).contiguous()  # a GGUF has it without the leading 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [tokens, hidden]."""
        return torch.sigmoid(F.linear(x.float(), self._gate)) * self._mlp(x).float()

    @property
    def nbytes(self) -> int:
        return self._mlp.nbytes + self._gate.nbytes


class SparseMlp:
    """The feed-forward block of a sparse layer. `trace`, once set, records what the router chose."""

    def __init__(
        self, layer: int, router: Router, experts: LayerExperts, shared: SharedExpert | None
    ) -> None:
        self.layer = layer
        self.router = router
        self.experts = experts
        self.trace: RoutingTrace | None = None
        self._shared = shared

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        ids, weights = self.router(x)
        if self.trace is not None:
            self.trace.add(self.layer, ids.numpy())
        y = self.experts(x, ids, weights)
        return y if self._shared is None else (y.float() + self._shared(x)).to(x.dtype)

    @property
    def nbytes(self) -> int:
        shared = 0 if self._shared is None else self._shared.nbytes
        return self.router.nbytes + self.experts.nbytes + shared


class NormedProjection:
    """OLMoE's queries, keys and values: RMSNorm over all heads of the queries and of the keys, then a clamp.

    norms: float32, as wide as all queries and all keys; `clip`: the largest magnitude let through, or None.
    """

    def __init__(
        self, qkv: Linear, q_norm: torch.Tensor, k_norm: torch.Tensor, eps: float, clip: float | None
    ) -> None:
        self.in_features, self.out_features = qkv.in_features, qkv.out_features
        self.qkv = qkv
        self._norms = (q_norm, k_norm)
        self._eps = eps
        self._clip = clip

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        qkv, start = self.qkv(x), 0
        for weight in self._norms:
            part = qkv[:, start : start + len(weight)]
            part.copy_(F.rms_norm(part.float(), (len(weight),), weight, self._eps))
            start += len(weight)
        return qkv if self._clip is None else qkv.clamp_(-self._clip, self._clip)

    @property
    def nbytes(self) -> int:
        return self.qkv.nbytes + sum(weight.nbytes for weight in self._norms)
