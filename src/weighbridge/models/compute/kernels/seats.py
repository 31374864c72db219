"""Cores that compute threads keep to, so that two which wait for each other never share one.

One millisecond of other work for each token (the server's own thread, a client on the same machine) pushed the two
threads of a step together for 12 ms, in a quarter of the steps; with seats it costs that millisecond.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from weighbridge.models.compute.kernels.native_kernels import seat_threads


def seats(cores: Sequence[int], threads: int) -> list[list[int]]:
    """Every `threads`-th core for each thread: all cores are given out, none twice.

    Empty when there are more threads than cores: then the system had better move them.
    """
    return [list(cores[first::threads]) for first in range(threads)] if threads <= len(cores) else []


def seat_compute_threads() -> None:
    """For the calling thread and those that compute with it: one thread for each, and no more than it may use.

    Call it on the thread that will run the model, never on one that starts threads for something else: they inherit
    its place. Does nothing without the compiled kernels, on one core, or where threads cannot be bound.
    """
    if hasattr(os, "sched_getaffinity"):
        seat_threads(seats(sorted(os.sched_getaffinity(0)), torch.get_num_threads()))
