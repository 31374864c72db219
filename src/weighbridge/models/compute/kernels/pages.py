"""Memory in huge pages, for the KV cache and for weights."""

from __future__ import annotations

import contextlib
import mmap
import threading

import torch

_PIECE_BYTES = 64 << 20
_ALIGNMENT = 64


def reserve(nbytes: int) -> torch.Tensor:
    """Return bytes that come into being where they are first written, in huge pages where the system has them.

    With small pages much of the time of reading goes into address translation, and the hardware stops reading ahead at
    the end of each. Raises OSError where the system has no room.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(nbytes, dtype=torch.uint8)
    return torch.frombuffer(_pages(nbytes), dtype=torch.uint8)


def _pages(nbytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class WeightMemory:
    """Memory for the matrices of a model, side by side in large pieces: one alone rarely fills its huge pages.

    A piece is given back once nothing of it is in use. What was not written of it takes no memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: mmap.mmap | None = None
        self._used = 0

    def take(self, nbytes: int) -> torch.Tensor:
        """Return `nbytes` bytes, aligned to 64. Raises OSError where the system has no room."""
        if not hasattr(mmap, "MAP_PRIVATE") or nbytes == 0:
            return torch.empty(nbytes, dtype=torch.uint8)
        with self._lock:
            if self._pages is None or self._used + nbytes > len(self._pages):
                self._pages, self._used = _pages(max(_PIECE_BYTES, nbytes)), 0
            taken = torch.frombuffer(self._pages, dtype=torch.uint8, count=nbytes, offset=self._used)
            self._used = -(-(self._used + nbytes) // _ALIGNMENT) * _ALIGNMENT
            return taken


#: Of the whole process.
weight_memory = WeightMemory()
