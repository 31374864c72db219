"""A collector that is well, down, slow, full or hostile: no request and no end of a server waits for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.running import free_port
from tests.server.tracing.collector import collecting, read
from weighbridge.secret import Secret
from weighbridge.server.tracing import exporter as module
from weighbridge.server.tracing.exporter import Exporter
from weighbridge.server.tracing.otlp import Encoding, SpanKind, TraceSpan, encoded
from weighbridge.server.tracing.settings import Batching, ExportSettings
from weighbridge.server.tracing.settings import Collector as To
from weighbridge.server.tracing.spans import Served
from weighbridge.ticket import Ticket
from weighbridge.ticket.span import SpanName, new_span_id, new_trace_id
from weighbridge.ticket.trace import Trace


def served(**ticket: Any) -> Served:
    """A request that an engine has answered."""
    now = time.time()
    trace = Trace(SpanName(new_trace_id(), new_span_id()), now - 1.0, "/v1/chat/completions", True)
    told: dict[str, Any] = {"arrived": now - 1.0, "finished": now, "finish_reason": "stop", **ticket}
    trace.holds(Ticket("t", "ann", "m", "hash", 7, 16, **told))
    return Served(trace, "/v1/chat/completions", 200, now, True, address="127.0.0.1", port=8080)


@contextmanager
def exporting(url: str, batching: Batching | None = None, **to: Any) -> Iterator[Exporter]:
    batching = batching or Batching(delay=0.05)
    exporter = Exporter(ExportSettings(To(f"{url}/v1/traces", **to), batching=batching))
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.close(5.0)


def wait(condition: Any, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("zipped", [False, True])
def test_spans_arrive_in_each_form(encoding: Encoding, zipped: bool) -> None:
    with collecting() as collector:
        one = served(first_token=time.time() - 0.5, scheduled=time.time() - 0.9, output_tokens=3)
        secret = {"api-key": Secret("a-key-of-the-collector")}
        with exporting(collector.url, encoding=encoding, zipped=zipped, headers=secret) as exporter:
            exporter.put(one)
            found = collector.of(one.trace.span.trace_id, 5)
        assert [span.name for span in found] == [
            "POST /v1/chat/completions",
            "chat m",
            "queue",
            "prefill",
            "decode",
        ]
        assert collector.requests[0]["api-key"] == "a-key-of-the-collector"
        assert collector.requests[0]["path"] == "/v1/traces"
        assert (exporter.counts.sent, exporter.counts.dropped, exporter.counts.failed) == (1, 0, 0)


@pytest.mark.parametrize("status", [429, 503])
def test_a_collector_that_asks_for_it_is_tried_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    with collecting(statuses=[status, status]) as collector, exporting(collector.url) as exporter:
        one = served()
        exporter.put(one)
        collector.of(one.trace.span.trace_id, 2)
        assert len(collector.requests) == 3


def test_what_is_refused_for_good_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with collecting(statuses=[400, 401]) as collector, exporting(collector.url) as exporter:
        for failed in (1, 2):
            exporter.put(served())
            wait(lambda failed=failed: exporter.counts.failed == failed)
        last = served()
        exporter.put(last)
        collector.of(last.trace.span.trace_id, 2)
        assert len(collector.requests) == 3
    assert caplog.text.count("traces cannot be sent") == 1


def test_a_collector_that_is_down_costs_the_traces_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    with exporting(f"http://127.0.0.1:{free_port()}") as exporter:
        exporter.put(served())
        wait(lambda: exporter.counts.failed == 1)


def test_the_queue_is_bounded_and_what_does_not_fit_is_counted() -> None:
    gate, small = threading.Event(), Batching(queue=5, batch=5, delay=0.05)
    with collecting(gate=gate) as collector, exporting(collector.url, small) as exporter:
        exporter.put(served())
        wait(lambda: len(collector.requests) == 1)  # it hangs there
        for _ in range(8):
            exporter.put(served())
        assert exporter.counts.dropped == 3
        gate.set()
        wait(lambda: exporter.counts.sent == 6)


@pytest.mark.parametrize("bytes_a_second", [0, 20])
def test_a_collector_that_hangs_or_trickles_holds_up_no_end(bytes_a_second: int) -> None:
    """Neither one that never answers nor one whose every byte comes within the time-out of a read."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            while not over.wait(1 / bytes_a_second if bytes_a_second else 0.2):
                if bytes_a_second:
                    try:
                        connection.send(b"H")
                    except OSError:
                        return

    threading.Thread(target=answer, daemon=True).start()
    exporter = Exporter(
        ExportSettings(
            To(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/traces", timeout=0.5),
            batching=Batching(delay=0.05),
        )
    )
    exporter.start()
    exporter.put(served())
    time.sleep(0.2)
    began = time.monotonic()
    exporter.close(10.0)
    assert time.monotonic() - began < 5.0
    assert not exporter._thread.is_alive()
    assert exporter.counts.failed == 1
    over.set()
    listener.close()


def test_an_end_waits_no_longer_than_it_was_told() -> None:
    with collecting(gate=threading.Event()) as collector:
        exporter = Exporter(ExportSettings(To(f"{collector.url}/v1/traces"), batching=Batching(delay=0.05)))
        exporter.start()
        exporter.put(served())
        wait(lambda: len(collector.requests) == 1)
        began = time.monotonic()
        exporter.close(0.3)
        assert time.monotonic() - began < 2.0
        exporter.put(served())
        assert exporter.counts.dropped == 1
        assert collector.gate is not None
        collector.gate.set()


def test_a_request_waits_for_its_ticket_and_an_end_for_none() -> None:
    with collecting() as collector:
        open_one, closed = served(finished=None), served()
        with exporting(collector.url) as exporter:
            exporter.put(open_one)
            exporter.put(closed)
            collector.of(closed.trace.span.trace_id, 2)
            assert not [one for one in collector.spans if one.trace_id == open_one.trace.span.trace_id]
        assert collector.of(open_one.trace.span.trace_id, 2)


_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_VALUES = st.one_of(
    _TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(_TEXT, max_size=3).map(tuple),
)


@given(
    st.dictionaries(_TEXT.filter(bool), _VALUES, max_size=6), _TEXT, st.sampled_from(SpanKind), st.booleans()
)
def test_both_forms_say_the_same_to_opentelemetrys_own_types(
    attributes: dict[str, Any], title: str, kind: SpanKind, failed: bool
) -> None:
    name = SpanName(new_trace_id(), new_span_id(), new_span_id(), True, "a=1")
    span = TraceSpan(name, title, kind, 1.7e9, 1.7e9 + 0.25, attributes, failed)
    for encoding in Encoding:
        (seen,) = read(encoding.content_type, encoded([span], {"service.name": "x"}, encoding))
        assert (seen.trace_id, seen.span_id, seen.parent_id) == (name.trace_id, name.span_id, name.parent_id)
        assert (seen.name, seen.kind, seen.failed, seen.state) == (title, kind.name, failed, "a=1")
        assert (seen.start, seen.end, seen.resource) == (1.7e9, 1.7e9 + 0.25, {"service.name": "x"})
        assert seen.attributes == {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}


def test_a_request_that_cannot_be_told_of_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, well = served(), served()
    broken.trace.tickets[0].model = None  # type: ignore[assignment]
    with collecting() as collector, exporting(collector.url) as exporter:
        exporter.put(broken)
        exporter.put(well)
        collector.of(well.trace.span.trace_id, 2)
        assert exporter.counts.failed == 0
