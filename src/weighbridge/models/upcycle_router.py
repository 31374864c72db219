"""Routers for upcycled models: random directions, and on demand a measured lean towards some experts.

A Mixtral router has no bias, but hidden states have a mean: a row that points along it scores higher for every
token. So popularity is written along the mean direction and the choice by content across it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from weighbridge.errors import BadInput
from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout
from weighbridge.models.compute.layers import FeedForward
from weighbridge.models.files.checkpoint import Checkpoint
from weighbridge.models.loader import choose_dtype, load_decoder

_BLOCK = 16
FEWEST_TOKENS = 64


class RouterOptions(Protocol):
    """The part of the upcycling options that shapes routers."""

    @property
    def experts(self) -> int: ...

    @property
    def skew(self) -> float: ...

    @property
    def seed(self) -> int: ...


class _Listener:
    """A listener in a layer's feed-forward seat that records what comes in."""

    def __init__(self, inner: FeedForward) -> None:
        self.inner = inner
        self.inputs: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs = x.float()
        return self.inner(x)

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes


def router_weights(
    checkpoint: Checkpoint, options: RouterOptions, calibration_tokens: Sequence[int]
) -> list[torch.Tensor]:
    """Return a router [experts, hidden] for every layer. Raises BadInput when a skew has too little text to lean on."""
    generator = torch.Generator().manual_seed(options.seed)
    config = checkpoint.config
    shape = (config.num_layers, options.experts, config.hidden_size)
    rows = torch.randn(shape, generator=generator)
    if options.skew == 0.0:
        return list(rows / config.hidden_size**0.5)
    if len(calibration_tokens) < FEWEST_TOKENS:
        raise BadInput(f"a skewed router needs a text of at least {FEWEST_TOKENS} tokens to measure on")
    states = hidden_states(load_decoder(checkpoint, choose_dtype("auto")), calibration_tokens)
    ranks = torch.arange(1, options.experts + 1).float()
    routers = []
    for layer, hidden in enumerate(states):
        order = torch.randperm(options.experts, generator=generator)
        routers.append(_leaning(rows[layer], hidden, -options.skew * ranks.log()[order]))
    return routers


def _leaning(rows: torch.Tensor, hidden: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Rows whose logits have, over `hidden`, the given mean `scores` and a standard deviation of about 1."""
    mean = hidden.mean(dim=0)
    along = mean / mean.norm()
    across = rows - (rows @ along)[:, None] * along
    across = across / (hidden @ across.T).std(dim=0)[:, None]
    lean = scores[:, None] * along / (hidden @ along).mean()
    router: torch.Tensor = (across + lean).contiguous()
    return router


def hidden_states(decoder: Decoder, tokens: Sequence[int]) -> list[torch.Tensor]:
    """Return what enters the feed-forward block of each layer: float32 [tokens, hidden]."""
    count = min(len(tokens), decoder.config.max_position_embeddings)
    blocks = -(-count // _BLOCK)
    layout = BatchLayout.of_one_text(count, _BLOCK)
    listeners = [_Listener(layer.mlp) for layer in decoder.layers]
    layers = [replace(layer, mlp=ear) for layer, ear in zip(decoder.layers, listeners, strict=True)]
    listening = Decoder(replace(decoder.weights, layers=layers), decoder.kernels)
    listening.forward(
        np.array(tokens[:count], np.int32), layout, decoder.allocate_kv(blocks, _BLOCK), layout.positions
    )
    return [listener.inputs for listener in listeners if listener.inputs is not None]
