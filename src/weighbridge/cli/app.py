"""The root command and its exit codes: 0 done, 2 bad input, 1 failure."""

from __future__ import annotations

import sys

import typer

from weighbridge import __version__
from weighbridge.cli import (
    bench,
    calibrate,
    chat,
    config,
    fleet,
    flow,
    models,
    moe,
    plan,
    privacy,
    replica,
    route,
    serve,
    simulate,
    ticket,
)
from weighbridge.cli.terminal import fail
from weighbridge.errors import BadInput, WeighbridgeError

app = typer.Typer(
    name="weighbridge",
    help="LLM serving that weighs each request once, in tokens, and decides by that weight.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("calibrate")(calibrate.calibrate)
app.command("ticket")(ticket.ticket)
app.command("plan")(plan.plan)
app.command("replica")(replica.replica)
app.command("simulate")(simulate.simulate)
app.add_typer(models.app, name="models")
app.add_typer(moe.app, name="moe")
app.add_typer(bench.app, name="bench")
app.add_typer(config.app, name="config")
app.add_typer(fleet.app, name="fleet")
app.add_typer(flow.app, name="flow")
app.add_typer(route.app, name="route")
app.add_typer(privacy.app, name="privacy")


def _print_version(value: bool) -> None:
    if value:
        print(f"weighbridge {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    """LLM serving that weighs each request once, in tokens, and decides by that weight."""


def main() -> None:
    """Run the command line; errors raised on purpose become one line on standard error."""
    try:
        app()
    except BadInput as error:
        fail(str(error), code=2)
    except WeighbridgeError as error:
        fail(str(error), code=1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
