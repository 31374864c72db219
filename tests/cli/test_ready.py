"""Whoever reads that a server is ready can connect to it."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.tiny import make_tiny
from weighbridge.cli.serve import fleet, model
from weighbridge.engine.settings import EngineSettings
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.server.lifecycle import bind
from weighbridge.server.settings import ServerSettings


class Reached(Exception):
    """The server was told to be ready, and could be connected to."""


def reach(_: Any, second: Any, third: Any) -> None:
    """Connect where the announcement says."""
    where = urlsplit(second if isinstance(second, str) else third)
    with socket.create_connection((where.hostname, where.port), timeout=5.0):
        raise Reached


def test_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_announce", reach)
    with pytest.raises(Reached):
        fleet.serve_spec(FleetSpec(models=(), port=0), json_logs=False)


def test_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "_announce", reach)
    made = make_tiny("llama", tmp_path / "tiny")
    settings = EngineSettings(kv_cache_memory=1 << 20)
    with pytest.raises(Reached):
        model.serve_model(str(made), None, settings, ServerSettings(), bind("127.0.0.1", 0), time.monotonic())
