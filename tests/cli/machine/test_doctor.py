"""`weighbridge doctor`: each finding is what is so, and says what to do where it should not be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from weighbridge.cli.app import app
from weighbridge.cli.machine import findings
from weighbridge.cli.machine.findings import MachineFact, Soundness, graphics_cards, look


def found(host: str = "127.0.0.1", port: int = 0) -> dict[str, MachineFact]:
    return {one.subject: one for one in look(host, port)}


def test_this_machine_is_told_in_words_and_as_json() -> None:
    said = CliRunner().invoke(app, ["doctor", "--port", "0"])
    assert said.exit_code == 0, said.output
    told = json.loads(CliRunner().invoke(app, ["doctor", "--port", "0", "--json"]).output)
    subjects = [one["subject"] for one in told]
    assert {"weighbridge", "processor", "memory", "packages", "kernels", "model cache", "port"} <= set(
        subjects
    )
    assert all(subject in said.output for subject in subjects)
    assert all(one["advice"] for one in told if one["soundness"] != "well")


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = found(port=taken.getsockname()[1])["port"]
    assert port.soundness is Soundness.LESS
    assert "--port 0" in port.advice


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    assert found()["model cache"].soundness is Soundness.BROKEN


def test_a_cache_that_is_a_file_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("WEIGHBRIDGE_HOME", str(place))
        assert found()["model cache"].soundness is Soundness.BROKEN


def test_a_disk_without_room_for_a_model_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    cache = found()["model cache"]
    assert cache.soundness is Soundness.LESS
    assert "WEIGHBRIDGE_HOME" in cache.advice


def test_kernels_that_are_not_there_are_broken_and_the_command_says_so() -> None:
    told = os.environ | {"WEIGHBRIDGE_KERNELS": "z80"}  # read once a process
    command = [sys.executable, "-m", "weighbridge", "doctor", "--port", "0"]
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "z80" in done.stdout


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_PACKAGES", ("torch", "no-such-package-here"))
    packages = found()["packages"]
    assert packages.soundness is Soundness.LESS
    assert "no-such-package-here missing" in packages.advice


def test_cards_are_told_by_their_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB'\n")
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert graphics_cards() == ["NVIDIA L4, 23034 MiB"]
    assert "vLLM" in found()["GPU"].advice
    tool.write_text("#!/bin/sh\nexit 9\n")  # the driver and the library differ
    assert graphics_cards() == []
