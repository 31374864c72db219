"""`Kernels` by the compiled extension. Hands it raw pointers, so shapes are checked here first.

A call costs one to two microseconds: a decode step makes some 150 of them.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch  # must come before the extension, which uses the OpenMP runtime that torch brings

from weighbridge.errors import BadInput
from weighbridge.models.compute.kernels.api import BatchLayout, Int32, KVCache
from weighbridge.models.compute.kernels.pages import reserve
from weighbridge.models.compute.kernels.reference import check_cache_shape

try:
    _native: Any = importlib.import_module("weighbridge.models.compute.kernels._native")
    _problem: str | None = None
except ImportError as error:
    _native, _problem = None, str(error)

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # of activations
_CACHE_DTYPES = {**_DTYPES, torch.int8: 2}
_SCALE_BYTES = 4
PADDING = 16  # values are padded to a full register, see kv_layout.h


def native_import_error() -> str | None:
    """Return why the compiled extension is missing, or None when it is there."""
    return _problem


def seat_threads(seats: list[list[int]]) -> None:
    """Bind the calling thread to the cores `seats[0]`, and thread i of its parallel regions to `seats[i]`."""
    if _native is not None:
        _native.seat_threads(seats)


def supported_isas() -> tuple[str, ...]:
    """Names of the instruction sets that are compiled in and that this machine runs, slowest first."""
    return tuple(_native.supported_isas()) if _native is not None else ()


class NativeKVCache:
    """Chunks of keys and values per (block, layer, head); kv_layout.h draws them."""

    def __init__(
        self, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        check_cache_shape(layers, num_blocks, block_size, kv_heads, head_dim, dtype)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self._padded = -(-head_dim // PADDING) * PADDING
        self._part = (head_dim + self._padded) * block_size
        chunk = self._part + (2 * _SCALE_BYTES * block_size if dtype == torch.int8 else 0)
        self._memory = _reserve(layers * num_blocks * kv_heads * chunk, dtype)
        self._memory = self._memory.view(num_blocks, layers, kv_heads, chunk)
        self.pool = _native.KvPool(
            self._memory.data_ptr(),
            self._memory.nbytes,
            layers,
            num_blocks,
            block_size,
            kv_heads,
            head_dim,
            _CACHE_DTYPES[dtype],
        )

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def activations(self, qkv: torch.Tensor) -> tuple[int, ...]:
        """The type of activations, for the kernels: nothing where it is the cache's own."""
        return () if qkv.dtype is self.dtype else (_dtype(qkv),)

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block in every layer. Raises IndexError for a block that does not exist."""
        self.pool.copy_block(source, target)

    def read(self, layer: int, slots: Int32) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at `slots` as [tokens, kv heads, head dim]."""
        pair = 2 if self.dtype == torch.bfloat16 else 1
        size, dim = self.block_size, self.head_dim
        chunks = self._memory[:, layer]
        keys, values = chunks[..., : dim * size], chunks[..., dim * size : self._part]
        blocks, heads = chunks.shape[:2]
        keys = keys.view(blocks, heads, dim // pair, size, pair).permute(0, 3, 1, 2, 4)
        values = values.view(blocks, heads, size // pair, self._padded, pair).permute(0, 2, 4, 1, 3)
        block, offset = (torch.from_numpy(part.astype(np.int64)) for part in np.divmod(slots, size))
        found = keys[block, offset].flatten(2), values[block, offset // pair, offset % pair][..., :dim]
        if self.dtype != torch.int8:
            return found
        scales = chunks[..., self._part :].contiguous().view(torch.float32).view(blocks, heads, 2, size)
        key_scales, value_scales = scales.permute(2, 0, 3, 1)[:, block, offset, :, None]
        return found[0] * key_scales, found[1] * value_scales

    def fill(self, value: float) -> None:
        """Overwrite everything, unused slots and padding included (tests)."""
        whole = self._memory if self.dtype != torch.int8 else self._memory.view(torch.float32)
        whole.fill_(value)


class NativeKernels:
    """The compiled kernels for one instruction set, chosen once per process (see `load_kernels`)."""

    def __init__(self) -> None:
        if _native is None:
            raise BadInput(f"the compiled kernels cannot be imported ({_problem}); use ReferenceKernels")
        try:
            self.name: str = _native.active_isa()
        except ValueError as error:
            raise BadInput(str(error), param="WEIGHBRIDGE_KERNELS") from error

    def allocate_kv(
        self, layers: int, num_blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KVCache:
        return NativeKVCache(layers, num_blocks, block_size, kv_heads, head_dim, dtype)

    def rms_norm(self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
        rows, width = x.shape
        _check("rms_norm", out.shape == x.shape and weight.numel() == width, out, x, weight)
        _native.norm(
            out.data_ptr(),
            _dtype(out),
            _float32(x),
            0,
            _float32(weight),
            rows,
            width,
            eps,
            torch.get_num_threads(),
        )

    def add_rms_norm(
        self, out: torch.Tensor, residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> None:
        shape = residual.shape
        rows, width = shape
        matches = out.shape == shape and x.shape == shape and out.dtype is x.dtype and weight.numel() == width
        _check("add_rms_norm", matches, out, residual, x, weight)
        _native.norm(
            out.data_ptr(),
            _dtype(out),
            _float32(residual),
            x.data_ptr(),
            _float32(weight),
            rows,
            width,
            eps,
            torch.get_num_threads(),
        )

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
        tokens, width = qkv.shape
        dim = own.head_dim
        fits = width == (num_heads + 2 * own.kv_heads) * dim
        if cos_sin is not None:
            fits = fits and cos_sin.shape[1] == dim and cos_sin.is_contiguous()
        _check("rope_and_write", fits, qkv)
        _native.rope_and_write(
            qkv.data_ptr(),
            tokens,
            own.pool,
            layer,
            layout.positions,
            layout.slots,
            0 if cos_sin is None else _float32(cos_sin),
            0 if cos_sin is None else cos_sin.shape[0],
            num_heads,
            0 if q_norm is None else _head_norm(q_norm, dim),
            0 if k_norm is None else _head_norm(k_norm, dim),
            eps,
            torch.get_num_threads(),
            *own.activations(qkv),
        )

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
        tokens, width = qkv.shape
        fits = width == (num_heads + 2 * own.kv_heads) * own.head_dim and num_heads % own.kv_heads == 0
        _check(
            "paged_attention",
            fits and qkv.dtype is out.dtype and out.shape == (tokens, num_heads * own.head_dim),
            out,
            qkv,
        )
        _native.paged_attention(
            out.data_ptr(),
            qkv.data_ptr(),
            tokens,
            own.pool,
            layer,
            layout.query_starts,
            layout.context_lens,
            layout.block_tables,
            num_heads,
            scale,
            window,
            softcap,
            0 if sinks is None else _head_values(sinks, num_heads),
            torch.get_num_threads(),
            *own.activations(qkv),
        )

    def silu_mul(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        rows, width = out.shape
        _check("silu_mul", gate_up.shape == (rows, 2 * width) and gate_up.dtype is out.dtype, out, gate_up)
        _native.silu_mul(
            out.data_ptr(), gate_up.data_ptr(), _dtype(out), rows, width, torch.get_num_threads()
        )

    def gelu_mul(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        rows, width = out.shape
        _check("gelu_mul", gate_up.shape == (rows, 2 * width) and gate_up.dtype is out.dtype, out, gate_up)
        gate, up = gate_up.float().chunk(2, dim=-1)
        out.copy_(torch.nn.functional.gelu(gate, approximate="tanh").mul_(up))

    def gather_rows(self, out: torch.Tensor, table: torch.Tensor, rows: Int32) -> None:
        width = table.shape[1]
        _check("gather_rows", out.shape == (len(rows), width), out, table)
        _native.gather_rows(
            out.data_ptr(),
            _dtype(out),
            table.data_ptr(),
            _dtype(table),
            table.shape[0],
            rows,
            width,
            torch.get_num_threads(),
        )

    def argmax(self, logits: torch.Tensor) -> Int32:
        rows, width = logits.shape
        _check("argmax", width > 0, logits)
        best = np.empty(rows, dtype=np.int32)
        _native.argmax(best, logits.data_ptr(), _dtype(logits), width, torch.get_num_threads())
        return best


def _reserve(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory of the KV cache. Blocks are read in no order: huge pages read a sixth faster."""
    nbytes = elements * dtype.itemsize
    try:
        return reserve(nbytes).view(dtype)
    except OSError as error:
        raise BadInput(
            f"cannot reserve {nbytes / 2**30:.1f} GiB for the KV cache ({error}); ask for fewer blocks"
        ) from error


def _own(cache: KVCache) -> NativeKVCache:
    if not isinstance(cache, NativeKVCache):
        raise ValueError(f"NativeKernels cannot use a {type(cache).__name__}; allocate it with allocate_kv")
    return cache


def _check(kernel: str, matches: bool, *tensors: torch.Tensor) -> None:
    """Raise ValueError unless the shapes match and each tensor is contiguous."""
    if matches:
        for tensor in tensors:
            if not tensor.is_contiguous():
                break
        else:
            return
    actual = ", ".join(f"{str(t.dtype)[6:]}{list(t.shape)} strides {list(t.stride())}" for t in tensors)
    raise ValueError(f"{kernel}: these tensors do not fit together, or one is not contiguous: {actual}")


def _dtype(tensor: torch.Tensor) -> int:
    code = _DTYPES.get(tensor.dtype)
    if code is None:
        raise ValueError(f"the kernels compute in float32 or bfloat16, not {tensor.dtype}")
    return code


def _float32(tensor: torch.Tensor) -> int:
    if tensor.dtype is not torch.float32:
        raise ValueError(f"this operand must be float32, not {tensor.dtype}")
    return tensor.data_ptr()


def _head_values(values: torch.Tensor, heads: int) -> int:
    if values.shape != (heads,) or not values.is_contiguous():
        raise ValueError(
            f"attention has {heads} heads, and a sink is one number of each, not {list(values.shape)}"
        )
    return _float32(values)


def _head_norm(weight: torch.Tensor, head_dim: int) -> int:
    if weight.numel() != head_dim or not weight.is_contiguous():
        raise ValueError(f"a head norm needs {head_dim} contiguous weights, got {list(weight.shape)}")
    return _float32(weight)
