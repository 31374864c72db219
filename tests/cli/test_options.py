"""Flags, defaults, types, bounds and words of every command are those of the snapshot (`options_table`)."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.cli.options_table import SNAPSHOT, commands

KNOWN: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return commands()


def test_there_are_the_same_commands_in_the_same_order(now: dict[str, Any]) -> None:
    assert list(now) == list(KNOWN)
    assert {path: list(one["commands"]) for path, one in now.items()} == {
        path: list(one["commands"]) for path, one in KNOWN.items()
    }


@pytest.mark.parametrize("path", KNOWN)
def test_options_of_a_command(path: str, now: dict[str, Any]) -> None:
    assert now[path] == KNOWN[path]


@pytest.mark.parametrize("path", KNOWN)
def test_lists_show_a_commands_own_first_line(path: str, now: dict[str, Any]) -> None:
    """The table of commands holds that line so that a list need not load them all."""
    for name, line in now[path]["commands"].items():
        assert now[f"{path} {name}"]["help"].replace("\n", " ").startswith(line.removesuffix("..."))


def test_only_the_command_that_is_asked_for_is_loaded() -> None:
    """Help must not wait for torch, nor for the modules of other commands."""
    program = (
        "import sys, typer\nfrom typer.testing import CliRunner\nfrom weighbridge.cli.app import app\n"
        "for words in (['--help'], ['--version'], ['moe'], ['fleet', '--help']):\n"
        "    CliRunner().invoke(app, words)\n"
        "print([name for name in sys.modules if name.startswith('weighbridge.')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout)) == {
        "weighbridge.cli",
        "weighbridge.cli.app",
        "weighbridge.cli.terminal",
        "weighbridge.errors",
        "weighbridge.log_lines",
    }


def test_no_help_loads_torch() -> None:
    paths = [path.split()[1:] for path in KNOWN]
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom weighbridge.cli.app import app\n"
        f"for words in {paths}:\n"
        "    done = CliRunner().invoke(app, [*words, '--help'])\n"
        "    assert done.exit_code == 0, done.output\n"
        "    assert not {'torch', 'transformers', 'onnxruntime', 'ray'} & set(sys.modules), words\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
