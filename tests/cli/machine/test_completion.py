"""Completion as a shell asks for it: the command with the line so far in its environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from weighbridge.cli.app import app
from weighbridge.errors import BadInput


def completed(*words: str) -> list[str]:
    told = {
        "_WEIGHBRIDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["weighbridge", *words]),
        "COMP_CWORD": str(len(words)),
    }
    command = [
        sys.executable,
        "-c",
        "import sys; sys.argv[0] = 'weighbridge'; from weighbridge.cli import main; main()",
    ]
    done = subprocess.run(
        command, env=os.environ | told, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_commands_and_the_flags_of_a_command_are_completed() -> None:
    assert completed("fle") == ["fleet"]
    assert {"drain", "add"} <= set(completed("fleet", ""))
    assert "--kv-cache-memory" in completed("serve", "--kv-c")


def test_models_and_choices_are_completed() -> None:
    assert completed("models", "pull", "qwen2.5") == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert completed("serve", "smol") == ["smollm2-135m-instruct"]
    assert completed("chat", "--thoughts", "h") == ["hide"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_printed_is_a_script_of_that_shell(shell: str) -> None:
    script = CliRunner().invoke(app, ["completion", shell]).output
    assert "_WEIGHBRIDGE_COMPLETE" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", "-c", script], timeout=30).returncode == 0


def test_a_shell_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = CliRunner().invoke(app, ["completion"])
    assert isinstance(done.exception, BadInput)
    assert "tcsh" in str(done.exception)
