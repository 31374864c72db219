"""What computes: our C++ kernels for this CPU, or the same in torch where they were not built."""

from __future__ import annotations

import functools
import logging
import os

from weighbridge.errors import BadInput
from weighbridge.models.compute.kernels.api import BatchLayout, Kernels, KVCache
from weighbridge.models.compute.kernels.native_kernels import NativeKernels, native_import_error
from weighbridge.models.compute.kernels.reference import ReferenceKernels

__all__ = ["BatchLayout", "KVCache", "Kernels", "NativeKernels", "ReferenceKernels", "load_kernels"]

logger = logging.getLogger(__name__)


def load_kernels() -> Kernels:
    """Return the fastest kernels that run here, or the ones named by the environment variable WEIGHBRIDGE_KERNELS.

    Its values: portable, avx2, avx512, avx512_bf16, neon, reference. Read once per process.
    Raises BadInput when the variable names kernels that this machine or this installation does not have.
    """
    name = os.environ.get("WEIGHBRIDGE_KERNELS", "")
    if name == "reference":
        return ReferenceKernels()
    problem = native_import_error()
    if problem is None:
        return NativeKernels()
    if name:
        raise BadInput(
            f"WEIGHBRIDGE_KERNELS={name} needs the compiled kernels, which cannot be imported ({problem}). "
            "Install a C++ compiler and reinstall weighbridge, or leave the variable out.",
            param="WEIGHBRIDGE_KERNELS",
        )
    _warn_about_reference(problem)
    return ReferenceKernels()


@functools.cache
def _warn_about_reference(problem: str) -> None:
    logger.warning(
        "Using the torch reference kernels, several times slower than the compiled ones, because those "
        "cannot be imported (%s). To get them, install a C++ compiler (g++ or clang with OpenMP) and "
        "reinstall weighbridge.",
        problem,
    )
