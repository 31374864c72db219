"""Names of spans, as W3C Trace Context has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.server.tracing.tracer import is_taken
from weighbridge.ticket.span import LONGEST_STATE, MOST_MEMBERS, SpanName, new_trace_id, read_parent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("written", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),  # the flag of a random id beside it
        (f"  00-{TRACE}-{SPAN}-01 ", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),  # a later version may have more
        (f"cc-{TRACE}-{SPAN}-01", True),
    ],
)
def test_a_parent_is_read(written: str, sampled: bool) -> None:
    assert read_parent({"traceparent": written}) == SpanName(TRACE, SPAN, sampled=sampled)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",  # two headers
        "00-jane-01",
    ],
)
def test_what_is_no_parent_starts_a_trace_anew(written: str) -> None:
    assert read_parent({"traceparent": written, "tracestate": "a=1"}) is None


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("", ""),
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (" rojo=1 ,, tenant@vendor=2", "rojo=1,tenant@vendor=2"),
        ("Rojo=1", ""),
        ("rojo", ""),
        ("rojo=1,\x00=2", ""),
        ("rojo=a\r\nx-evil: 1", ""),
        (",".join(f"k{i}=v" for i in range(40)), ",".join(f"k{i}=v" for i in range(MOST_MEMBERS))),
        (",".join(f"k{i}={'v' * 200}" for i in range(5)), ",".join(f"k{i}={'v' * 200}" for i in range(2))),
    ],
)
def test_what_travels_along_is_bounded_and_clean(written: str, kept: str) -> None:
    parent = read_parent({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": written})
    assert parent is not None
    assert parent.state == kept
    assert len(kept) <= LONGEST_STATE


@given(st.text(max_size=600), st.text(max_size=600))
def test_no_header_breaks_reading_or_what_is_sent_on(parent: str, state: str) -> None:
    read = read_parent({"traceparent": parent, "tracestate": state})
    with_state = read_parent({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": state})
    assert with_state is not None
    for one in (read, with_state):
        if one is not None:
            sent = one.child().headers()
            assert all(value.isascii() and value.isprintable() for value in sent.values())
            assert read_parent(sent) is not None


@given(st.booleans())
def test_a_child_is_read_again_as_it_was_written(sampled: bool) -> None:
    own = SpanName(new_trace_id(), SPAN, sampled=sampled, state="a=1")
    child = own.child()
    assert (child.parent_id, child.trace_id) == (own.span_id, own.trace_id)
    assert read_parent(child.headers()) == SpanName(child.trace_id, child.span_id, "", sampled, "a=1")


def test_a_share_of_traces_is_the_same_for_whoever_asks() -> None:
    ids = [new_trace_id() for _ in range(4000)]
    assert all(is_taken(one, 1.0) for one in ids)
    assert not any(is_taken(one, 0.0) for one in ids)
    few = {one for one in ids if is_taken(one, 0.25)}
    assert few < {one for one in ids if is_taken(one, 0.5)}
    assert 0.2 < len(few) / len(ids) < 0.3
