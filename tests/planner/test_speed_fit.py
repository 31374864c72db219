"""The fit of efficiencies: what it predicts is the planner's own step cost, and it holds for what was left out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.evidence.speed_cases import SpeedCase, read_speed_cases
from benchmarks.evidence.speed_fit import Fitted, Table, errors, fit, held_out

from weighbridge.cost.hardware import find_device
from weighbridge.cost.roofline import at_data_sheet, efficiency_of, expert_use, roofline
from weighbridge.planner.memory.memory import plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.search.speed import demand, time_per_token

_DATA = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
_TABLE = _DATA / "simulator" / "silicon_ttft_tpot.csv"

DEPLOYMENTS = [
    ("llama-3.1-8b", "H100-80GB", {}),
    ("llama-3.1-70b", "B200-180GB", {"tp": 4, "weights": "nvfp4"}),
    ("gpt-oss-120b", "H200-141GB", {"tp": 2, "weights": "mxfp4"}),
    ("deepseek-v3", "B200-180GB", {"dp": 8, "ep": 8, "weights": "fp8"}),
    ("glm-5", "B300-288GB", {"tp": 8, "weights": "fp8"}),
]


def case(model: str, device: str, flags: dict[str, object], engine: str, batch: int) -> SpeedCase:
    where = find_device(device)
    deployment = Deployment(max_model_len=16_384, **flags)  # type: ignore[arg-type]
    asked = demand(plan_memory(open_model(model), deployment, where))
    experts = expert_use(asked).touched(batch, batch) if asked.experts else 0.0
    return SpeedCase(
        model=model,
        device=device,
        engine=engine,
        version="",
        deployment=deployment,
        batch=batch,
        prompt=1000,
        output=200,
        tpot=0.01,
        ttft=None,
        peak=at_data_sheet(where, asked),
        experts=experts,
        architecture=where.architecture,
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(("model", "device", "flags"), DEPLOYMENTS)
def test_arrays_predict_what_the_planner_says(
    model: str, device: str, flags: dict[str, object], engine: str
) -> None:
    cases = [case(model, device, flags, engine, batch) for batch in (1, 16, 128)]
    predicted = Table(cases).predict(Fitted.shipped())
    where = find_device(device)
    asked = demand(plan_memory(open_model(model), cases[0].deployment, where))
    efficiency = efficiency_of(where, engine)
    decode, prefill = (roofline(where, asked, share, efficiency) for share in (1.0, 0.0))
    for one, found in zip(cases, predicted, strict=True):
        expected = time_per_token(decode, prefill, one.batch, one.prompt, one.output)
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_fit_finds_the_machine_that_was_measured() -> None:
    truth = replace(Fitted.guess(), base=replace(Fitted.guess().base, bandwidth=0.5, layer_seconds=60e-6))
    cases = [case(*where, "vllm", batch) for where in DEPLOYMENTS for batch in (1, 4, 16, 64)]
    measured = Table(cases).predict(truth)
    cases = [replace(one, tpot=float(tpot)) for one, tpot in zip(cases, measured, strict=True)]
    before = errors(Table(cases).predict(Fitted.guess()), measured)
    after = errors(Table(cases).predict(fit(cases)), measured)
    assert np.abs(after).mean() < 0.05 < np.abs(before).mean()


@pytest.mark.skipif(not _TABLE.exists(), reason=f"needs {_TABLE} (WEIGHBRIDGE_DATA)")
def test_models_and_gpus_that_were_left_out() -> None:
    cases = [one for one in read_speed_cases(_TABLE) if one.possible]
    assert len(cases) > 1900
    measured = np.array([one.tpot for one in cases])
    predicted = held_out(cases, lambda one: one.group, Fitted.guess())
    assert np.abs(errors(predicted, measured)).mean() <= 0.15
    shipped = errors(Table(cases).predict(Fitted.shipped()), measured)
    assert np.abs(shipped).mean() <= 0.13
