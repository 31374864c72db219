"""`weighbridge bench`: load on a running server, and what came back."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Measure a running OpenAI-compatible server.")
