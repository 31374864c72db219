"""The kernels in plain torch: the meaning of every kernel, and the fallback without a C++ compiler."""

from __future__ import annotations

import numpy as np
import torch

from weighbridge.errors import BadInput, UnsupportedModel
from weighbridge.models.compute.kernels.api import BatchLayout, Int32, KVCache
from weighbridge.models.files.config import MAX_HEAD_DIM

BLOCK_SIZES = (16, 32, 64)
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
LARGEST_CODE = 127  # of int8
QUERY_ROWS_AT_A_TIME = 256  # bounds the score matrix of a long prompt


def check_cache_shape(
    layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Raise BadInput or UnsupportedModel for a KV cache that no kernels of ours can hold."""
    if block_size not in BLOCK_SIZES:
        raise BadInput(
            f"KV block size {block_size} is not supported; choose one of {BLOCK_SIZES}", param="block_size"
        )
    if min(layers, num_blocks, kv_heads) < 1:
        raise BadInput(
            f"a KV cache needs at least one layer, block and head, got {layers}, {num_blocks}, {kv_heads}"
        )
    if head_dim < 2 or head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise UnsupportedModel(
            f"head_dim {head_dim} is not supported: it must be even and at most {MAX_HEAD_DIM}"
        )
    if dtype not in CACHE_DTYPES:
        message = f"a KV cache in {dtype} is not supported; use float32, bfloat16 or int8"
        raise BadInput(message, param="kv_dtype")


def _long(values: Int32) -> torch.Tensor:
    return torch.from_numpy(values).long()


class _Pool:
    """Keys or values as [layers, blocks, block size, kv heads, head dim], in int8 with a scale for each head."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.elements = torch.empty(shape, dtype=dtype)
        self.scales = torch.empty(shape[:-1]) if dtype == torch.int8 else None

    @property
    def nbytes(self) -> int:
        return self.elements.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def copy_block(self, source: int, target: int) -> None:
        self.elements[:, target] = self.elements[:, source]
        if self.scales is not None:
            self.scales[:, target] = self.scales[:, source]

    def read(self, layer: int, slots: Int32) -> torch.Tensor:
        elements = self.elements[layer].flatten(0, 1)[_long(slots)]
        if self.scales is None:
            return elements
        return elements * self.scales[layer].flatten(0, 1)[_long(slots)][..., None]

    def write(self, layer: int, slots: Int32, heads: torch.Tensor) -> None:
        """heads [tokens, kv heads, head dim]."""
        at = _long(slots)
        if self.scales is None:
            self.elements[layer].flatten(0, 1)[at] = heads.to(self.elements.dtype)
            return
        codes, scales = round_to_int8(heads.float())
        self.elements[layer].flatten(0, 1)[at] = codes
        self.scales[layer].flatten(0, 1)[at] = scales


def round_to_int8(heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes of -127 to 127 and the scale of each head; one that is not finite has no finite scale."""
    largest = heads.abs().amax(-1) + (heads * 0).sum(-1)
    inverse = torch.where(largest > 0, LARGEST_CODE / largest, torch.zeros_like(largest))
    codes = (heads * inverse[..., None]).round().nan_to_num(0).to(torch.int8)
    return codes, largest / LARGEST_CODE


class ReferenceKVCache:
    """Keys and values of all layers."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.keys, self.values = _Pool(shape, dtype), _Pool(shape, dtype)
        self.num_blocks, self.block_size, self.kv_heads, self.head_dim = shape[1:]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in every layer."""
        self.keys.copy_block(source, target)
        self.values.copy_block(source, target)

    def read(self, layer: int, slots: Int32) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `slots` as [tokens, kv heads, head dim]."""
        return self.keys.read(layer, slots), self.values.read(layer, slots)


def _own(cache: KVCache) -> ReferenceKVCache:
    if not isinstance(cache, ReferenceKVCache):
        raise ValueError(
            f"ReferenceKernels cannot use a {type(cache).__name__}; allocate it with allocate_kv"
        )
    return cache


def _normalised(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rotated(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """x [tokens, heads, head_dim], cos_sin [tokens, head_dim]."""
    cos, sin = cos_sin[:, None, :].chunk(2, dim=-1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class ReferenceKernels:
    """`Kernels` in torch operations, in float32 inside and rounded once at the end."""

    name = "reference"

    def allocate_kv(
        self, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KVCache:
        """Reserves memory only: the operating system provides a page when a token is first written to it."""
        check_cache_shape(layers, num_blocks, block_size, kv_heads, head_dim, dtype)
        return ReferenceKVCache((layers, num_blocks, block_size, kv_heads, head_dim), dtype)

    def rms_norm(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
        out.copy_(_normalised(x, weight, eps))

    def add_rms_norm(
        self, out: torch.Tensor, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> None:
        residual.add_(x)
        out.copy_(_normalised(residual, weight, eps))

    def rope_and_write(
        self,
        qkv: torch.Tensor,
        cache: KVCache,
        layer: int,
        layout: BatchLayout,
        cos_sin: torch.Tensor | None,
        num_heads: int,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> None:
        own = _own(cache)
        kv_heads, head_dim = own.kv_heads, own.head_dim
        heads = qkv.view(qkv.shape[0], num_heads + 2 * kv_heads, head_dim)
        query, key = heads[:, :num_heads], heads[:, num_heads : num_heads + kv_heads]
        new_query, new_key = query.float(), key.float()
        if q_norm is not None:
            new_query = _normalised(new_query, q_norm, eps)
        if k_norm is not None:
            new_key = _normalised(new_key, k_norm, eps)
        if cos_sin is not None:
            at_positions = cos_sin[_long(layout.positions)]
            new_query, new_key = _rotated(new_query, at_positions), _rotated(new_key, at_positions)
        query.copy_(new_query)
        own.keys.write(layer, layout.slots, new_key)
        own.values.write(layer, layout.slots, heads[:, num_heads + kv_heads :])

    def paged_attention(
        self,
        out: torch.Tensor,
        qkv: torch.Tensor,
        cache: KVCache,
        layer: int,
        layout: BatchLayout,
        num_heads: int,
        scale: float,
        window: int,
        softcap: float = 0.0,
        sinks: torch.Tensor | None = None,
    ) -> None:
        own = _own(cache)
        head_dim, size = own.head_dim, own.block_size
        for s, context in enumerate(layout.context_lens.tolist()):
            begin, end = int(layout.query_starts[s]), int(layout.query_starts[s + 1])
            at = np.arange(context)
            slots = layout.block_tables[s, at // size] * size + at % size
            keys, values = (part.float().transpose(0, 1) for part in own.read(layer, slots.astype(np.int32)))
            for first in range(begin, end, QUERY_ROWS_AT_A_TIME):
                last = min(end, first + QUERY_ROWS_AT_A_TIME)
                query = (
                    qkv[first:last, : num_heads * head_dim].float().view(last - first, num_heads, head_dim)
                )
                position = context - end + first
                attended = _attend(
                    query.transpose(0, 1), keys, values, position, scale, window, softcap, sinks
                )
                out[first:last] = attended.transpose(0, 1).flatten(1).to(out.dtype)

    def silu_mul(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        gate, up = gate_up.float().chunk(2, dim=-1)
        out.copy_(torch.nn.functional.silu(gate) * up)

    def gelu_mul(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        gate, up = gate_up.float().chunk(2, dim=-1)
        out.copy_(torch.nn.functional.gelu(gate, approximate="tanh") * up)

    def gather_rows(self, out: torch.Tensor, table: torch.Tensor, rows: Int32) -> None:
        out.copy_(table[_long(rows)])

    def argmax(self, logits: torch.Tensor) -> Int32:
        best: Int32 = np.argmax(logits.float().numpy(), axis=-1).astype(np.int32)
        return best  # numpy's, because torch's need not be the first of equals


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query [heads, rows, dim], its first row at `position`; keys and values [kv heads, context, dim]."""
    heads, rows, dim = query.shape
    kv_heads, context, _ = keys.shape
    grouped = query.reshape(kv_heads, heads // kv_heads * rows, dim)
    scores = (grouped @ keys.transpose(1, 2) * scale).view(heads, rows, context)
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    ahead = torch.arange(context)[None, :] - torch.arange(position, position + rows)[:, None]
    hidden = ahead > 0
    if window > 0:
        hidden |= ahead <= -window
    scores.masked_fill_(hidden, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(heads, 1, 1).expand(heads, rows, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., :context].reshape(kv_heads, -1, context)
    return (weights @ values).view(heads, rows, dim)
