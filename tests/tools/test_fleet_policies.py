"""The program that compares policies says what it leaves out, and what it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE = ["--loads", "0.6", "--policies", "weigh", "--seeds", "1", "--requests", "40"]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The program where there are no traces."""
    command = [sys.executable, str(ROOT / "benchmarks" / "fleet_policies.py"), *ONE, *words]
    environment = {**os.environ, "WEIGHBRIDGE_DATA": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def test_a_mix_whose_trace_is_missing_is_told_and_the_others_run(tmp_path: Path) -> None:
    done = run(tmp_path, "--mixes", "azure")
    assert (done.returncode, done.stdout) == (1, "")
    place = tmp_path / "traces" / "azure_2023_conv.csv"
    assert done.stderr == f"azure is left out: there is no trace at {place}; set WEIGHBRIDGE_DATA\n"
    done = run(tmp_path, "--mixes", "azure,bursty")
    assert done.returncode == 0, done.stderr
    assert "azure is left out" in done.stderr
    assert "bursty at 60%" in done.stdout


@pytest.mark.parametrize(
    "words", [["--mixes", "colour"], ["--policies", "colour"]], ids=lambda words: words[0]
)
def test_names_that_are_none_are_told_with_those_that_are(words: list[str], tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert "'colour' is no " in done.stderr
