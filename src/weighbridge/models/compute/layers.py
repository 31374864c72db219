"""What a decoder is made of: the weights of its layers and of what stands around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from weighbridge.models.compute.kernels.api import Kernels
from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.files.config import Activation, ModelConfig


class FeedForward(Protocol):
    """What follows the attention of a layer: one gated block, or a mixture of experts."""

    @property
    def nbytes(self) -> int:
        """Resident bytes of the weights."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] to [tokens, hidden], both in the compute dtype."""
        ...


class Mlp:
    """Gated feed-forward: down(activation(gate(x)) * up(x)), gate and up as one matrix."""

    def __init__(
        self, gate_up: Linear, down: Linear, kernels: Kernels, activation: Activation = Activation.SILU
    ) -> None:
        self.gate_up = gate_up
        self.down = down
        self.activation = activation
        self._kernels = kernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self.gate_up(x)
        inner = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        if self.activation is Activation.SILU:
            self._kernels.silu_mul(inner, gate_up)
        else:
            self._kernels.gelu_mul(inner, gate_up)
        return self.down(inner)

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


@dataclass(slots=True)
class DecoderLayer:
    """Weights of one transformer layer; norms are float32 [hidden]."""

    input_norm: torch.Tensor
    qkv: Linear
    output: Linear
    post_attention_norm: torch.Tensor
    mlp: FeedForward
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    rotates: bool
    window: int
    # Gemma's, on what attention and the feed-forward block add to the residual; None: it is added as it is.
    attention_output_norm: torch.Tensor | None = None
    mlp_output_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole model for one compute dtype: embedding [vocab, hidden] in `dtype` or packed (it may be the output
    matrix then), final norm float32 [hidden], cos_sin float32 [positions, head_dim]; local_cos_sin for layers with a
    window, where they rotate otherwise."""

    config: ModelConfig
    dtype: torch.dtype
    embedding: torch.Tensor | PackedLinear
    layers: list[DecoderLayer]
    final_norm: torch.Tensor
    lm_head: Linear
    cos_sin: torch.Tensor
    local_cos_sin: torch.Tensor | None = None

    def rotation(self, layer: DecoderLayer) -> torch.Tensor | None:
        """Return the table by which `layer` rotates; None: it does not."""
        if not layer.rotates:
            return None
        return self.local_cos_sin if layer.window and self.local_cos_sin is not None else self.cos_sin

    @property
    def nbytes(self) -> int:
        """Resident bytes of all weights, the embedding table included."""
        linears = sum(layer.qkv.nbytes + layer.output.nbytes + layer.mlp.nbytes for layer in self.layers)
        embedding = 0 if self.embedding is self.lm_head else self.embedding.nbytes
        return linears + self.lm_head.nbytes + embedding
