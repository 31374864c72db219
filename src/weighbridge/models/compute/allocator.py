"""What the C library keeps of free memory: that of activations, and not what loading and preparing left."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_THRESHOLD = 256 << 20


def tune_allocator() -> bool:
    """Serve allocations up to 256 MiB from the heap and keep the heap: no page faults for each layer's output.

    Call it once everything is loaded: what loading left free goes back to the system first. True when the C
    library is glibc and took it; elsewhere nothing happens.
    """
    if not give_back():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        # One arena: the engine's thread would get one of its own, in heaps of 64 MiB that come and go.
        mallopt(_M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, 2 * _THRESHOLD))


def give_back() -> bool:
    """Give what is free back to the system. True when the C library is glibc; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True
