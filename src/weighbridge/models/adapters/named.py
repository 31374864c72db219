"""What an operator says of adapters: which directory is served under which name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from weighbridge.errors import BadInput

#: Names that clients can say and logs can hold.
_NAME = re.compile(r"[\w.:/@+-]{1,200}")


class NamedAdapter(NamedTuple):
    """A PEFT directory and the name that requests choose it by."""

    name: str
    path: Path

    def __str__(self) -> str:
        return f"{self.name}={self.path}"


class AdapterOptions(NamedTuple):
    """What an operator wants of adapters: those that are there from the start, and room for others."""

    lora: tuple[NamedAdapter, ...]
    root: Path | None
    most: int
    max_rank: int

    @property
    def wanted(self) -> bool:
        return bool(self.lora) or self.root is not None


def parse_adapter(text: str) -> NamedAdapter:
    """Read NAME=DIR. Raises BadInput."""
    name, equals, directory = text.partition("=")
    if not equals or not directory:
        raise BadInput(
            f"--lora {text!r}: write NAME=DIR, the name that clients use and a directory", param="lora"
        )
    return NamedAdapter(checked_name(name, "lora"), Path(directory).expanduser())


def checked_name(name: str, param: str) -> str:
    """Return `name` if an adapter can be called so. Raises BadInput."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{param}: an adapter cannot be called {name[:80]!r}: use up to 200 letters, digits and . _ : / @ + -",
            param=param,
        )
    return name
