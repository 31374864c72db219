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
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from weighbridge.errors import BadInput
from weighbridge.log_lines import PlainLines
from weighbridge.server.connections import BoundedHttp, raise_file_limit
from weighbridge.server.tls import Certificates, TlsServer
from weighbridge.server.upgrade.inherited import socket_of_systemd
from weighbridge.server.upgrade.upgrade import Upgrade
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
        text = json.dumps(line, ensure_ascii=False)
        if text.isprintable():
            return text
        return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def set_up_logging(json_logs: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json_logs else PlainLines())
    root = logging.getLogger("weighbridge")
    root.handlers[:] = [handler]
    if root.level == logging.NOTSET:  # else `--log-level` has said
        root.setLevel(logging.INFO)
    root.propagate = False


#: Connections that wait until they are accepted.
_BACKLOG = 2048
#: Seconds for which a connection must have been unused until we close it: its client is not about to send.
UNUSED_S = 2.0
#: Seconds between two looks at connections that are to end.
_LOOK_S = 0.05


def bind(host: str, port: int) -> socket.socket:
    """A socket that will listen: systemd's, where it passes one on, or a new one. Raises BadInput when the address
    cannot be had.

    Accepted connections inherit TCP_NODELAY: without it the small write behind another (a stream's first chunk, a
    body behind its headers) waits 40 ms for an acknowledgement.
    """
    passed_on = socket_of_systemd()
    if passed_on is not None:
        return passed_on
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


class _HeldHangup:
    """A handler of SIGHUP that remembers whether one came."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: Any) -> None:
        self.came = True


def hold_hangups() -> None:
    """From now on SIGHUP does not end this process: one that comes before it serves is heeded once it does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, _HeldHangup())


def run_server(
    app: ASGIApp,
    service: Drainable,
    listener: socket.socket,
    settings: IdentitySettings,
    drain_timeout: float,
    upgrade: Upgrade | None = None,
    on_hangup: Callable[[], None] | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, or until another process has taken over, then drain. False when the drain ran out
    of time. Raises BadInput.

    `on_hangup`: what SIGHUP does; None: it ends the process, as ever.
    """
    certificates = Certificates.of(settings)
    _quicken()
    raise_file_limit()
    running = _Running(_server(app, certificates), service, listener, drain_timeout, upgrade or Upgrade())
    try:
        asyncio.run(running.serve(on_hangup))
    finally:
        gc.unfreeze()  # what the compiled modules keep is to go before they do
    return running.drained


class _Running:
    """One server from its first connection to its last."""

    def __init__(
        self,
        server: uvicorn.Server,
        service: Drainable,
        listener: socket.socket,
        drain_timeout: float,
        upgrade: Upgrade,
    ) -> None:
        self.drained = True
        self._server, self._service, self._listener = server, service, listener
        self._timeout, self._upgrade = drain_timeout, upgrade
        self._stop = asyncio.Event()

    async def serve(self, on_hangup: Callable[[], None] | None) -> None:
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, self._stopped)
        early = None
        if on_hangup is not None:
            early = asyncio.ensure_future(self._heed_early(signal.getsignal(signal.SIGHUP), on_hangup))
            loop.add_signal_handler(signal.SIGHUP, on_hangup)
        serving = asyncio.ensure_future(self._server._serve([self._listener]))
        stopping = asyncio.ensure_future(self._stop.wait())
        passing = asyncio.ensure_future(
            self._upgrade.passed_on(self._listener, lambda: bool(self._server.started))
        )
        await asyncio.wait((serving, stopping, passing), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            if passing.done() and not stopping.done():
                log.info("another process serves in the place of this one, which finishes what it has")
                leaving = asyncio.ensure_future(leave(self._server, self._timeout))
                await asyncio.wait((leaving, stopping), return_when=asyncio.FIRST_COMPLETED)
                leaving.cancel()
            await self._drain()
        for task in (stopping, passing, *([early] if early is not None else [])):
            task.cancel()
        self._upgrade.close()
        await serving
        if on_hangup is not None:  # nor does it end what ends already
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def _heed_early(self, held: Any, on_hangup: Callable[[], None]) -> None:
        """Do once the server serves what a SIGHUP asked for before it did."""
        if isinstance(held, _HeldHangup) and held.came:
            while not self._server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
                await asyncio.sleep(_LOOK_S)
            on_hangup()

    def _stopped(self) -> None:
        if self._stop.is_set():
            os._exit(130)
        self._stop.set()

    async def _drain(self) -> None:
        log.info("draining: finishing what was accepted, refusing the rest (again to end at once)")
        self.drained = await self._service.drain(self._timeout)
        if not self.drained:
            log.warning("the drain took more than %.0f s; open requests are cut off", self._timeout)
        self._server.should_exit = True
        self._server.force_exit = not self.drained


async def leave(server: uvicorn.Server, timeout: float) -> None:
    """Accept no more, answer what comes on the connections that are there, and close each behind its next answer or
    once it is unused, for `timeout` seconds at most."""
    stop_accepting(server)
    until = time.monotonic() + timeout
    while connections := list(server.server_state.connections):
        if time.monotonic() >= until:
            return
        for connection in connections:
            if isinstance(connection, BoundedHttp):
                connection.leave(UNUSED_S)
        await asyncio.sleep(_LOOK_S)


def stop_accepting(server: uvicorn.Server) -> None:
    """Take no more connections off the queue of the socket, which another process may have too."""
    if isinstance(server, TlsServer):
        server.stop_accepting()
    for one in getattr(server, "servers", ()):
        one.close()
