"""The fuzzer notices within a minute of processor time that a check of a parser is gone, and says what the input is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tools.fuzz import BUGS, NATIVE, ROOT
from tools.fuzz_native import compiler

pytestmark = pytest.mark.proof


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("name", BUGS)
def test_a_missing_check_is_found_within_a_minute(name: str, tmp_path: Path) -> None:
    target = BUGS[name].target
    if target == NATIVE and compiler() is None:
        pytest.skip("clang")
    if target != NATIVE:
        pytest.importorskip("atheris", reason="the extra `fuzz`")
        assert _run("-m", "tests.fuzz.planted", name).returncode == 0, "the seeds find it already"
    fuzzing = (
        "tools/fuzz.py",
        "--seconds",
        "600",
        "--cpu-seconds",
        "60",
        "--folder",
        str(tmp_path),
        "--seed",
        "1",
    )
    ran = _run(*fuzzing, "--planted", name, target)
    print(ran.stdout)
    assert ran.returncode == 1, ran.stderr
    assert "FINDING" in ran.stdout
    [found] = (tmp_path / "findings" / target).iterdir()
    assert _run("tools/fuzz.py", "--replay", str(found), "--planted", name, target).returncode != 0
    again = _run("tools/fuzz.py", "--replay", str(found), target)
    assert again.returncode == 0, f"it is not the missing check: {again.stderr}"
