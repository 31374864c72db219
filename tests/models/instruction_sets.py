"""Tests of kernels once more, in a process of their own, under every instruction set here but the best."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from weighbridge.models.compute.kernels.native_kernels import supported_isas

each_lower_isa = pytest.mark.parametrize("isa", supported_isas()[:-1])  # the last is what this process uses


def pass_under(isa: str, file: str, which: str, seconds: float = 100.0) -> None:
    """Run the tests of a file that `which` names, as `-k` does, under an instruction set."""
    if os.environ.get("WEIGHBRIDGE_KERNELS"):
        pytest.skip("already running under a chosen instruction set")
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", file, "-k", which],
        env={**os.environ, "WEIGHBRIDGE_KERNELS": isa},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert outcome.returncode == 0, outcome.stdout[-3000:]
