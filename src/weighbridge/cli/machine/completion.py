"""`weighbridge completion`: what a shell needs to complete our commands and flags."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # documented, not listed

from weighbridge.cli.app import COMPLETES
from weighbridge.errors import BadInput


class Shell(StrEnum):
    """Shells that completion is known for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell | None, typer.Argument(help="None: the shell that SHELL names.")] = None,
) -> None:
    """Print what makes a shell complete commands and flags: eval "$(weighbridge completion bash)".

    Put that line into ~/.bashrc or ~/.zshrc; for fish: weighbridge completion fish | source.
    """
    chosen = shell or _own_shell()
    print(get_completion_script(prog_name="weighbridge", complete_var=COMPLETES, shell=chosen.value))


def _own_shell() -> Shell:
    name = Path(os.environ.get("SHELL", "")).name
    try:
        return Shell(name)
    except ValueError:
        known = ", ".join(Shell)
        raise BadInput(f"SHELL names {name or 'nothing'!r}; say which: {known}", param="shell") from None
