"""Weight formats and GGUF mixes, against sizes that files and loaders report."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tiny
from tests.tiny_gguf import write_gguf
from weighbridge.cost.hardware import find_device
from weighbridge.errors import BadInput
from weighbridge.planner.memory.gguf_mix import gguf_bytes
from weighbridge.planner.memory.memory import PlannedModel, plan_memory
from weighbridge.planner.memory.request import Deployment
from weighbridge.planner.memory.source import open_model
from weighbridge.planner.memory.weight_formats import published_format, weight_format
from weighbridge.planner.model.architecture import Architecture
from weighbridge.planner.model.catalogue import catalogue
from weighbridge.planner.model.config_reader import read_architecture
from weighbridge.planner.model.tensors import Kind

MIB, GIB = 1 << 20, 1 << 30


def _named(name: str) -> Architecture:
    return read_architecture(catalogue()[name])


@pytest.mark.parametrize(
    ("model", "file_type", "gib"),
    [  # files as llama.cpp prints them
        ("mixtral-8x7b", "q4_0", 24.62),
        ("mixtral-8x7b", "q5_0", 30.02),
        ("mixtral-8x7b", "q6_k", 35.74),
        ("mixtral-8x7b", "q8_0", 46.22),
        ("gpt-oss-20b", "mxfp4", 11.27),
        ("qwen3.5-27b", "q3_k_m", 12.38),
    ],
)
def test_size_of_gguf_files(model: str, file_type: str, gib: float) -> None:
    sizes = gguf_bytes(_named(model), file_type)
    total = sum(size for tensor, size in sizes.items() if tensor.kind is not Kind.TOWER)
    assert total / GIB == pytest.approx(gib, rel=0.006)


@pytest.mark.parametrize(
    ("model", "flags", "gpu_mib", "host_mib"),
    [
        ("llama-2-7b", {"weights": "q4_k_m"}, 3820.94, 70.31),
        ("llama-3-8b", {"weights": "q4_0"}, 4156.00, 281.81),
        ("mixtral-8x7b", {"weights": "q8_0", "gpu_layers": 22}, 32_353.06, None),
        ("gpt-oss-20b", {"weights": "mxfp4", "gpu_layers": 24, "host_experts": 14}, 4699.90, None),
    ],
)
def test_what_llama_cpp_puts_on_the_device(
    model: str, flags: dict[str, Any], gpu_mib: float, host_mib: float | None
) -> None:
    gpu = plan_memory(open_model(model), Deployment(engine="llama.cpp", towers=False, **flags), None).gpu
    assert gpu.total / MIB == pytest.approx(gpu_mib, rel=0.004)
    if host_mib is not None:
        assert gpu.host / MIB == pytest.approx(host_mib, abs=0.02)


def test_published_formats_are_read_from_quantization_config() -> None:
    def bits(config: dict[str, Any]) -> float:
        base = catalogue()["llama-3.1-8b"]
        return published_format(read_architecture({**base, "quantization_config": config})).bits

    assert bits({"quant_method": "awq", "bits": 4, "group_size": 128}) == pytest.approx(4 + 20 / 128)
    assert bits({"quant_method": "gptq", "bits": 4, "group_size": -1}) == 4
    assert bits({"quant_method": "gptq", "bits": 8, "group_size": 32}) == pytest.approx(8 + 24 / 32)
    assert bits({"quant_method": "fp8"}) == 8
    weights = {"num_bits": 8, "type": "float"}
    assert bits({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}) == 8
    weights = {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True}
    assert bits({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}) == 4.5
    assert bits({"quant_method": "modelopt", "quant_algo": "NVFP4"}) == 4.5
    with pytest.raises(BadInput, match="magic"):
        bits({"quant_method": "magic"})


def test_modules_left_alone_stay_in_16_bits() -> None:
    form = published_format(_named("kimi-k2.5"))
    assert Kind.EXPERT in form.quantised
    assert not form.quantised & {Kind.ATTENTION, Kind.SHARED, Kind.MLP}


def test_names_of_formats() -> None:
    llama = _named("llama-3.1-8b")
    assert weight_format("AWQ_4bit", llama).name == "awq"
    assert weight_format("gptq-g-1", llama).bits == 4
    assert weight_format("awq-g64", llama).bits == pytest.approx(4 + 20 / 64)
    with pytest.raises(BadInput, match="q9"):
        weight_format("q9", llama)
    assert weight_format("nvfp4", _named("glm-5.2")).quantised == {Kind.EXPERT}


def test_safetensors_headers_give_exact_bytes(tmp_path: Path) -> None:
    directory = make_tiny("qwen3", tmp_path / "tiny")
    (file,) = directory.glob("*.safetensors")
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    header = json.loads(file.read_bytes()[8 : 8 + length])
    stored = sum(
        end - start
        for name, e in header.items()
        if name != "__metadata__"
        for start, end in [e["data_offsets"]]
    )
    model = open_model(str(directory))
    assert model.stored is not None
    assert model.stored.total == stored
    whole = plan_memory(model, Deployment(), find_device("t4"))
    half = plan_memory(model, Deployment(tp=2), find_device("t4"))
    assert half.gpu.total < 0.7 * whole.gpu.total
    assert open_model(str(file)).stored == model.stored


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gguf_files_give_exact_bytes_and_the_same_shape(tmp_path: Path, family: str) -> None:
    directory = make_tiny(family, tmp_path / "tiny")
    file = write_gguf(directory, tmp_path / "tiny.gguf")
    model = open_model(str(file))
    assert model.stored is not None
    assert 0 < model.stored.total < file.stat().st_size
    other = open_model(str(directory)).architecture
    assert [layer.mixer for layer in model.architecture.layers] == [
        layer.mixer for layer in other.layers
    ] or family == "llama"
    flags = Deployment(engine="llama.cpp", max_model_len=256)
    by_file = plan_memory(model, flags, None).kv
    by_config = plan_memory(open_model(str(directory)), flags, None).kv
    assert by_file is not None
    assert by_config is not None
    assert by_file.bytes_per_token == by_config.bytes_per_token


@pytest.mark.parametrize(
    "entry",
    [
        *('{"dtype":"F32","shape":[1]}', "5", "[" * 20_000, '{"dtype":"F32","shape":5,"data_offsets":[0,4]}'),
        *('{"dtype":"F32","shape":[1],"data_offsets":[0]}', '{"dtype":[],"shape":[1],"data_offsets":[0,4]}'),
        *(
            '{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}',
            '{"dtype":"F32","shape":[1],"data_offsets":[0,1e9]}',
        ),
        '{"dtype":"F32","shape":[1],"data_offsets":[4,0]}',
        r'{"dtype":"F32","shape":["\ud800"],"data_offsets":[0,4]}',
        r'"\ud800"',
        '{"dtype":"F32","shape":[' + "9" * 400 + '],"data_offsets":[0,4]}',
    ],
)
def test_headers_that_say_what_no_tensor_is_are_refused(tmp_path: Path, entry: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(catalogue()["qwen3-8b"]))
    header = f'{{"odd":{entry}}}'.encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        open_model(str(tmp_path))


def test_what_model_may_be(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(catalogue()["qwen3-8b"]))
    assert open_model(str(config)).architecture == open_model("qwen3-8b").architecture
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadInput, match="neither a config"):
        open_model(str(tmp_path / "notes.txt"))
    with pytest.raises(BadInput, match="near: qwen3-8b"):
        open_model("qwen3-8c")
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"\xff" * 32)
    with pytest.raises(BadInput, match="not a safetensors file"):
        open_model(str(broken))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="has no config"):
        open_model(str(tmp_path / "empty"))


def test_bounds_of_weights_widen_with_what_is_not_known() -> None:
    def spread(model: PlannedModel, **flags: Any) -> float:
        weights = plan_memory(model, Deployment(max_model_len=4096, **flags), None).weights
        return 1 - weights.low / weights.value

    config = {k: v for k, v in catalogue()["llama-3.1-8b"].items() if k != "intermediate_size"}
    guessed = PlannedModel("guessed", read_architecture(config))
    known = open_model("llama-3.1-8b")
    assert spread(known) == pytest.approx(0.01)
    assert spread(known, engine="llama.cpp", weights="q4_k_m") == pytest.approx(0.025)
    assert spread(known, engine="llama.cpp", weights="UD-Q4_K_XL") == pytest.approx(0.1)
    assert spread(guessed, engine="llama.cpp", weights="UD-Q4_K_XL") == pytest.approx(0.3)
