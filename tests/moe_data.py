"""Recorded routing statistics, where the shared data directory is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def moe_data(name: str) -> Any:
    """A JSON file of the shared MoE data; skips the test when the data is not there."""
    root = Path(os.environ.get("WEIGHBRIDGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = root / "moe" / name
    if not path.exists():
        pytest.skip(f"{path} is not there: set WEIGHBRIDGE_DATA to the directory of recorded data")
    return json.loads(path.read_text())
