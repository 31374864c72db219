"""`weighbridge moe` from the outside: JSON that scripts rely on, exit codes, one clear line per mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.planner.test_experts import MIXTRAL, QWEN3_30B, README, README_PLACEMENT
from tests.tiny import make_tiny
from weighbridge.cli.app import app
from weighbridge.cli.moe.curve import cliff
from weighbridge.cli.moe.stats import heat_map
from weighbridge.errors import BadInput

EPLB = ["--method", "eplb"]
PLACE = ["--gpus", "8", "--nodes", "2", "--groups", "4", "--replicas", "16"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["moe", *arguments])


def loads_file(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "loads.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_place_answers_the_contract(tmp_path: Path) -> None:
    result = run("place", "--loads", loads_file(tmp_path, {"weight": README}), *PLACE, *EPLB, "--json")
    answer = json.loads(result.stdout)
    assert answer["physical_to_logical"] == README_PLACEMENT
    assert answer["balancedness_after"] == pytest.approx((0.8277 + 0.8050) / 2, abs=1e-3)
    assert answer["balancedness_before"] < answer["balancedness_after"]
    assert answer["logical_count"][0] == [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]
    assert answer["moved_bytes"] == answer["moved_bytes"] // 44_040_192 * 44_040_192 > 0


def test_a_placement_moves_nothing_from_itself(tmp_path: Path) -> None:
    current = tmp_path / "current.json"
    current.write_text(json.dumps({"physical_to_logical": README_PLACEMENT}))
    loads = loads_file(tmp_path, "\n".join(",".join(map(str, row)) for row in README))
    result = run("place", "--loads", loads, *PLACE, "--current", str(current), "--expert-ms", "3", "--json")
    answer = json.loads(result.stdout)
    assert answer["moved_bytes"] == 0
    assert answer["pays_after_steps"] is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0, 0], [1, 2]], "no load"),
        ([[5]], "one expert"),
        ("[[1, NaN]]", "nan"),
        ([[1, 2], [3]], "one list per layer"),
        ({"tokens": 3}, 'no "loads"'),
        ("{", "not JSON"),
        ("a,b", "line 1"),
    ],
)
def test_bad_loads_are_one_line(tmp_path: Path, value: Any, message: str) -> None:
    result = run("place", "--loads", loads_file(tmp_path, value), "--gpus", "2")
    assert isinstance(result.exception, BadInput)
    assert message in str(result.exception)


def test_more_gpus_than_replicas(tmp_path: Path) -> None:
    result = run("place", "--loads", loads_file(tmp_path, README), "--gpus", "20", "--replicas", "16")
    assert "20 GPUs" in str(result.exception)


def test_params_and_offload(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MIXTRAL))
    counted = json.loads(run("params", str(config), "--json").stdout)
    assert round(counted["total"] / 1e9, 2) == 46.70
    speeds = []
    for memory in ("8GB", "16GB", "40GB"):
        answer = json.loads(run("offload", str(tmp_path), "--memory", memory, "--json").stdout)
        assert answer["tokens_per_second"] >= answer["tokens_per_second_by_layer"] * 0.999
        assert sum(answer["kept_per_layer"]) == answer["experts_kept"]
        speeds.append(answer["tokens_per_second"])
    assert speeds == sorted(speeds)
    assert answer["experts_kept"] == 256
    assert answer["flags"]["llama.cpp"] == {"n_cpu_moe": 0, "override_tensor": None}
    assert "every token needs" in str(run("offload", str(config), "--memory", "100MB").exception)


def test_heat_decides_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    loads = loads_file(tmp_path, [[100, 1, 1, 1, 1, 1, 1, 100]] * 32)
    answer = json.loads(run("offload", str(tmp_path), "--memory", "9GB", "--loads", loads, "--json").stdout)
    assert all(row == [0, 7] or set(row) > {0, 7} for row in answer["kept"])
    assert answer["hit_rate"] > 0.95


def test_upcycle_and_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
    dense = make_tiny("llama", tmp_path / "dense")
    out = tmp_path / "moe"
    answer = json.loads(run("upcycle", str(dense), "--out", str(out), "--experts", "4", "--json").stdout)
    assert answer["experts"] == 4
    measured = json.loads(run("curve", str(out), "--batches", "1,4", "--context", "20", "--json").stdout)
    assert [row["batch"] for row in measured["curve"]] == [1, 4]
    first, second = measured["curve"]
    assert first["experts_per_layer"] == first["predicted"] == 2.0
    assert 2.0 < second["experts_per_layer"] <= 4.0
    assert second["predicted"] == pytest.approx(second["experts_per_layer"], rel=0.1)
    assert measured["cliff"] == 4
    assert "dense" in str(run("curve", str(dense), "--batches", "1").exception)
    assert "--batches" in str(run("curve", str(out), "--batches", "x").exception)


def test_a_heat_map_has_a_cell_per_expert() -> None:
    layer = {"layer": 3, "tokens": [5, 0, 1], "balancedness": 0.4}
    page = heat_map({"experts": 3, "top_k": 1, "steps": 2, "layers": [layer]})
    assert page.count("<td style") == 3
    assert "layer 3, expert 0: 5 tokens" in page


def test_the_cliff_is_where_the_step_grows_most() -> None:
    rows = [{"batch": b, "ms": ms} for b, ms in ((1, 10.0), (2, 18.0), (4, 24.0), (8, 25.0))]
    assert cliff(rows) == 2
    assert cliff(rows[:1]) is None


def test_flags_of_other_engines_fit_with_the_cache_and_buffers(tmp_path: Path) -> None:
    """Qwen3-30B-A3B, 4.5 bits: what --n-cpu-moe leaves on the device is no more than the device has."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_30B))
    counted = json.loads(run("params", str(tmp_path), "--json").stdout)
    each, resident = counted["one_expert"] * 4.5 / 8, counted["resident"] * 4.5 / 8
    reserved = []
    for context in ("1", "4096", "32768"):
        answer = json.loads(
            run("offload", str(tmp_path), "--memory", "10GB", "--context", context, "--json").stdout
        )
        reserved.append(answer["cache_and_buffer_bytes"])
        llama = answer["flags"]["llama.cpp"]
        on_device = (48 - llama["n_cpu_moe"]) * 128
        room = 10e9 - resident - reserved[-1]
        assert on_device * each <= room < (on_device + 128) * each
        assert answer["experts_kept"] * each <= room < (answer["experts_kept"] + 1) * each
        left_out = (6144 - answer["experts_kept"]) * each / 2**30
        assert answer["flags"]["vllm"]["cpu-offload-gb"] == pytest.approx(left_out + 0.005, abs=0.0051)
    per_token = 48 * 2 * 4 * 128 * 2
    assert reserved[2] - reserved[1] == pytest.approx((32768 - 4096) * per_token, rel=0.01)
    assert reserved[0] > 2e8  # buffers


