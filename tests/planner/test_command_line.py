"""`weighbridge plan` as scripts use it: keys, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weighbridge", "plan", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_json_has_the_public_keys() -> None:
    done = plan("qwen3-8b", "--device", "H100-80GB", "--max-model-len", "8192", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for key in (
        "weights_gib", "kv_bytes_per_token", "kv_available_gib", "kv_cache_tokens", "num_blocks", "block_size",
        "max_concurrency", "activation_gib", "overhead_gib", "fits", "explain",
    ):  # fmt: skip
        assert key in found
    for key in ("weights_gib", "kv_available_gib", "kv_cache_tokens", "activation_gib", "overhead_gib"):
        bounds = found["ranges"][key]
        assert bounds["low"] <= bounds["value"] <= bounds["high"]
        assert bounds["value"] == found[key]
    assert found["fits"] is True
    assert found["speed"][0]["tpot"] > 0
    assert all(isinstance(line, str) for line in found["explain"])


def test_text_says_why_and_what_would_fit() -> None:
    done = plan("llama-3.1-70b", "--device", "H100-80GB")
    assert done.returncode == 0
    assert "does not fit" in done.stdout
    assert "smallest change: use 4 devices" in done.stdout
    assert "start it" not in done.stdout


def test_a_change_is_a_flag_of_the_plan_too() -> None:
    done = plan("llama-3.1-70b", "--device", "H100-80GB", "--tensor-parallel-size", "4")
    assert done.returncode == 0
    assert "does not fit" not in done.stdout
    assert "--tensor-parallel-size 4" in done.stdout.partition("start it")[2]
    assert "vllm serve" in done.stdout


def test_recommendation_from_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"at": i / 2, "prompt_tokens": 500, "output_tokens": 100} for i in range(200)]
    trace.write_text("\n".join(map(json.dumps, rows)))
    slo = "ttft=500ms,tpot=50ms,p=95"
    page = tmp_path / "plan.html"
    words = ("--traffic", str(trace), "--slo", slo, "--recommend", "--device", "L40S", "--html", str(page))
    done = plan("qwen3-8b", *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["choices"][0]["meets"] is True
    assert found["command"].startswith("vllm serve")
    assert "replicas:" in found["weighbridge_yaml"]
    text = page.read_text()
    assert "L40S" in text
    assert "Time over money" in text
    assert text.count("<circle") >= 2 * len(found["choices"])


def test_page_and_packing(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    assert plan("qwen3-8b", "--device", "h100", "--html", str(page)).returncode == 0
    assert page.read_text().startswith("<!doctype html>")
    done = plan("qwen3-8b", "llama-3.2-3b", "--device", "h100", "--max-model-len", "8192", "--json")
    told = json.loads(done.stdout)
    assert [one["model"] for one in told] == ["qwen3-8b", "llama-3.2-3b"]
    assert [one["command"].rpartition("--port ")[2] for one in told] == ["8000", "8001"], "a port for each"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give a MODEL"),
        (("no-such-model",), "neither a file"),
        (("qwen3-8b", "--device", "abacus"), "not in the catalogue"),
        (("qwen3-8b", "--device", "h100", "--tp", "3"), "does not divide"),
        (("qwen3-8b", "--tp", "4", "--count", "2"), "more devices than --count"),
        (("qwen3-8b", "--kv-cache-memory", "lots"), "lots"),
        (("qwen3-8b", "--recommend"), "needs --traffic"),
        (("qwen3-8b", "llama-3.2-3b"), "need --device"),
        (("qwen3-8b", "--traffic", "/no/such/trace.csv", "--recommend"), "cannot be read"),
        (("qwen3-8b", "--device-memory", "-1"), "above 0"),
        (("qwen3-8b", "--device-memory", "nan"), "above 0"),
        (("qwen3-8b", "--engine-version", "latest"), "no version"),
        (("qwen3-8b", "--block-size", "7"), "multiples of 16"),
        (("qwen3-8b", "--kv-cache-memory", "-3GiB"), "such as 20GiB"),
        (("qwen3-8b", "--prompt-tokens", "9000", "--max-model-len", "8192"), "longer than --max-model-len"),
        (("qwen3-8b", "--device", "h100", "--max-model-len", "8192", "--batch", "9000"), "fit at once"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: tuple[str, ...], says: str) -> None:
    done = plan(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_catalogues_are_listed() -> None:
    names = {row["name"] for row in json.loads(plan("--list-devices", "--json").stdout)}
    assert {"H100-80GB", "RTX-4090-24GB", "M3-Ultra-512GB"} <= names
    assert len(json.loads(plan("--list-models", "--json").stdout)) >= 30
