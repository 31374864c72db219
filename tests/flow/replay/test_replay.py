"""Workloads replayed in virtual time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from weighbridge.errors import BadInput
from weighbridge.flow.replay.replay import ReplaySettings, replay
from weighbridge.flow.replay.virtual_time import run_virtual
from weighbridge.flow.replay.workload import RecordedCall, RecordedTask, read_workload


def chain(
    task: int, accuracy: float, usd: float, tool_seconds: float = 1.0, think: float = 3.0
) -> RecordedTask:
    """A model that thinks and a tool that answers, four times, and a write."""
    calls: list[RecordedCall] = []
    for turn in range(4):
        after = (calls[-1].id,) if calls else ()
        calls.append(
            RecordedCall(f"think{turn}", after, think, "pure", usd, accuracy, f"call {turn}", name="think")
        )
        calls.append(
            RecordedCall(
                f"tool{turn}", (f"think{turn}",), tool_seconds, "read", 0.0, output=turn, name="tool"
            )
        )
    calls.append(RecordedCall("answer", (calls[-1].id,), think, "pure", usd, output="answer"))
    calls.append(RecordedCall("send", ("answer",), 0.5, "write", 0.0, output="sent"))
    return RecordedTask(str(task), tuple(calls))


def mean(tasks: list[RecordedTask], mode: Any) -> dict[str, Any]:
    sequential = replay(tasks, ReplaySettings("sequential"))
    report = replay(tasks, ReplaySettings(mode)).report(sequential)
    assert report["writes"] == len(tasks)
    return report


def test_good_predictions_pay_and_lies_cost_nothing() -> None:
    tasks = [chain(n, 0.8, 0.0005) for n in range(40)]
    parallel, speculate = mean(tasks, "parallel"), mean(tasks, "speculate")
    oracle, liar = mean(tasks, "oracle"), mean(tasks, "liar")
    assert (
        oracle["makespan_s"]["mean"] < speculate["makespan_s"]["mean"] < 0.75 * parallel["makespan_s"]["mean"]
    )
    assert liar["makespan_s"]["mean"] <= 1.03 * parallel["makespan_s"]["mean"]
    assert liar["wasted_share"] < 0.05


def test_the_gate_declines_at_the_ratio_of_gaia() -> None:
    """Tools take 10 % of the time and 12 % of predictions hit; each model call costs two cents."""
    report = mean([chain(n, 0.12, 0.02, 1.7, 15.3) for n in range(40)], "speculate")
    assert report["bets"]["won"] + report["bets"]["lost"] <= 1
    assert report["bets"]["declined"] >= 4 * 39
    assert report["wasted_share"] < 0.01


def test_bad_workloads_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    for text, message in (
        ('{"id": "1"}', "line 1: Object missing required field `steps`"),
        ('{"id": "1", "steps": [{"id": "a", "after": ["b"]}]}', "`after` names 'b'"),
        ('{"id": "1", "steps": [{"id": "a", "effect": "x"}]}', "line 1: Invalid enum value 'x'"),
        ("", "has no tasks"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            read_workload(path)


def test_real_time_and_virtual_time_agree() -> None:
    tasks = [
        RecordedTask(
            "1", (RecordedCall("a", (), 0.1, output=1), RecordedCall("b", ("a",), 0.1, "read", output=2))
        )
    ]
    virtual = replay(tasks, ReplaySettings("parallel")).makespans[0]
    real = replay(tasks, ReplaySettings("parallel", real_time=True)).makespans[0]
    assert virtual == pytest.approx(0.2)
    assert virtual - 0.01 <= real < virtual + 3.0


def test_virtual_runs_need_no_time() -> None:
    began = time.perf_counter()
    run_virtual(asyncio.sleep(1e6))
    assert time.perf_counter() - began < 5.0
