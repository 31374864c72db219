"""A real server over a tiny model: its own process, its own port."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Ports below those that the system gives to clients: so many for each process of a test run, and for a single one.
_FIRST_PORT, _PORTS = 10_240, 5_000
_worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
_ports = itertools.cycle(random.sample(range(_PORTS), _PORTS))


def free_port() -> int:
    """A port that nobody listens on, and that no other process of this test run will be told meanwhile."""
    for _ in range(_PORTS):
        port = _FIRST_PORT + int(_worker) % 4 * _PORTS + next(_ports)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("every port of this process is in use")


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`weighbridge serve` until the block ends; yields its URL and process."""
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", "serve", str(model), "--port", str(port)]
    command += [
        "--dtype",
        "float32",
        "--served-model-name",
        "tiny",
        "--check-integrity",
        "--threads",
        "1",
        *options,
    ]
    url = f"http://127.0.0.1:{port}"
    with running(command, 15) as process:
        wait_until_ready(url, process)
        yield url, process


@contextmanager
def running(command: list[str], patience: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block ends: asked to stop, and killed after `patience` seconds."""
    process = subprocess.Popen(command, env=os.environ)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with code {process.returncode}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start in time")
