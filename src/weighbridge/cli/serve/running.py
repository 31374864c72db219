"""An application over an engine, served until it has drained."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from starlette.types import ASGIApp

from weighbridge.engine.engine import LocalEngine
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.models.catalogue import entries as catalogue
from weighbridge.server.lifecycle import bind, run_server
from weighbridge.server.settings import ServerSettings
from weighbridge.server.upgrade.inherited import Taken
from weighbridge.server.upgrade.upgrade import Upgrade
from weighbridge.wire.identity.settings import IdentitySettings

#: How long one thread may hold the interpreter while the other waits, in seconds. The engine's thread asks
#: for it after every kernel, so the default of 5 ms would add up to a stall.
SWITCH_INTERVAL = 0.0001

CUT_OFF = "some requests were cut off: the drain timeout was too short for them"


def address(listener: socket.socket, settings: IdentitySettings) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def served_name(model: str, path: Path) -> str:
    """The name clients use for a model where nobody gave it one: the catalogue's, or that of its path."""
    entry = catalogue.find(model)
    return entry.name if entry else path.stem if path.is_file() else path.name


def listening(
    host: str, port: int, handover: Path | None, takeover: bool
) -> tuple[socket.socket, Taken | None]:
    """The socket to listen on: taken over from another process, where that is asked for, systemd's, or a new one.

    Raises BadInput.
    """
    if not takeover:
        return bind(host, port), None
    if handover is None:
        raise BadInput(
            "--takeover needs --handover, where the process before this one waits", param="takeover"
        )
    taken = Taken(handover)
    return taken.listener, taken


def serve_engine(
    app: ASGIApp,
    engine: LocalEngine,
    listener: socket.socket,
    settings: ServerSettings,
    taken: Taken | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, drain, and stop the engine. Raises WeighbridgeError if requests were cut off."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    upgrade = Upgrade(taken, settings.handover)
    drained = run_server(app, engine, listener, settings, settings.drain_timeout, upgrade)
    engine.stop()
    if not drained:
        raise WeighbridgeError(CUT_OFF)
