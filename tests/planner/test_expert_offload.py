"""Flags of `moe offload` fit whatever the sizes of a file's tensors are, and leave no room for one layer more."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.models.tiny_moe import make_tiny_moe
from tests.planner.test_experts import MIXTRAL, QWEN3_30B
from tests.tiny_moe_gguf import write_moe_gguf
from weighbridge.cli.app import app
from weighbridge.errors import BadInput
from weighbridge.models.files.gguf_format import read_gguf
from weighbridge.planner.experts.layout import Parameters
from weighbridge.planner.experts.offload import (
    MixtureBytes,
    OffloadMachine,
    engine_flags,
    keep_hottest,
    keep_last_layers,
)
from weighbridge.planner.memory.memory import GIB, PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.model.config_reader import read_architecture


def offload(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["moe", "offload", *arguments, "--json"])
    if result.exception is not None:
        raise result.exception
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@st.composite
def cases(draw: st.DrawFn) -> tuple[Parameters, MixtureBytes, np.ndarray | None, OffloadMachine]:
    layers, experts = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    sparse = tuple(sorted(draw(st.sets(st.integers(0, 20), min_size=layers, max_size=layers))))
    each = np.array(draw(st.lists(st.integers(1, 50), min_size=layers, max_size=layers)), np.float64)
    looked_up = draw(st.integers(0, 100))
    resident, reserved = float(looked_up + draw(st.integers(0, 200))), float(draw(st.integers(0, 100)))
    memory = resident + reserved + draw(st.floats(0.0, 1.3)) * float(each.sum()) * experts
    heat = None
    if draw(st.booleans()):
        cells = draw(st.lists(st.integers(1, 100), min_size=layers * experts, max_size=layers * experts))
        heat = np.array(cells, np.float64).reshape(layers, experts)
    parameters = Parameters(1000, 0, 10, experts, 1, sparse)
    machine = OffloadMachine(max(memory, 1.0), 1e12, 6e10, reserved_bytes=reserved)
    return parameters, MixtureBytes(each, resident, float(looked_up)), heat, machine


@given(cases())
def test_what_the_flags_leave_on_the_device_fits(
    case: tuple[Parameters, MixtureBytes, np.ndarray | None, OffloadMachine],
) -> None:
    parameters, sizes, heat, machine = case
    split = keep_hottest(parameters, sizes, heat, machine)
    room = machine.fast_bytes - machine.reserved_bytes - sizes.resident
    taken = float((split.kept * sizes.experts[:, None]).sum())
    assert taken <= room + 1e-9
    left = sizes.experts[~split.kept.all(axis=1)]
    assert all(taken + one > room - 1e-9 for one in left), "another expert would have fitted"

    flags = engine_flags(split, parameters, sizes, machine)
    beside, whole = room + sizes.looked_up, sizes.experts * parameters.experts
    on_cpu = flags["llama.cpp"]["n_cpu_moe"]
    stays = [size for layer, size in zip(parameters.sparse, whole, strict=True) if layer >= on_cpu]
    assert sum(stays) <= beside + 1e-9
    more = [size for layer, size in zip(parameters.sparse, whole, strict=True) if layer < on_cpu][-1:]
    assert not on_cpu or sum(stays) + sum(more) > beside - 1e-9, "a layer more would have fitted"

    pattern = (flags["llama.cpp"]["override_tensor"] or "nothing=CPU").removesuffix("=CPU")
    moved = [re.search(pattern, f"blk.{layer}.ffn_up_exps.weight") is not None for layer in parameters.sparse]
    assert whole[~np.array(moved)].sum() <= beside + 1e-9
    assert flags["ktransformers"]["kt-num-gpu-experts"] * sizes.experts.sum() <= room + 1e-9
    by_layer = keep_last_layers(parameters, sizes, heat, machine)
    assert by_layer.fast_bytes + machine.reserved_bytes <= machine.fast_bytes + 1e-9


@pytest.mark.parametrize("weights", ["q4_k_m", "q4_k_s", "q3_k_m", "q5_k_m", "q8_0", "UD-Q4_K_XL", "mxfp4"])
@pytest.mark.parametrize("shape", [QWEN3_30B, MIXTRAL], ids=["Qwen3-30B-A3B", "Mixtral-8x7B"])
def test_a_plan_with_the_flags_printed_fits_and_with_one_layer_less_in_host_memory_does_not(
    tmp_path: Path, shape: dict[str, Any], weights: str
) -> None:
    """The plan adds up the file's tensors by itself: of mixed types the last layers have more bits than most."""
    (tmp_path / "config.json").write_text(json.dumps(shape))
    architecture = read_architecture(shape)

    def on_device(host_experts: int) -> float:
        deployment = Deployment(
            engine="llama.cpp", weights=weights, host_experts=host_experts, max_model_len=8192, kv_dtype="f16"
        )
        plan = plan_memory(PlannedModel("m", architecture), deployment, None)
        assert plan.kv is not None
        beside = (plan.overheads.activation.high + plan.overheads.framework.high) * GIB
        return plan.gpu.total + plan.kv.pool_bytes + beside

    for memory in (6e9, 8e9, 10e9, 12e9, 16e9):
        arguments = [
            str(tmp_path),
            "--memory",
            f"{memory / 1e9:g}GB",
            "--context",
            "8192",
            "--weights",
            weights,
        ]
        try:
            kept_away = offload(*arguments)["flags"]["llama.cpp"]["n_cpu_moe"]
        except BadInput:
            assert on_device(len(architecture.layers)) > memory * 0.9
            continue
        assert on_device(kept_away) <= memory * 1.0001
        assert not kept_away or on_device(kept_away - 1) > memory * 0.9999


def test_a_file_says_how_large_its_experts_are(tmp_path: Path) -> None:
    directory = make_tiny_moe("qwen3-moe", tmp_path / "moe")
    path = write_moe_gguf(directory, tmp_path / "tiny.gguf", GGMLQuantizationType.F32)
    tensors = read_gguf(path).tensors
    experts = sum(one.nbytes for name, one in tensors.items() if "_exps" in name)
    others = sum(one.nbytes for name, one in tensors.items() if "_exps" not in name)
    reserved = offload(str(path), "--memory", "4GB", "--context", "16")["cache_and_buffer_bytes"]
    exact = reserved + others + experts
    everything = offload(str(path), "--memory", str(exact), "--context", "16")
    assert everything["experts_kept"] == everything["experts"]
    assert everything["flags"]["llama.cpp"]["n_cpu_moe"] == 0
    short = offload(str(path), "--memory", str(exact - 8), "--context", "16")
    assert short["experts_kept"] == short["experts"] - 1
    with pytest.raises(BadInput, match="--bits"):
        offload(str(path), "--memory", "4GB", "--weights", "q4_k_m", "--bits", "4")
