"""A real server over a tiny model: its own process, its own port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
