"""Models of transformers whose layers do what ours do: found by their modules, proven by their numbers, and run by our
decoder, which pays nothing for an interpreter between the kernels.

What is found may still do something else (a factor, another norm, another rotation): whether it does is seen in
numbers. What one module makes must be what the next is given, bit for bit, and each layer, in bfloat16 a copy of it in
float32, must make what ours makes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from weighbridge.models.compute.decoder import Decoder
from weighbridge.models.compute.kernels.api import BatchLayout, Kernels
from weighbridge.models.compute.layers import DecoderLayer, DecoderWeights, Mlp
from weighbridge.models.compute.linear import Linear
from weighbridge.models.compute.linear_packed import PackedLinear
from weighbridge.models.compute.rope import MAX_TABLE_BYTES
from weighbridge.models.files.config import ModelConfig
from weighbridge.models.general.packed.linears import OwnLinear
from weighbridge.models.general.seam import AttentionCall, listening
from weighbridge.models.general.tracing import AttentionShape

#: Rotations that are the same for a position whatever stands beside it.
_ROTATIONS = ("default", "linear", "llama3", "yarn")
#: Largest difference of a layer in float32, as a share of the length of what it makes.
TOLERANCE = 1e-4
_TRIED, _BLOCK = 6, 16

#: The linear layer that a module is.
LinearOf = Callable[[Any], Linear]


@dataclass(frozen=True, slots=True)
class _LayerParts:
    """The modules of a layer; `qkv` and `gate_up` are one, or one for each matrix."""

    norms: tuple[Any, Any]
    qkv: tuple[Any, ...]
    head_norms: tuple[Any, Any] | None
    output: Any
    gate_up: tuple[Any, ...]
    down: Any
    window: int

    def built(self, kernels: Kernels, linear_of: LinearOf) -> DecoderLayer:
        q_norm, k_norm = self.head_norms or (None, None)
        return DecoderLayer(
            input_norm=_weight(self.norms[0]),
            qkv=_stacked([linear_of(one) for one in self.qkv]),
            output=linear_of(self.output),
            post_attention_norm=_weight(self.norms[1]),
            mlp=Mlp(_stacked([linear_of(one) for one in self.gate_up]), linear_of(self.down), kernels),
            q_norm=None if q_norm is None else _weight(q_norm),
            k_norm=None if k_norm is None else _weight(k_norm),
            rotates=True,
            window=self.window,
        )


class PlainModel:
    """A model that may be run by our decoder: embedding, layers of attention and a gated block, a norm, an output."""

    def __init__(self, model: Any, config: ModelConfig, shapes: Sequence[AttentionShape], kernels: Kernels):
        """Raises AttributeError, ValueError or KeyError where it is none."""
        self._body, self._head = model.get_decoder(), model.get_output_embeddings
        self._kernels, first = kernels, shapes[0]
        self._embedding, self._norm = model.get_input_embeddings(), self._body.norm
        if type(self._embedding) is not torch.nn.Embedding or len(self._body.layers) != len(shapes):
            raise ValueError("no plain embedding, or other layers than attentions")
        size = first.key_dim
        if any(replace(shape, kept=0, window=0) != replace(first, kept=0, window=0) for shape in shapes):
            raise ValueError("layers of several kinds")
        if not (first.bare and first.writes and first.value_dim == size) or size % 2:
            raise ValueError("attention that ours is not")
        self._windows = [shape.window for shape in shapes]
        last = list(self._parts())[-1]
        if self._body.rotary_emb.rope_type not in _ROTATIONS:
            raise ValueError("a rotation that depends on the text")
        self.config = replace(
            config,
            intermediate_size=int(last.down.in_features),
            head_dim=size,
            rms_norm_eps=_eps(self._norm),
            attention_scale=first.scale,
            own_kv=None,
        )

    def decoder(self, dtype: torch.dtype, positions: int, linear_of: LinearOf) -> Decoder:
        """Return our decoder over the weights of the model. Raises ValueError for more positions than have a table."""
        weights = DecoderWeights(
            self.config,
            dtype,
            embedding=self._embedding.weight.detach(),
            layers=[parts.built(self._kernels, linear_of) for parts in self._parts()],
            final_norm=_weight(self._norm),
            lm_head=linear_of(self._head()),
            cos_sin=self._table(positions),
        )
        return Decoder(weights, self._kernels)

    def is_chain(self, run: Callable[[], torch.Tensor]) -> bool:
        """Whether nothing is done between embedding, layers, norm and output in the pass of `run`, to its logits."""
        seen: list[torch.Tensor] = []

        def asked(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.append(given[0] if given else named["hidden_states"])

        def made(module: Any, given: Any, result: torch.Tensor) -> None:
            seen.append(result)

        chain = [*self._body.layers, self._norm, self._head()]
        hooks = [self._embedding.register_forward_hook(made)]
        for module in chain:
            hooks += [
                module.register_forward_pre_hook(asked, with_kwargs=True),
                module.register_forward_hook(made),
            ]
        try:
            logits = run()
        finally:
            for hook in hooks:
                hook.remove()
        pairs = [*zip(seen[::2], seen[1::2], strict=False), (seen[-1][0], logits)]
        return len(seen) == 2 * len(chain) + 1 and all(torch.equal(a.float(), b.float()) for a, b in pairs)

    @torch.inference_mode()
    def differs(self) -> float:
        """Return by how much a layer differs from ours at most, each as a copy in float32: a share of its length."""
        return max(self._layer_differs(index) for index in range(len(self._windows)))

    def _layer_differs(self, index: int) -> float:
        layer = self._body.layers[index]
        if any(one.dtype is not torch.float32 for one in layer.parameters()):
            layer = copy.deepcopy(layer).float()
        hidden = torch.randn(
            1, _TRIED, self.config.hidden_size, generator=torch.Generator().manual_seed(index)
        )
        positions = torch.arange(_TRIED)[None]
        with listening(_CausalAttention()):
            theirs = layer(
                hidden,
                attention_mask=None,
                position_ids=positions,
                past_key_values=None,
                position_embeddings=self._body.rotary_emb(hidden, positions),
            )
        weights = DecoderWeights(
            replace(self.config, vocab_size=_TRIED, num_layers=1),
            torch.float32,
            embedding=hidden[0],
            layers=[_parts_of(layer, self._windows[index]).built(self._kernels, called)],
            final_norm=torch.ones(self.config.hidden_size),
            lm_head=_AsItIs(self.config.hidden_size),
            cos_sin=self._table(_TRIED),
        )
        decoder = Decoder(weights, self._kernels)
        rows = np.arange(_TRIED, dtype=np.int32)
        ours = decoder.forward(
            rows, BatchLayout.of_one_text(_TRIED, _BLOCK), decoder.allocate_kv(1, _BLOCK), rows
        )
        theirs = F.rms_norm(theirs[0], (self.config.hidden_size,), eps=self.config.rms_norm_eps)
        return float((ours - theirs).norm() / theirs.norm())

    def _parts(self) -> Iterator[_LayerParts]:
        """Yield the modules of each layer, as they are now."""
        yield from map(_parts_of, self._body.layers, self._windows)

    @torch.inference_mode()
    def _table(self, positions: int) -> torch.Tensor:
        """Cosines, then sines, as `cos_sin_table` has them. Raises ValueError where halves are not rotated."""
        half = self.config.head_dim // 2
        if 4 * positions * 2 * half > MAX_TABLE_BYTES:
            raise ValueError("a table of rotations that is too large")
        sides = self._body.rotary_emb(torch.zeros(1, 1), torch.arange(positions)[None])
        for side in sides:
            if side.shape[-1] != 2 * half or not torch.equal(side[..., :half], side[..., half:]):
                raise ValueError("another rotation than of halves")
        return torch.cat([side[0, :, :half].float() for side in sides], dim=1).contiguous()


def _parts_of(layer: Any, window: int) -> _LayerParts:
    attention, mlp = layer.self_attn, layer.mlp
    return _LayerParts(
        (layer.input_layernorm, layer.post_attention_layernorm),
        _either(attention, ("qkv_proj",), ("q_proj", "k_proj", "v_proj")),
        (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        attention.o_proj,
        _either(mlp, ("gate_up_proj",), ("gate_proj", "up_proj")),
        mlp.down_proj,
        window,
    )


def called(module: Any) -> Linear:
    """Return a linear layer of torch, or one of ours, as one."""
    return module.linear if isinstance(module, OwnLinear) else _Called(module)


class _Called:
    def __init__(self, module: torch.nn.Linear) -> None:
        self._module = module
        self.in_features, self.out_features = module.in_features, module.out_features

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self._module.parameters())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._module.weight, self._module.bias)


class _AsItIs:
    """The identity."""

    nbytes = 0

    def __init__(self, size: int) -> None:
        self.in_features = self.out_features = size

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


class _SideBySide:
    """Several linear layers of the same inputs as one."""

    def __init__(self, linears: Sequence[Linear]) -> None:
        self._linears = linears
        self.in_features = linears[0].in_features
        self.out_features = sum(one.out_features for one in linears)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self._linears)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([one(x) for one in self._linears], dim=1)


def _stacked(linears: Sequence[Linear]) -> Linear:
    """Return one layer over the memory of several."""
    if len(linears) == 1:
        return linears[0]
    packed = [one for one in linears if isinstance(one, PackedLinear)]
    biases = {one.bias is None for one in packed}
    if len(packed) < len(linears) or len(biases) > 1:
        return _SideBySide(linears)
    bias = None if biases == {True} else torch.cat([one.bias for one in packed if one.bias is not None])
    return PackedLinear([part for one in packed for part in one.parts], bias, packed[0].dtype)


class _CausalAttention:
    """Attention over one text by torch, in float32."""

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        asked: AttentionCall,
    ) -> torch.Tensor:
        places = torch.arange(query.shape[2])
        apart = places[:, None] - places
        seen = (apart >= 0) & ((apart < asked.window) if asked.window else True)
        found = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=asked.scale, enable_gqa=True
        )
        return found.transpose(1, 2)


def _either(parent: Any, one: tuple[str, ...], several: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(parent, name) for name in (one if hasattr(parent, one[0]) else several))


def _weight(norm: Any) -> torch.Tensor:
    weight: torch.Tensor = norm.weight.detach().float().contiguous()
    return weight


def _eps(norm: Any) -> float:
    found = getattr(norm, "variance_epsilon", None) or norm.eps
    return float(found)
