"""Marks of this room, so that it can also be run on its own."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proof: slow, run by `make proof`")
