"""Tensors as the compiled kernels take them: an address and a size in bytes, which they check again."""

from __future__ import annotations

import torch


def memory_of(tensor: torch.Tensor | None, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Return the address and bytes of `tensor`, (0, 0) for None. The caller keeps it alive.

    Raises ValueError for a tensor that is not contiguous, or not of `dtype` where one is given.
    """
    if tensor is None:
        return 0, 0
    if not tensor.is_contiguous() or (dtype is not None and tensor.dtype is not dtype):
        wanted = "a contiguous tensor" if dtype is None else f"a contiguous tensor of {dtype}"
        raise ValueError(f"expected {wanted}, got {tensor.dtype} with strides {tensor.stride()}")
    return tensor.data_ptr(), tensor.nbytes
