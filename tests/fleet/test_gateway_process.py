"""The command line's own fleets: real engines in processes, started, killed, started again, ended with us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.server.running import free_port, running
from tests.tiny import make_tiny
from weighbridge.cli.app import app
from weighbridge.errors import BadInput, WeighbridgeError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("fleet") / "tiny")


def ask(url: str, path: str, body: Any = None, timeout: float = 120.0) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Authorization": "Bearer secret"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


@contextmanager
def gateway(*arguments: str, replicas: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", "serve", *arguments, "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, 20) as process:
        wait(lambda: sum(one["standing"] == "up" for one in replicas_of(url)) == replicas, process, 240)
        yield url, process


def wait(condition: Any, process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, f"the gateway ended with code {process.returncode}"
        try:
            if condition():
                return
        except (OSError, KeyError):
            pass
        time.sleep(0.1)
    raise AssertionError("not in time")


def replicas_of(url: str) -> list[dict[str, Any]]:
    return [one for model in ask(url, "/v1/load")["models"].values() for one in model["replicas"]]


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def completion(url: str) -> str:
    body = {"prompt": "weigh", "max_tokens": 8, "temperature": 0, "model": "tiny"}
    return str(ask(url, "/v1/completions", body)["choices"][0]["text"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_replicas_of_one_model_share_the_cores_and_come_back(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--served-model-name", "tiny", "--dtype", "float32", "--kv-cache-memory", "4MiB"]
    monkeypatch.setenv("WEIGHBRIDGE_API_KEYS", "us=secret")  # asked of clients, not of us by our own replicas
    with gateway(str(tiny), "--replicas", "2", *options, replicas=2) as (url, process):
        texts = {completion(url) for _ in range(4)}
        assert len(texts) == 1
        first, second = sorted(children(process.pid))
        cores = [os.sched_getaffinity(pid) for pid in (first, second)]
        if len(os.sched_getaffinity(0)) >= 2:
            assert not cores[0] & cores[1]
        ticket = ask(url, "/v1/tickets")["data"][0]
        assert ticket["exact"] is True
        assert ticket["prompt_tokens"] == ticket["weighed_tokens"]
        os.kill(first, signal.SIGKILL)
        assert {completion(url) for _ in range(4)} == texts
        wait(lambda: len(children(process.pid)) == 2, process, 120)
        wait(lambda: all(one["standing"] == "up" for one in replicas_of(url)), process, 240)
        remaining = children(process.pid)
        assert first not in remaining
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in remaining)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_gateway_killed_leaves_no_replica_behind(tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "weighbridge.yaml"
    config.write_text(
        "admin_key: operator\nmodels:\n  tiny:\n"
        f"    tokenizer: {tiny}\n"
        f"    replicas:\n      - engine: {tiny}\n        name: inside\n        model: tiny\n"
        f"      - process: {tiny}\n        name: beside\n        model: tiny\n        options: [--dtype, float32]\n"
    )
    with gateway("--config", str(config), replicas=2) as (url, process):
        assert completion(url)
        body = {"model": "tiny", "prompt": "weigh", "max_tokens": 5, "stream": True}
        request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert answer.read().endswith(b"data: [DONE]\n\n")
        used = {one["replica"] for one in ask(url, "/v1/tickets")["data"]}
        assert used <= {"inside", "beside"}
        runner = CliRunner(
            env={"WEIGHBRIDGE_URL": url, "WEIGHBRIDGE_ADMIN_KEY": "operator", "COLUMNS": "200"}
        )
        assert "inside" in runner.invoke(app, ["fleet", "list"]).output
        assert "inside" in runner.invoke(app, ["fleet", "top", "--count", "2", "--interval", "0.1"]).output
        ticket = ask(url, "/v1/tickets")["data"][0]["id"]
        explained = runner.invoke(app, ["fleet", "explain", ticket]).output
        assert "by the model's tokenizer" in explained
        assert "weigh chose" in explained
        assert "inside: " in explained or "beside: " in explained
        drained = runner.invoke(app, ["fleet", "drain", "inside", "--json"])
        assert json.loads(drained.output)["standing"] == "draining"
        for _ in range(3):
            completion(url)
        assert all(one["replica"] == "beside" for one in ask(url, "/v1/tickets")["data"][:3])
        assert "inside is up" in runner.invoke(app, ["fleet", "drain", "inside", "--undo"]).output
        added = runner.invoke(app, ["fleet", "add", "http://127.0.0.1:1", "--name", "new", "--json"])
        assert json.loads(added.output)["data"][0]["name"] == "new"
        assert "removed new" in runner.invoke(app, ["fleet", "remove", "new"]).output
        wrong = runner.invoke(app, ["fleet", "remove", "new"])
        assert isinstance(wrong.exception, BadInput)
        pids = children(process.pid)
        process.kill()
        process.wait(60)
        until = time.monotonic() + 60
        while time.monotonic() < until and any(alive(pid) for pid in pids):
            time.sleep(0.1)
        assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_the_command_line_refuses(tmp_path: Path) -> None:
    runner = CliRunner()
    both = runner.invoke(app, ["serve", "x", "--config", str(tmp_path / "none.yaml")])
    assert isinstance(both.exception, BadInput)
    assert "leave out MODEL" in str(both.exception)
    engine = runner.invoke(app, ["serve", "--config", str(tmp_path / "none.yaml"), "--dtype", "float32"])
    assert "leave out --dtype" in str(engine.exception)
    missing = runner.invoke(app, ["serve", "--config", str(tmp_path / "none.yaml")])
    assert "cannot read the configuration" in str(missing.exception)
    nobody = runner.invoke(app, ["fleet", "list", "--url", f"http://127.0.0.1:{free_port()}"])
    assert isinstance(nobody.exception, WeighbridgeError)
    assert "is a gateway running there" in str(nobody.exception)
    elsewhere = runner.invoke(app, ["serve", "default", "--on", "mars"])
    assert isinstance(elsewhere.exception, BadInput)


def test_a_replica_that_cannot_start_is_told_and_not_repeated(tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "weighbridge.yaml"
    entry = f"      - process: {tiny}\n        options: [--dtype, float99]\n"
    config.write_text("models:\n  tiny:\n    replicas:\n" + entry)
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(config), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(lambda: "ended with code 2" in replicas_of(url)[0]["why"], process, 240)
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(url, "/health")
        assert caught.value.code == 503
    finally:
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=60)
    assert "it is not started again" in output
    assert "float99" in output
