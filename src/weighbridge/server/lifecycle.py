"""Starting and stopping: a signal drains, a second one ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from weighbridge.errors import BadInput
from weighbridge.server.connections import BoundedHttp, raise_file_limit
from weighbridge.server.tls import Certificates, TlsServer
from weighbridge.ticket.trace import current
from weighbridge.wire.identity.access import is_loopback
from weighbridge.wire.identity.callers import Callers
from weighbridge.wire.identity.settings import IdentitySettings
from weighbridge.wire.keys import Keys

log = logging.getLogger("weighbridge.server")


class JsonLines(logging.Formatter):
    """One JSON object a line; a finished request's line is its ticket. Prompts are in neither."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        span = current.get()
        if span is not None:
            line |= {"trace_id": span.trace_id, "span_id": span.span_id}
        ticket = getattr(record, "ticket", None)
        if ticket is not None:
            line["ticket"] = ticket.as_dict()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(json_logs: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json_logs else logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("weighbridge")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False


#: Connections that wait until they are accepted.
_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A socket that will listen. Raises BadInput when the address cannot be had.

    Accepted connections inherit TCP_NODELAY: without it the small write behind another (a stream's first chunk, a
    body behind its headers) waits 40 ms for an acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    return listener


def begin_listening(listener: socket.socket) -> None:
    """From now on clients can connect: whoever is told that a server is ready finds it. They wait for its loop."""
    listener.listen(_BACKLOG)


def _cannot_listen(host: str, port: int, error: OSError) -> BadInput:
    if isinstance(error, socket.gaierror | UnicodeError):
        what = f"cannot listen on {host!r}: it is no address, and no name of one; give --host 127.0.0.1, for example"
        return BadInput(what, param="host")
    why = os.strerror(error.errno or 0).lower()
    if error.errno == errno.EADDRNOTAVAIL:
        return BadInput(
            f"cannot listen on {host}: it is no address of this machine; give another --host", param="host"
        )
    return BadInput(f"cannot listen on {host}:{port}: {why}; choose another --port", param="port")


def check_files(settings: IdentitySettings) -> None:
    """Read the files by which callers will be known, before anything is loaded that takes long.

    Raises BadInput for one that is no good.
    """
    Certificates.of(settings)
    Callers(Keys(), settings)


def check_reach(listener: socket.socket, settings: IdentitySettings, has_keys: bool) -> None:
    """Refuse to listen beyond this machine without keys or TLS, unless told to; warn where one of them is missing.

    Raises BadInput.
    """
    host = str(listener.getsockname()[0])
    knows, private = has_keys or settings.knows_callers, settings.tls_cert is not None
    if settings.insecure or is_loopback(host):
        return
    if not knows and not private:
        raise BadInput(
            f"on {host} everybody who reaches this machine could call; give --api-key and --tls-cert, listen on "
            "127.0.0.1, or say --insecure (in weighbridge.yaml: tenants, tls_cert, listen, insecure: true)",
            param="host",
        )
    if not knows:
        log.warning("on %s everybody who reaches this machine may call; give --api-key", host)
    if not private:
        log.warning(
            "on %s keys and prompts are sent readably; give --tls-cert, or a proxy that has one", host
        )


def settle_collector() -> None:
    """Have less garbage collected.

    What was imported and loaded lives for ever, so the collector need not look at it again, which would hold up
    every stream for 140 ms; requests make few cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _quicken() -> None:
    """The faster event loop where it is, and less garbage collection."""
    settle_collector()
    with contextlib.suppress(ImportError):  # not on Windows
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


class Drainable(Protocol):
    """What refuses new work on a signal, and finishes what it has."""

    async def drain(self, timeout: float) -> bool:
        """False when `timeout` seconds were not enough."""
        ...


def _server(app: ASGIApp, certificates: Certificates | None) -> uvicorn.Server:
    """uvicorn with our bounds. `_serve` leaves the signals to us: the drain decides when it ends."""
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        proxy_headers=False,  # who may say for whom it asks is known elsewhere: `wire.identity.proxies`
    )
    return uvicorn.Server(config) if certificates is None else TlsServer(config, certificates)


def run_server(
    app: ASGIApp,
    service: Drainable,
    listener: socket.socket,
    settings: IdentitySettings,
    drain_timeout: float,
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. False when the drain ran out of time. Raises BadInput."""
    certificates = Certificates.of(settings)
    _quicken()
    raise_file_limit()
    server = _server(app, certificates)
    drained = True

    async def serve() -> None:
        nonlocal drained
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, lambda: os._exit(130) if stop.is_set() else stop.set())
        serving = asyncio.ensure_future(server._serve([listener]))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if stopping.done() and not serving.done():
            log.info("draining: finishing what was accepted, refusing the rest (again to end at once)")
            drained = await service.drain(drain_timeout)
            if not drained:
                log.warning("the drain took more than %.0f s; open requests are cut off", drain_timeout)
            server.should_exit = True
            server.force_exit = not drained
        stopping.cancel()
        await serving

    try:
        asyncio.run(serve())
    finally:
        gc.unfreeze()  # what the compiled modules keep is to go before they do
    return drained
