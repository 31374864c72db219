"""All fuzz targets by name. A process that runs one imports no other's parsers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # else it is imported with the target, so that the fuzzer sees its branches
    from tests.fuzz.target import Target

#: The module of each target, in which its name in capitals is the target.
MODULES = {
    "safetensors": "tests.fuzz.files",
    "gguf": "tests.fuzz.files",
    "tokenizer": "tests.fuzz.files",
    "template": "tests.fuzz.texts",
    "yaml": "tests.fuzz.texts",
    "sse": "tests.fuzz.lines",
    "http": "tests.fuzz.lines",
    "responses": "tests.fuzz.requests",
    "messages": "tests.fuzz.requests",
    "ollama": "tests.fuzz.requests",
    "styles": "tests.fuzz.answers",
    "kv_events": "tests.fuzz.kv",
}


def target(name: str) -> Target:
    """Return the target of this name."""
    found: Target = getattr(importlib.import_module(MODULES[name]), name.upper())
    return found
