"""One server for the tests that do not stop theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.running import serving
from tests.tiny import make_tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("server") / "tiny")


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[str]:
    """The URL of a server whose KV pool holds 4,096 tokens, so that queues form."""
    with serving(tiny_model, "--kv-cache-memory", "4MiB", "--max-sequences", "8", "--max-body", "1MiB") as (
        url,
        _,
    ):
        yield url
