"""`weighbridge doctor`: this machine and this installation, looked over."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from weighbridge.cli.machine.findings import MachineFact, Soundness, look
from weighbridge.cli.options import JsonOutput
from weighbridge.cli.terminal import outside, print_json

_MARKS = {
    Soundness.WELL: ("well", "green"),
    Soundness.LESS: ("less", "yellow"),
    Soundness.BROKEN: ("broken", "bold red"),
}


def doctor(
    host: Annotated[str, typer.Option(help="Where a server would listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port.", min=0, max=65535)] = 8080,
    json_output: JsonOutput = False,
) -> None:
    """Look at this machine and this installation, and say what is lost here and what to do about it.

    "less": something is slower or missing, and the rest works. Exit 1 where something is broken.
    """
    findings = list(look(host, port))
    if json_output:
        print_json([asdict(one) for one in findings])
    else:
        _print(findings)
    if any(one.soundness is Soundness.BROKEN for one in findings):
        raise typer.Exit(1)


def _print(findings: list[MachineFact]) -> None:
    """A line for a finding and one for its advice, never cut: what they say is there to be copied."""
    console = Console(soft_wrap=True)
    wide = max(len(one.subject) for one in findings)
    for one in findings:
        word, style = _MARKS[one.soundness]
        console.print(Text.assemble((f"{word:<6}", style), f"  {one.subject:<{wide}}  ", outside(one.found)))
        if one.advice:
            console.print(Text.assemble(" " * (wide + 8), ("-> ", "bold"), outside(one.advice)))
