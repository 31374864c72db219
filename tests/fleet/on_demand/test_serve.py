"""`weighbridge serve --config` with more models than memory: real engines, a load that switches, and Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.several_models import NAMES, load_of, run_load

from tests.fleet.on_demand.test_residents import is_there
from tests.server.running import free_port, wait_until_ready
from tests.tiny import make_tiny

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def peak_bytes(pid: int) -> int:
    """The most memory that a process had of its own; what it maps from files is everybody's."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    mapped = int(status["RssFile"].split()[0])
    return (int(status["VmHWM"].split()[0]) - mapped) * 1024


def test_three_models_in_memory_for_two_lose_no_request_and_end_with_the_server(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "weighbridge.yaml"
    entries = "".join(
        f"  {name}: {{replicas: [{{process: {make_tiny('llama', tmp_path / name)}, threads: 1}}]}}\n"
        for name in NAMES
    )
    config.write_text(f"listen: 127.0.0.1:{port}\non_demand: {{memory: 900MiB}}\nmodels:\n{entries}")
    command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, 120.0)
        assert not children(process.pid), "nothing is loaded before somebody asks"
        answers = asyncio.run(run_load(url, load_of(0, 40, 2.0, 0.5, 16)))
        assert Counter(one.how for one in answers) == {"answered": 40}
        there = children(process.pid)
        assert 1 <= len(there) <= 2
        with urllib.request.urlopen(url + "/v1/models") as page:
            planned = {one["status"]["bytes"] for one in json.load(page)["data"]}
        assert len(planned) == 1
        assert all(peak_bytes(pid) <= max(planned) for pid in there), "what was planned is a bound"
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    assert process.returncode == 0
    assert not any(is_there(pid) for pid in there)
    assert "2 at a time in 900MiB" in log
