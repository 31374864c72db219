"""One Redis for the tests of a module, gateways that look often, and who the peers of a gateway are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet.peers.known import PEERS
from tests.fleet.redis_server import Server
from weighbridge.fleet.peers import peers as peers_module
from weighbridge.fleet.peers.peers import Peers


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.end()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than once a second, so that a test waits less."""
    monkeypatch.setattr(peers_module, "INTERVAL", 0.05)
    monkeypatch.setattr(peers_module, "PATIENCE", 20.0)


@pytest.fixture
def known_peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The peers of each gateway that a test starts are in `PEERS`."""
    made = Peers.__init__

    def init(self: Peers, gateway: Any, *arguments: Any, **options: Any) -> None:
        made(self, gateway, *arguments, **options)
        PEERS[id(gateway)] = self

    monkeypatch.setattr(Peers, "__init__", init)
    yield
    PEERS.clear()
