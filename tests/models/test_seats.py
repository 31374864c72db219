"""Compute threads keep to cores of their own; every other thread stays free."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.models.compute.kernels.native_kernels import NativeKernels, native_import_error
from weighbridge.models.compute.kernels.seats import seat_compute_threads, seats


@given(cores=st.sets(st.integers(0, 300), min_size=1), threads=st.integers(1, 64))
def test_every_core_is_given_out_once(cores: set[int], threads: int) -> None:
    given_out = seats(sorted(cores), threads)
    if threads > len(cores):
        assert given_out == []
        return
    assert len(given_out) == threads
    assert all(given_out)
    assert sorted(core for seat in given_out for core in seat) == sorted(cores)
    assert max(map(len, given_out)) - min(map(len, given_out)) <= 1


@pytest.mark.skipif(native_import_error() is not None, reason="the kernels are not compiled here")
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be bound here")
def test_the_engine_thread_and_its_workers_sit_apart_and_nobody_else_is_bound() -> None:
    allowed = os.sched_getaffinity(0)
    threads = torch.get_num_threads()
    if not 2 <= threads <= len(allowed):
        pytest.skip("needs two compute threads and as many cores")
    before = set(_tasks())
    found: dict[int, frozenset[int]] = {}

    def compute() -> None:
        seat_compute_threads()
        NativeKernels().silu_mul(torch.empty(64, 2048), torch.ones(64, 4096))  # large enough for all threads
        found.update({task: frozenset(os.sched_getaffinity(task)) for task in set(_tasks()) - before})

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join(30)
    assert sorted(map(sorted, found.values())) == sorted(seats(sorted(allowed), threads))
    assert os.sched_getaffinity(0) == allowed


def _tasks() -> list[int]:
    return [int(task) for task in os.listdir("/proc/self/task")]
