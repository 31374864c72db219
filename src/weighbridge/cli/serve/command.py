"""`weighbridge serve`: one model behind the OpenAI API, or the gateway over a fleet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from weighbridge.cli.options import model_names, options, written
from weighbridge.cli.serve.fleet import overridden, replicated, serve_spec, spec_of_file
from weighbridge.cli.serve.running import listening
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.knobs import knob
from weighbridge.routes.settings import RoutesSettings
from weighbridge.server.lifecycle import check_files, check_reach, set_up_logging
from weighbridge.server.settings import ServerSettings

Model = Annotated[
    str | None,
    typer.Argument(
        help="Name, directory, .gguf file or hub name; none: the default.", autocompletion=model_names
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What is served, under which name and how often."""

    served_model_name: str | None = knob(None, "The name clients use.")
    config: Path | None = knob(None, "Serve the fleet that this weighbridge.yaml describes.")
    replicas: int = knob(1, "Processes of this model behind one endpoint, sharing the cores.", min=1)
    on: str = knob("local", "Where replicas run: local, or ray.")

    def __post_init__(self) -> None:
        if self.on not in ("local", "ray"):
            raise BadInput(f"--on {self.on!r} is not known: use local or ray", param="on")


@options
def serve(
    context: typer.Context,
    model: Model = None,
    *,
    what: ServeSettings,
    server: ServerSettings,
    engine: EngineSettings,
) -> None:
    """Serve a model over the OpenAI API until SIGTERM or Ctrl-C."""
    if what.config is not None:
        config, told = what.config, written(context)

        def source() -> tuple[FleetSpec, RoutesSettings]:
            spec, routes = spec_of_file(config, told)
            return overridden(spec, server, told), routes

        serve_spec(*source(), json_logs=server.json_logs, source=source)
    elif what.replicas > 1 or what.on != "local":
        spec = replicated(model or "default", what.served_model_name, what.replicas, what.on, engine)
        serve_spec(overridden(spec, server, written(context)), json_logs=server.json_logs)
    else:
        began = time.monotonic()
        set_up_logging(server.json_logs)
        # before loading: a taken port is said at once
        listener, taken = listening(server.host, server.port, server.handover, server.takeover)
        check_reach(listener, server, bool(server.api_keys))
        check_files(server)
        from weighbridge.cli.serve.model import serve_model  # loads torch

        serve_model(model or "default", what.served_model_name, engine, server, listener, began, taken)
