"""Every command of `weighbridge` with its options, as plain data that can be kept in a file and compared.

`python -m tests.cli.options_table` writes the file anew: only where a change of the command line is wanted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from weighbridge.cli.app import app

SNAPSHOT = Path(__file__).parent / "help" / "options.json"


def commands() -> dict[str, Any]:
    """Path of words -> what `--help` says of that command."""
    root = typer.main.get_command(app)
    return dict(sorted(_walk(root, "weighbridge", None)))


def _walk(command: Any, path: str, parent: Any) -> list[tuple[str, Any]]:
    context = command.make_context(path.rpartition(" ")[2], [], parent=parent, resilient_parsing=True)
    command = context.command
    found = [(path, _described(command, context))]
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        found += _walk(command.get_command(context, name), f"{path} {name}", context)
    return found


def _described(command: Any, context: Any) -> dict[str, Any]:
    parameters = [_parameter(one, context) for one in command.params]
    listed = command.list_commands(context) if hasattr(command, "list_commands") else []
    return {
        "help": command.help,
        "parameters": {one.pop("name"): one for one in parameters},
        "commands": {name: command.get_command(context, name).get_short_help_str(200) for name in listed},
    }


def _parameter(parameter: Any, context: Any) -> dict[str, Any]:
    default = parameter.get_default(context, call=False)
    kind = parameter.param_type_name
    bounds = [getattr(parameter, side, None) for side in ("min", "max")]
    said = {
        "name": " ".join([*parameter.opts, *parameter.secondary_opts]),
        "kind": kind,
        "type": parameter.display_type(context),
        "default": default if isinstance(default, bool | int | float | str | None) else str(default),
        "required": parameter.required,
        "repeats": bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1,
        "bounds": bounds if any(bound is not None for bound in bounds) else None,
        "environment": parameter.envvar,
        "panel": getattr(parameter, "rich_help_panel", None),
        "help": getattr(parameter, "help", None),
    }
    return {name: value for name, value in said.items() if value not in (None, False) or name == "default"}


def written() -> str:
    """JSON with a line for every option, so that a change shows as a line."""
    lines = []
    for path, command in commands().items():
        rows = [
            f"   {json.dumps(name)}: {json.dumps(parameter, ensure_ascii=False)}"
            for name, parameter in command["parameters"].items()
        ]
        inside = "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
        rest = {name: value for name, value in command.items() if name != "parameters"}
        shown = json.dumps(rest, ensure_ascii=False, indent=2).removeprefix("{").removesuffix("\n}")
        lines.append(f' {json.dumps(path)}: {{{shown},\n  "parameters": {inside}\n }}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(written(), encoding="utf-8")
