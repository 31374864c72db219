"""Plans of our own engine: what the server will take, what it refuses, and a command that it starts from."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.models.tiny_moe import make_tiny_moe
from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from weighbridge.cli.app import app
from weighbridge.cost.hardware import GIB, custom_device, find_device
from weighbridge.cost.step import StepCost
from weighbridge.engine.calibration import calibration_form, calibration_key, calibration_store
from weighbridge.engine.settings import DEFAULT_MEMORY_SHARE, EngineSettings, pool_blocks
from weighbridge.errors import BadInput
from weighbridge.models.compute.kernels import load_kernels
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.keeping import Quantize
from weighbridge.models.kv_form import KvForm, token_bytes
from weighbridge.models.loader import choose_dtype, load_decoder, this_cpu
from weighbridge.planner.machine import measured_here, this_kind, with_file
from weighbridge.planner.memory.memory import MemoryPlan, PlannedModel, plan_memory
from weighbridge.planner.memory.own import CPU_KINDS, POOL_SHARE
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.search.commands import engine_command
from weighbridge.planner.search.fit import changes
from weighbridge.planner.search.speed import demand, measure

OWN = Deployment(engine="weighbridge", cpu="avx512")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file whose layers are in four bits and whose output matrix is the embedding."""
    folder = tmp_path_factory.mktemp("own")
    directory = make_tiny("qwen2", folder / "model", num_hidden_layers=2)
    write_gguf(directory, folder / "tiny model.gguf", Kind.Q4_0)
    return folder / "tiny model.gguf"


@pytest.fixture(scope="module")
def model(tiny: Path) -> PlannedModel:
    return with_file(open_model(str(tiny)))


def planned(model: PlannedModel, gib: float = 7.5, **flags: object) -> MemoryPlan:
    deployment = replace(OWN, **{"max_model_len": 512, **flags})  # type: ignore[arg-type]
    return plan_memory(model, deployment, custom_device(gib, "CPU-2core-8GB"))


@pytest.mark.parametrize("scheme", list(Quantize))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_of_the_loaded_model(
    tiny: Path, model: PlannedModel, scheme: Quantize, dtype: str
) -> None:
    """On this machine's kind of CPU, to the byte but for the norms that the plan counts too."""
    plan = planned(model, quantize=scheme.value, dtype=dtype, cpu=this_kind())
    decoder = load_decoder(open_checkpoint(tiny), getattr(torch, dtype), scheme, max_model_len=512)
    norms = sum(
        norm.nbytes for layer in decoder.layers for norm in (layer.input_norm, layer.post_attention_norm)
    )
    beside = norms + decoder.weights.final_norm.nbytes + decoder.weights.cos_sin.nbytes
    assert plan.gpu.total == decoder.weights.nbytes + beside


def test_a_cpu_without_bfloat16_takes_what_it_needs(model: PlannedModel) -> None:
    """AVX2 computes in float32, so floats and the cache take twice as much; codes take what they take."""
    small, wide = planned(model, cpu="avx2"), planned(model, cpu="avx512")
    assert small.kv is not None
    assert wide.kv is not None
    assert small.kv.bytes_per_token == 2 * wide.kv.bytes_per_token
    assert small.gpu.total == wide.gpu.total
    dense = [planned(model, cpu=cpu, quantize="none").gpu.total for cpu in ("avx2", "avx512", "avx512_bf16")]
    assert dense[0] > 1.8 * dense[1]
    assert dense[1] == pytest.approx(dense[2], rel=0.05)


def test_kinds_of_cpu_are_what_this_machine_says() -> None:
    kind = CPU_KINDS[this_kind()]
    assert kind.cpu == this_cpu()
    if not this_kind().startswith(("neon", "portable")):
        assert f"torch.{kind.dtype}" == str(choose_dtype("auto"))


def test_the_cache_is_the_servers(model: PlannedModel, tiny: Path) -> None:
    """Bytes of a token, blocks of a size and the default share are the ones of the engine."""
    plan = planned(model, kv_cache_memory=4 << 20)
    config = open_checkpoint(tiny).config
    each = token_bytes(config, KvForm.BFLOAT16)
    assert plan.kv is not None
    assert plan.kv.bytes_per_token == each
    assert plan.kv.num_blocks == pool_blocks(EngineSettings(kv_cache_memory=4 << 20), each, 512)
    assert POOL_SHARE == DEFAULT_MEMORY_SHARE
    settings = EngineSettings()
    assert (plan.rules.max_num_seqs, plan.rules.max_num_batched_tokens) == (
        settings.max_sequences,
        settings.max_batch_tokens,
    )


def test_it_fits_exactly_where_there_is_room(model: PlannedModel) -> None:
    """At the edge: what weights, process, workspace and one request take fits, and a thousandth less does not."""
    plan = planned(model)
    assert plan.kv is not None
    over = plan.overheads
    needed = plan.weights.value + over.activation.value + over.framework.value + plan.kv.request_bytes / GIB
    enough = planned(model, needed * 1.0001)
    assert enough.fits
    assert enough.kv is not None
    assert enough.kv.max_concurrency == 1
    assert enough.remaining is not None
    assert enough.remaining >= 0
    short = planned(model, needed * 0.999)
    assert not short.fits
    assert all(change.plan.fits for change in changes(short))


