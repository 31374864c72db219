"""Runs in processes of their own: the same results in the same order, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace

import pytest

from weighbridge.errors import BadInput
from weighbridge.simulator.experiment import Experiment, SyntheticSource
from weighbridge.simulator.fleet import SimulatedEngine, SimulatedFleet, SimulatedReplicaSpec
from weighbridge.simulator.side_by_side import mapping
from weighbridge.workload.synthetic import Synthetic

SETTINGS = SimulatedEngine(kv_tokens=65_536, max_model_len=8192).settings()


def test_processes_change_nothing() -> None:
    fleet = SimulatedFleet(replicas=(SimulatedReplicaSpec(settings=SETTINGS),) * 2)
    source = SyntheticSource(Synthetic.parse("bursts:rate=5,requests=40"))
    heard: list[tuple[int, int]] = []
    alone = Experiment(fleet=fleet, source=source, seeds=(0, 3))
    fleets = {"weigh": fleet, "blind": replace(fleet, policy="round_robin")}
    with mapping(2) as mapper:
        beside = replace(alone, mapper=mapper, report=lambda done, total: heard.append((done, total)))
        assert beside.compare(fleets) == alone.compare(fleets)
        assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert beside.sweep([1.0, 8.0]) == alone.sweep([1.0, 8.0])


def test_a_mistake_in_a_process_is_told_as_in_ours() -> None:
    with mapping(2) as mapper, pytest.raises(BadInput, match="--rate") as caught:
        list(mapper(_mistaken, [0, 1]))
    assert caught.value.param == "rate"


def test_leaving_early_ends_the_processes() -> None:
    others = set(multiprocessing.active_children())
    working: set[multiprocessing.process.BaseProcess] = set()

    def interrupted() -> None:
        with mapping(2) as mapper:
            mapper(time.sleep, [600.0] * 3)
            working.update(set(multiprocessing.active_children()) - others)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(working) == 2
    until = time.monotonic() + 60.0
    while any(_there(process.pid) for process in working) and time.monotonic() < until:
        multiprocessing.active_children()  # takes the dead ones away
        time.sleep(0.05)
    assert not any(_there(process.pid) for process in working)


def _there(pid: int | None) -> bool:
    """Asked of the system: the pool's thread may have waited for the process before its own object could."""
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _mistaken(number: int) -> None:
    raise BadInput(f"--rate {number} is wrong", param="rate")
