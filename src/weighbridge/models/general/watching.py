"""Which linear layers of a model only multiply: their place can be taken by ours, which have no weight to look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


class LinearCalls(NamedTuple):
    """How often a layer was called, and for how many rows the last time."""

    times: int
    rows: int


class _WatchedLinear(torch.nn.Linear):
    """A linear layer that notes whether anybody but itself looks at its weight."""

    looked_at = False
    calls = LinearCalls(0, 0)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias"):
            self.__dict__["looked_at"] = True
        return super().__getattr__(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.__dict__["calls"] = LinearCalls(self.calls.times + 1, x.numel() // max(x.shape[-1], 1))
        held = self._parameters
        weight = held["weight"]
        assert weight is not None
        return F.linear(x, weight, held["bias"])


@contextmanager
def watched(skeleton: Any, found: dict[str, LinearCalls]) -> Iterator[None]:
    """Put the linear layers of `skeleton` that are only called, while this is open, into `found` by their names."""
    linears = {
        name: module
        for name, module in skeleton.named_modules()
        if type(module) is torch.nn.Linear and module.weight.dim() == 2
    }
    for module in linears.values():
        module.__class__ = _WatchedLinear
    try:
        yield
    finally:
        for name, module in linears.items():
            noted: Any = module
            looked_at, calls = noted.looked_at, noted.calls
            module.__class__ = torch.nn.Linear
            if not looked_at:
                found[name] = calls
