"""The peers of gateways that tests start, by the gateway's identity."""

from __future__ import annotations

from weighbridge.fleet.peers.peers import Peers

PEERS: dict[int, Peers] = {}
