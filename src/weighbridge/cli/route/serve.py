"""`weighbridge route serve`: the routes of a configuration by themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from weighbridge.cli.options import options, written
from weighbridge.cli.serve.fleet import overridden, serve_spec
from weighbridge.errors import BadInput
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.knobs import knob
from weighbridge.routes.config import load_configuration
from weighbridge.server.settings import ListenSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteListen(ListenSettings):
    """Beside a gateway on the usual port."""

    port: int = knob(8090, "Port; 0 takes a free one.", min=0, max=65535)


@options
def serve(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="weighbridge.yaml with its section `routes`.")] = Path(
        "weighbridge.yaml"
    ),
    *,
    listen: RouteListen,
) -> None:
    """Serve the routes of a configuration by themselves, over sides that run elsewhere."""
    read = load_configuration(config)
    if not read.routes.routes:
        raise BadInput(f"{config}: routes: needs at least one route with its edge and cloud", param="config")
    fleet, told = read.fleet, written(context)
    plain = FleetSpec(models=())
    if (fleet.host, fleet.port) == (plain.host, plain.port):  # the file has no address of its own
        fleet = replace(fleet, port=listen.port)
    fleet = overridden(fleet, listen, told)
    serve_spec(fleet, read.routes, json_logs=False)
