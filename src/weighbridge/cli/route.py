"""`weighbridge route`: train, evaluate, calibrate, serve and explain edge/cloud routes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Edge or cloud: train, measure and serve routes.", no_args_is_help=True)


@app.callback()
def route() -> None:
    """Edge or cloud: train, measure and serve routes."""


@app.command("serve")
def serve(
    config: Annotated[Path, typer.Option(help="weighbridge.yaml with its section `routes`.")] = Path(
        "weighbridge.yaml"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8090,
) -> None:
    """Serve the routes of a configuration by themselves, over sides that run elsewhere."""
    import uvicorn

    from weighbridge.cli.terminal import errors
    from weighbridge.hybrid.build import build_front
    from weighbridge.hybrid.config import load_hybrid
    from weighbridge.hybrid.front import create_app
    from weighbridge.server.lifecycle import bind, set_up_logging

    set_up_logging(False)
    front = build_front(load_hybrid(config))
    listener = bind(host, port)
    names = ", ".join(front.routers)
    errors.print(f"routes {names} on http://{host}:{listener.getsockname()[1]}/v1")
    settings = uvicorn.Config(create_app(front), log_level="warning", access_log=False)
    uvicorn.Server(settings).run(sockets=[listener])
