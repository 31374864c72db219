"""What a gateway has freed is the system's again."""

from __future__ import annotations

import subprocess
import sys

import pytest

HOLES = """
import time
from pathlib import Path
from weighbridge.server.gateway.heap import Heap, given_back

def held_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

def wait(most):
    for _ in range(200):
        if held_mib() <= most:
            return
        time.sleep(0.05)
    raise SystemExit(f"still {held_mib()} MiB, of which {Heap().free >> 20} are free")

before = held_mib()
bodies = [b"x" * (100 << 10) for _ in range(1500)]
kept = bodies[::15]  # what stays is all over the place
del bodies
assert held_mib() > before + 100, "it has been given back already"
with given_back(0.1):
    wait(before + 40)
    kept += [b"y" * (4 << 20) for _ in range(40)]
    del kept[100:]
    wait(before + 40)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_what_is_freed_between_things_that_stay_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
