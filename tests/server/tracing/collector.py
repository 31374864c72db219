"""A collector of traces on a socket of its own, that reads what it gets with OpenTelemetry's own types."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(slots=True)
class Seen:
    """A span that came in, as plain values."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: float
    end: float
    attributes: dict[str, Any]
    failed: bool
    state: str
    flags: int
    resource: dict[str, Any]


@dataclass
class Collector:
    """`statuses`: of the next answers; empty: 200. `gate`: answers wait for it where there is one."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    gate: threading.Event | None = None
    spans: list[Seen] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    def of(self, trace_id: str, count: int, within: float = 20.0) -> list[Seen]:
        """The spans of a trace, once there are as many."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            found = [one for one in self.spans if one.trace_id == trace_id]
            if len(found) >= count:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{len(found)} spans of {count}: {[one.name for one in found]}")

    def take(self, headers: dict[str, str], body: bytes) -> int:
        self.requests.append(headers)
        if self.gate is not None:
            self.gate.wait(30)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            if headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.spans += read(headers["content-type"], body)
        return status


def read(content_type: str, body: bytes) -> list[Seen]:
    """The spans of a request. Fails for what is no OTLP: unknown fields are errors too."""
    request = ExportTraceServiceRequest()
    if content_type == "application/json":
        json_format.Parse(_with_base64_ids(body), request)
    else:
        assert content_type == "application/x-protobuf"
        request.ParseFromString(body)
        whole_request = request.SerializeToString()
        request.DiscardUnknownFields()
        assert request.SerializeToString() == whole_request, "fields that OTLP does not know"
    found = []
    for whole in request.resource_spans:
        resource = {one.key: _value(one.value) for one in whole.resource.attributes}
        for scoped in whole.scope_spans:
            assert scoped.scope.name == "weighbridge"
            found += [_seen(span, resource) for span in scoped.spans]
    return found


def _with_base64_ids(body: bytes) -> bytes:
    """OTLP writes ids in hexadecimal, where protobuf's JSON has base64."""

    def turned(value: Any) -> Any:
        if isinstance(value, list):
            return [turned(one) for one in value]
        if isinstance(value, dict):
            return {
                key: base64.b64encode(bytes.fromhex(one)).decode()
                if key in ("traceId", "spanId", "parentSpanId")
                else turned(one)
                for key, one in value.items()
            }
        return value

    return json.dumps(turned(json.loads(body))).encode()


def _seen(span: Span, resource: dict[str, Any]) -> Seen:
    assert len(span.trace_id) == 16
    assert len(span.span_id) == 8
    assert len(span.parent_span_id) in (0, 8)
    assert span.end_time_unix_nano >= span.start_time_unix_nano > 0
    keys = [one.key for one in span.attributes]
    assert len(keys) == len(set(keys))
    return Seen(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        round(span.start_time_unix_nano / 1e9, 6),
        round(span.end_time_unix_nano / 1e9, 6),
        {one.key: _value(one.value) for one in span.attributes},
        span.status.code == 2,
        span.trace_state,
        span.flags,
        resource,
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def collecting(**behaves: Any) -> Iterator[Collector]:
    """A collector while the block runs."""
    collector = Collector(**behaves)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = collector.take({**headers, "path": self.path}, body)
            self.send_response(status)
            if collector.retry_after is not None:
                self.send_header("retry-after", collector.retry_after)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
