"""Sends spans to a collector, on a thread of its own, and loses some rather than keep anybody waiting."""

from __future__ import annotations

import gzip
import http.client
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from weighbridge.errors import BadInput
from weighbridge.server.tracing.otlp import TraceSpan, encoded
from weighbridge.server.tracing.settings import Collector, ExportSettings
from weighbridge.server.tracing.spans import Served, spans_of

log = logging.getLogger("weighbridge.server")

#: Statuses with which a collector asks to be tried again, by the standard.
AGAIN = frozenset({429, 502, 503, 504})
#: Tries of one batch, and seconds between them: doubled each time, at most so many where the collector names them.
TRIES, PAUSE, LONGEST_PAUSE = 3, 1.0, 30.0
#: Seconds after the answer in which the ticket of a request must be settled; batches and background work take longer,
#: and then their spans say what is known.
SETTLED_WITHIN = 60.0
#: Bytes of a collector's answer that are read.
_ANSWER = 1 << 16


@dataclass(slots=True)
class ExportCounts:
    """Requests by what became of their traces."""

    sent: int = 0
    dropped: int = 0  # because the queue was full
    failed: int = 0  # because the collector did not take them


class _Refused(Exception):
    """A collector did not take a batch. `again`: it may be tried again, after `pause` seconds if it named them."""

    def __init__(self, why: str, *, again: bool, pause: float | None = None) -> None:
        super().__init__(why)
        self.again = again
        self.pause = pause


class Exporter:
    """`put` never fails and never waits. What does not fit into the queue is dropped and counted."""

    def __init__(self, settings: ExportSettings, clock: Callable[[], float] = time.time) -> None:
        """Raises BadInput for certificates that cannot be read."""
        self.counts = ExportCounts()
        self._settings = settings
        self._clock = clock
        self._tls = _tls(settings.collector)
        self._queue: deque[Served] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._troubled = False  # the last batch could not be sent
        self._thread = threading.Thread(target=self._run, name="weighbridge-traces", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, served: Served) -> None:
        """Send a request's spans soon."""
        batching, waiting = self._settings.batching, len(self._queue)
        if waiting >= batching.queue or self._stop.is_set():
            self.counts.dropped += 1
            return
        self._queue.append(served)
        if waiting + 1 == batching.batch:
            self._wake.set()

    def close(self, seconds: float) -> None:
        """Send what waits, for so many seconds at most."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    # -- on the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(self._settings.batching.delay)
            self._wake.clear()
            is_last = self._stop.is_set()
            try:
                self._flush(all_of_it=is_last)
            except Exception:
                log.exception("traces: what was to be sent is lost")
            if is_last:
                self.counts.dropped += len(self._queue)
                return

    def _flush(self, *, all_of_it: bool) -> None:
        """Send what is settled; the rest waits for its tickets."""
        later: list[Served] = []
        now = self._clock()
        for _ in range(len(self._queue)):
            batch: list[Served] = []
            while self._queue and len(batch) < self._settings.batching.batch:
                one = self._queue.popleft()
                ripe = all_of_it or one.is_settled or now - one.ended > SETTLED_WITHIN
                (batch if ripe else later).append(one)
            if not batch:
                break
            self._send_batch(batch)
        self._queue.extendleft(reversed(later))

    def _send_batch(self, batch: list[Served]) -> None:
        spans = [span for served in batch for span in _spans_or_none(served)]
        body = encoded(spans, self._settings.resource, self._settings.collector.encoding)
        try:
            self._send(body)
        except _Refused as error:
            self.counts.failed += len(batch)
            if not self._troubled:
                self._troubled = True
                log.warning("traces cannot be sent, and later failures are only counted: %s", error)
            return
        self.counts.sent += len(batch)
        if self._troubled:
            self._troubled = False
            log.info("traces are sent again")

    def _send(self, body: bytes) -> None:
        """Raises _Refused once all tries are spent; while the server ends, there is one."""
        pause = PAUSE
        for number in range(1, TRIES + 1):
            try:
                post(self._settings.collector, self._tls, body)
                return
            except _Refused as error:
                if not error.again or number == TRIES or self._stop.is_set():
                    raise
                self._stop.wait(min(error.pause or pause, LONGEST_PAUSE))
                pause *= 2


def _spans_or_none(served: Served) -> list[TraceSpan]:
    """One request that cannot be told of costs no other."""
    try:
        return spans_of(served)
    except Exception:
        log.exception("traces: the spans of a request could not be made")
        return []


def _tls(collector: Collector) -> ssl.SSLContext | None:
    if not collector.url.startswith("https:"):
        return None
    try:
        context = ssl.create_default_context(cafile=collector.ca)
        if collector.certificate is not None:
            context.load_cert_chain(collector.certificate, collector.key)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(
            f"the certificates for traces cannot be read: {error}", param="otlp_endpoint"
        ) from error
    return context


def post(collector: Collector, tls: ssl.SSLContext | None, body: bytes) -> None:
    """Send one batch, within the collector's time-out as a whole. Raises _Refused."""
    parts = urlsplit(collector.url)
    host, timeout = parts.hostname or "", collector.timeout
    if tls is None:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=tls)
    late = threading.Timer(timeout, _cut, (connection,))  # the socket's own bounds each read, not all of them
    late.daemon = True
    late.start()
    try:
        connection.request("POST", parts.path, _zipped(collector, body), _headers(collector))
        response = connection.getresponse()
        status, wait = response.status, response.getheader("retry-after", "")
        response.read(_ANSWER)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Refused(f"{collector.url}: {error or type(error).__name__}", again=True) from None
    finally:
        late.cancel()
        connection.close()
    if not 200 <= status < 300:
        pause = float(wait) if wait.isdecimal() else None
        raise _Refused(f"{collector.url} answered with status {status}", again=status in AGAIN, pause=pause)


def _cut(connection: http.client.HTTPConnection) -> None:
    """Wake whoever waits for a collector that has had its time."""
    sock = connection.sock
    if isinstance(sock, socket.socket):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _zipped(collector: Collector, body: bytes) -> bytes:
    return gzip.compress(body, 3) if collector.zipped else body


def _headers(collector: Collector) -> Mapping[str, str]:
    told = {name: value.reveal() for name, value in collector.headers.items()}
    told["Content-Type"] = collector.encoding.content_type
    if collector.zipped:
        told["Content-Encoding"] = "gzip"
    return told