def test_the_pattern_for_llama_cpp_is_its_own(tmp_path: Path) -> None:
    """common.h: `\\.ffn_(up|down|gate|gate_up)_(ch|)exps`, for exactly the layers that are named."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_30B | {"num_hidden_layers": 24}))
    answer = json.loads(run("offload", str(tmp_path), "--memory", "6GB", "--json").stdout)
    pattern, _, where = answer["flags"]["llama.cpp"]["override_tensor"].rpartition("=")
    assert where == "CPU"
    whole = sum(answer["kept_per_layer"]) // 128
    for layer in range(24):
        for part in ("up_exps", "down_exps", "gate_exps", "gate_up_exps", "up_chexps", "gate_up_chexps"):
            found = re.search(pattern, f"blk.{layer}.ffn_{part}.weight") is not None
            assert found == (layer >= whole)
    assert re.search(pattern, "blk.20.ffn_gate_inp.weight") is None
    assert re.search(pattern, "blk.20.ffn_up_shexp.weight") is None


def test_layers_between_dense_ones_are_counted_where_they_are(tmp_path: Path) -> None:
    """--n-cpu-moe counts all layers, also those that have no experts."""
    interleaved = QWEN3_30B | {"model_type": "qwen2_moe", "decoder_sparse_step": 2}
    (tmp_path / "config.json").write_text(json.dumps(interleaved))
    answer = json.loads(run("offload", str(tmp_path), "--memory", "6GB", "--json").stdout)
    whole = sum(answer["kept_per_layer"]) // 128
    assert 0 < whole < 24
    assert answer["flags"]["llama.cpp"]["n_cpu_moe"] == 48 - 2 * whole