@given(gib=st.floats(2, 9), concurrency=st.integers(1, 300), length=st.integers(33, 1024))
def test_what_fits_fits_and_holds_what_was_asked(gib: float, concurrency: int, length: int) -> None:
    plan = plan_memory(
        open_model("qwen3-4b"),
        replace(OWN, concurrency=concurrency, max_model_len=length, quantize="int4"),
        custom_device(gib, "CPU-2core-8GB"),
    )
    if plan.fits:
        assert plan.kv is not None
        assert plan.kv.max_concurrency >= concurrency
        assert plan.remaining is not None
        assert plan.remaining >= -1e-9
    else:
        assert plan.problem


def test_a_cache_that_was_told_must_fit_too(model: PlannedModel) -> None:
    assert planned(model, 2.0, kv_cache_memory=1 << 30).fits
    plan = planned(model, 1.0, kv_cache_memory=1 << 30)
    assert not plan.fits
    assert "the cache takes 1.00 GiB" in plan.problem


def test_more_than_the_model_was_trained_for_is_refused_as_the_server_does(model: PlannedModel) -> None:
    with pytest.raises(BadInput, match="positions this model was trained for"):
        planned(model, max_model_len=4096)


@pytest.mark.parametrize(
    "flags", [{"quantize": "int3"}, {"dtype": "float16"}, {"cpu": "avx9"}, {"kv_dtype": "fp8"}]
)
def test_words_that_the_server_does_not_know_are_named(model: PlannedModel, flags: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="is not known"):
        planned(model, **flags)


def test_the_command_names_the_file_and_every_flag(model: PlannedModel, tiny: Path) -> None:
    """The server's own command line takes it: each flag is one of `serve`, and the file is there."""
    plan = planned(model, quantize="int8", dtype="float32", max_num_seqs=7, max_num_batched_tokens=99)
    words = shlex.split(engine_command(plan))
    assert words[:3] == ["weighbridge", "serve", str(tiny)]
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert plan.kv is not None
    assert flags.pop("--kv-cache-memory").endswith("MiB")
    assert flags == {
        "--max-model-len": "512",
        "--max-sequences": "7",
        "--max-batch-tokens": "99",
        "--quantize": "int8",
        "--dtype": "float32",
        "--port": "8000",
    }
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert all(flag in shown for flag in (*flags, "--kv-cache-memory"))


def test_a_file_that_the_server_refuses_is_not_planned(tmp_path: Path) -> None:
    directory = make_tiny("llama", tmp_path / "model", num_hidden_layers=1)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    with pytest.raises(BadInput, match="needs"):
        with_file(open_model(str(directory)))


def test_a_mixture_keeps_its_experts(tmp_path: Path) -> None:
    """Weights of experts are read by those that are touched, the others by every step."""
    model = with_file(open_model(str(make_tiny_moe("qwen3-moe", tmp_path / "moe"))))
    plan = planned(model, quantize="int8", cpu=this_kind())
    per_step = demand(plan)
    assert per_step.experts == 16
    decoder = load_decoder(
        open_checkpoint(tmp_path / "moe"), choose_dtype("auto"), Quantize.INT8, max_model_len=512
    )
    experts = sum(layer.mlp.experts.nbytes for layer in decoder.layers)  # type: ignore[attr-defined]
    assert per_step.expert_bytes * 16 * per_step.expert_layers == experts


def test_what_calibrate_measured_is_what_the_plan_says(
    model: PlannedModel, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only of this file, kept this way, on a device that may be this machine."""
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    dtype = CPU_KINDS[this_kind()].dtype
    form = calibration_form(dtype, "auto", dtype)
    fingerprint = open_checkpoint(tiny).fingerprint()
    key = calibration_key(fingerprint, form, load_kernels().name, torch.get_num_threads())
    cost = StepCost(0.001, 0.050, 0.002, 1e-6, 1e-4)
    calibration_store().save(key, cost, [])
    here = planned(model, cpu=this_kind())
    here = replace(here, device=replace(find_device("CPU-2core-8GB"), name="this machine"))
    found = measured_here(here)
    assert found == cost
    plan = replace(here, measured=found)
    assert plan.device is not None
    speed = measure(plan, plan.device, 1, 64, 16)
    assert speed.tpot == pytest.approx(cost.seconds(1, 1, 72))
    assert speed.spread == (0.8, 1.2)
    assert measured_here(replace(here, device=find_device("EPYC-9654-768GB"))) is None
    assert measured_here(planned(model, cpu=this_kind(), quantize="int4")) is None


def test_the_command_line_says_it(tiny: Path) -> None:
    command = [sys.executable, "-m", "weighbridge", "plan", str(tiny), "--device", "CPU-2core-8GB"]
    command += [
        "--engine",
        "weighbridge",
        "--cpu",
        "avx2",
        "--quantize",
        "int4",
        "--max-model-len",
        "256",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["cpu"], found["dtype"], found["quantize"]) == ("avx2", "float32", "int4")
    assert found["fits"] is True
    assert shlex.quote(str(tiny)) in found["command"]
    assert any(line.startswith("weights in memory: attention: Q4_0") for line in found["explain"])
