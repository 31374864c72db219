"""Memory that is free again goes back to the system.

A gateway holds bodies and answers of megabytes for a moment, from several threads. The C library keeps what is freed
between things that stay, and learns from blocks of megabytes to keep those as well: after some minutes of long prompts
half of a gateway's memory was free and not given back.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds between two looks.
EVERY_S = 10.0
#: Bytes that may be kept for what comes next.
KEPT_FREE = 16 << 20
#: From so many bytes on a block is the system's, which has it back at once; else the library learns another number.
OWN_BLOCK = 1 << 20
_M_MMAP_THRESHOLD = -3


class _Told(ctypes.Structure):
    """`struct mallinfo2`."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


class Heap:
    """The C library's memory; where that is not glibc, nothing happens."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._library = library if hasattr(library, "mallinfo2") and hasattr(library, "malloc_trim") else None
        if self._library is not None:
            self._library.mallinfo2.restype = _Told

    @property
    def free(self) -> int:
        """Bytes that are free and kept."""
        return int(self._library.mallinfo2().fordblks) if self._library is not None else 0

    def settle(self) -> None:
        """Have blocks of `OWN_BLOCK` bytes given back whenever they are freed."""
        if self._library is not None:
            self._library.mallopt(_M_MMAP_THRESHOLD, OWN_BLOCK)

    def give_back(self) -> bool:
        """Give back what is free where that is more than `KEPT_FREE`; whether it was."""
        if self._library is None or self.free <= KEPT_FREE:
            return False
        self._library.malloc_trim(0)
        return True


@contextmanager
def given_back(every_s: float = EVERY_S) -> Iterator[None]:
    """Give back what is free, now and then and on a thread of its own, while the block lasts."""
    heap, ended = Heap(), threading.Event()
    heap.settle()

    def look() -> None:
        while not ended.wait(every_s):
            heap.give_back()

    thread = threading.Thread(target=look, name="heap", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
