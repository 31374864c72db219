"""The command line. `app.COMMANDS` lists every command and the module it is in."""

from weighbridge.cli.app import main

__all__ = ["main"]
