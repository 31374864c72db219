"""Wheel and sdist hold the whole package and run by themselves; what needs no torch runs without it."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.install.listening import listening
from tests.install.wheel import ROOT, build_sdist, build_wheel, command, run, unpack, unpack_sdist
from tests.tiny import make_tiny

NO_TORCH = ("torch", "transformers", "llguidance")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    return unpack(build_wheel(folder), folder / "installed")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    return unpack_sdist(build_sdist(folder), folder / "unpacked")


@pytest.fixture(scope="module")
def package_of_sources(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the sdist installs where nothing can be compiled; the proofs compile it, which takes minutes."""
    folder = tmp_path_factory.mktemp("wheel-of-sdist")
    return unpack(build_wheel(folder, sources, compiled=False), folder / "installed")


def listed(*places: str) -> list[Path]:
    """The files of the tree that git knows below some places."""
    told = subprocess.run(
        ["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [Path(line) for line in told.splitlines() if (ROOT / line).exists()]


def files_of(package: Path) -> set[Path]:
    """What is installed of the package; Python's own caches come when it runs."""
    found = {one.relative_to(package) for one in (package / "weighbridge").rglob("*") if one.is_file()}
    return {one for one in found if "__pycache__" not in one.parts}


def test_every_file_of_the_package_is_in_it(package: Path) -> None:
    files = {file.relative_to("src") for file in listed("src/weighbridge")}
    wanted = {file for file in files if file.suffix not in (".cpp", ".h", ".txt")}
    missing = {str(file) for file in wanted if not (package / file).exists()}
    assert not missing
    assert not [one for one in package.rglob("*") if one.suffix in (".cpp", ".h", ".pyc")]


def test_the_sdist_holds_all_that_is_compiled_and_installs_what_the_wheel_does(
    sources: Path, package_of_sources: Path, package: Path
) -> None:
    needed = listed("src", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md")
    other = [
        str(file)
        for file in needed
        if not (sources / file).exists() or (sources / file).read_bytes() != (ROOT / file).read_bytes()
    ]
    assert not other
    assert not list(sources.rglob("*.so"))
    installed, of_the_wheel = files_of(package_of_sources), files_of(package)
    compiled = {one for one in of_the_wheel if one.suffix in (".so", ".pyd")}
    assert installed == of_the_wheel - compiled
    assert all((package / one).read_bytes() == (package_of_sources / one).read_bytes() for one in installed)


def test_it_is_of_this_version_and_says_what_it_depends_on(package: Path) -> None:
    [told] = package.glob("weighbridge-*.dist-info/METADATA")
    text = told.read_text(encoding="utf-8")
    assert "Requires-Dist: torch>=2.11" in text
    assert "License-Expression: Apache-2.0" in text
    done = run(package, "--version")
    assert done.stdout.startswith("weighbridge "), done.stderr


@pytest.mark.parametrize("built", ["package", "package_of_sources"])
def test_it_serves_a_model(built: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    package: Path = request.getfixturevalue(built)
    assert str(package) in run(package, "doctor", "--json", "--port", "0").stdout
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


@pytest.mark.parametrize("words", [["serve", "default"], ["chat"]], ids=lambda words: words[0])
def test_a_model_without_torch_is_told_what_it_takes(words: list[str], package: Path) -> None:
    done = run(package, *words, without=NO_TORCH)
    assert (done.returncode, done.stdout) == (1, "")
    assert "this takes torch, which is not installed here: pip install torch transformers" in done.stderr


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
