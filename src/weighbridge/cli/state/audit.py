"""`weighbridge audit`: what was changed on a fleet and its tenants at run time, by whom and when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from weighbridge.cli.fleet import AdminSettings
from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import outside, print_json
from weighbridge.server.gateway.changes import read_changes


@options
def audit(
    file: Annotated[
        Path | None,
        typer.Argument(help="The `changes_file` of a gateway; none: the gateway itself is asked."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Changes at most, the newest.")] = 100,
    *,
    gateway: AdminSettings,
    json_output: JsonOutput = False,
) -> None:
    """Show what operators changed on a fleet while it ran: when, who, what, from and to."""
    if file is None:
        changes: list[dict[str, Any]] = gateway.ask("GET", f"/admin/changes?limit={limit}")["data"]
    else:
        changes = [one.told() for one in reversed(read_changes(file)[-limit:])]
    if json_output:
        print_json({"object": "list", "data": changes})
        return
    console = Console(soft_wrap=True)
    if not changes:
        console.print("nothing was changed")
    for one in changes:
        console.print(outside(_line(one)))


def _line(one: Mapping[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one["at"]))
    if one.get("tenant"):
        what = f"{str(one['act']).replace('_', ' ')} of tenant {one['tenant']}"
    else:
        what = f"{one['act']} {one['replica']} of {one['model']}"
    return (
        f"{at} UTC  {one['changed_by']}  {what}: {one['before'] or 'not there'} -> {one['after'] or 'gone'}"
    )
