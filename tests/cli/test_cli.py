"""The command line as a person meets it: help, versions, and errors that say what to do."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.cli.answering import answering
from weighbridge import __version__
from weighbridge.cli import terminal
from weighbridge.cli.app import COMMANDS, Command, Group, app
from weighbridge.engine.settings import EngineSettings, pool_blocks
from weighbridge.errors import BadInput
from weighbridge.knobs import parse_bytes


def weighbridge(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weighbridge", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_version_and_help() -> None:
    assert weighbridge("--version").stdout.strip() == f"weighbridge {__version__}"
    text = weighbridge("--help").stdout
    for command in ("serve", "chat", "calibrate", "bench", "models", "ticket"):
        assert command in text


def every_command() -> list[list[str]]:
    groups = [(name, entry) for name, entry in COMMANDS.items() if isinstance(entry, Group)]
    below = [[name, word] for name, group in groups for word in group.commands]
    return [[name] for name, entry in COMMANDS.items() if isinstance(entry, Command)] + below


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_cuts_nothing_on_a_narrow_terminal(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "64")
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.output
    assert max(map(len, done.output.splitlines())) <= 64


@pytest.mark.parametrize("width", ["0", "00", ""])
def test_a_terminal_that_tells_no_width_has_the_usual_one(width: str) -> None:
    """`COLUMNS=0` is what some start programs with; tables of no characters were printed for it."""
    usual, tables = dict(os.environ, COLUMNS="80"), []
    for environment in (usual, dict(usual, COLUMNS=width, LINES=width)):
        command = [sys.executable, "-m", "weighbridge", "models", "list"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        tables.append(done.stdout)
    assert "smollm2-135m-instruct" in tables[0]
    assert tables[1] == tables[0]


def test_names_that_are_nearly_right_and_servers_that_are_none_are_said() -> None:
    done = weighbridge("models", "pull", "smollm")
    assert "did you mean 'smollm2-135m-instruct'?" in done.stderr
    with answering({}) as url:  # answers 404 to everything
        done = weighbridge("fleet", "probe", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no server of models" in done.stderr


def test_catalogue_as_json() -> None:
    assert weighbridge("models").stdout == weighbridge("models", "list").stdout
    models = json.loads(weighbridge("models", "list", "--json").stdout)
    assert "smollm2-135m-instruct" in [model["name"] for model in models]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "--no-such-flag"], "no-such-flag"),
        (["serve", "no-such-model", "--port", "0"], "no-such-model"),
        (["serve", "--kv-cache-memory", "lots"], "lots"),
        (["serve", "--api-key", "team="], "TENANT=KEY"),
        (["models", "pull", "no-such-model"], "no-such-model"),
        (["bench", "serve", "--slo", "soon"], "ttft=500ms"),
        (["bench", "serve", "--concurrency", "1", "--rate", "2"], "--concurrency"),
        (["bench", "serve", "--trace", "/no/such/file.csv"], "/no/such/file.csv"),
    ],
    ids=str,
)
def test_bad_input_exits_2_and_says_why(words: list[str], says: str) -> None:
    done = weighbridge(*words)
    assert done.returncode == 2
    assert says in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said_before_the_model_loads() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = weighbridge("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_no_server_exits_1() -> None:
    done = weighbridge("ticket", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "weighbridge serve" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("2GiB", 2 << 30), ("1.5 MB", 1_500_000), ("4k", 4096), ("1gb", 10**9)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "1 potato", "-"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BadInput, match="512MiB"):
        parse_bytes(text)


def test_a_pool_too_small_for_a_block_is_refused_with_the_number() -> None:
    with pytest.raises(BadInput, match="32000 bytes"):
        pool_blocks(EngineSettings(kv_cache_memory=100), 1000, 1024)
    assert pool_blocks(EngineSettings(kv_cache_memory=64_000), 1000, 1024) == 2


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO, "weighbridge.cli")
    with terminal.counting("Packing layers") as report:
        for layer in range(1, 13):
            now += 1.0
            report(layer, 12)
    assert [record.getMessage() for record in caplog.records] == [
        "Packing layers: 5 of 12",
        "Packing layers: 10 of 12",
    ]
