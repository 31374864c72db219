"""The wheel holds the whole package and runs by itself; what needs no torch runs without it."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.install.wheel import ROOT, build_wheel, command, run, unpack
from tests.tiny import make_tiny

NO_TORCH = ("torch", "transformers", "llguidance")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return unpack(build_wheel(folder), folder / "installed")


def test_every_file_of_the_package_is_in_it(package: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "src/weighbridge"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {Path(line).relative_to("src") for line in listed.stdout.splitlines()}
    wanted = {
        file for file in files if file.suffix not in (".cpp", ".h", ".txt") and (ROOT / "src" / file).exists()
    }
    missing = {str(file) for file in wanted if not (package / file).exists()}
    assert not missing
    assert not [one for one in package.rglob("*") if one.suffix in (".cpp", ".h", ".pyc")]


def test_it_is_of_this_version_and_says_what_it_depends_on(package: Path) -> None:
    [told] = package.glob("weighbridge-*.dist-info/METADATA")
    text = told.read_text(encoding="utf-8")
    assert "Requires-Dist: torch>=2.11" in text
    assert "License-Expression: Apache-2.0" in text
    done = run(package, "--version")
    assert done.stdout.startswith("weighbridge "), done.stderr
    assert str(package) in run(package, "doctor", "--json", "--port", "0").stdout


def test_it_serves_a_model(package: Path, tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "tiny")
    words = command(package, "serve", str(model), "--port", "0")
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=package)
    try:
        address = listening(server)
        body = json.dumps({"model": "tiny", "prompt": "Good", "max_tokens": 4}).encode()
        with urllib.request.urlopen(f"{address}/v1/completions", body, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] <= 4
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "qwen3-8b", "--device", "H100-80GB"],
        ["simulate", "--workload", "poisson:rate=5,requests=20", "--replicas", "2"],
        ["config", "check", "weighbridge.yaml"],
        ["init", "-", "--no-look"],
        ["doctor", "--port", "0"],
        ["models", "list"],
    ],
    ids=lambda words: words[0],
)
def test_without_torch(words: list[str], package: Path) -> None:
    (package / "weighbridge.yaml").write_text("models: {m: {replicas: [{url: 'http://127.0.0.1:9'}]}}\n")
    done = run(package, *words, without=NO_TORCH)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gateway_over_urls_needs_no_torch(package: Path, tmp_path: Path) -> None:
    file = tmp_path / "weighbridge.yaml"
    file.write_text("models: {m: {replicas: [{url: 'http://127.0.0.1:9'}]}}\n")
    words = command(package, "serve", "--config", str(file), "--port", "0", without=NO_TORCH)
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=package)
    try:
        with urllib.request.urlopen(f"{listening(server)}/v1/models", timeout=30) as answer:
            assert json.load(answer)["data"][0]["id"] == "m"
    finally:
        server.terminate()
        server.wait(30)


def listening(server: subprocess.Popen[str]) -> str:
    """The address that a server prints, once somebody answers there."""
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if found := re.search(r" on (http://[\d.]+:\d+)", line):
            while server.poll() is None and not answers(found[1]):
                time.sleep(0.05)
            return found[1]
    raise AssertionError("".join(lines))


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/v1/models", timeout=30) as answer:
            return answer.status == 200
    except urllib.error.URLError:
        return False
