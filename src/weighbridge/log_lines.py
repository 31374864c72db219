"""Log records as lines for people."""

from __future__ import annotations

import logging


class PlainLines(logging.Formatter):
    """A record begins a line, and what follows in it, such as a traceback, is moved in.

    So nothing that a client or a server wrote looks like a record of its own, nor is it more than text to a terminal.
    """

    def __init__(self) -> None:
        super().__init__("%(levelname)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\n    ")
        if text.isprintable():
            return text
        return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)
