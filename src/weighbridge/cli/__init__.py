"""The command line: `weighbridge serve`, `chat`, `bench`, `calibrate`, `models`, `ticket`."""

from weighbridge.cli.app import main

__all__ = ["main"]
