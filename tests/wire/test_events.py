"""Events keep their bytes, and say what they mean when asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.usage import Usage
from weighbridge.wire.ask import Ask
from weighbridge.wire.events import (
    ErrorPart,
    Event,
    FinishPart,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    UsagePart,
)
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocols.chat import ChatEncoder, chat_answer_parts, chat_parts
from weighbridge.wire.protocols.completions import CompletionEncoder, completion_parts
from weighbridge.wire.sse import EventFramer, event_data
from weighbridge.wire.usage import read_usage


def ask() -> Ask:
    return Ask("", "/v1/chat/completions", {}, "m", "t", stream=True, wants_usage=True)


def sse(*bodies: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies)


PARTS = [
    ReasoningPart("hm"),
    TextPart("Hel"),
    TextPart("lo", 1),
    RefusalPart("no"),
    ToolCallPart(0, "", "id", "f"),
    ToolCallPart(0, '{"a": 1}'),
    FinishPart("stop"),
    UsagePart(Usage(3, 4, 1)),
]


def test_what_is_in_the_same_protocol_passes_untouched_and_unparsed() -> None:
    def never(raw: bytes) -> list[Any]:
        raise AssertionError("parsed")

    encoder = ChatEncoder(ask())
    encoder._parse = never
    raw = b'data: {"odd":  1}\n\n: comment\n\n'
    assert encoder.event(Event(raw, never)) == raw


def test_parts_survive_the_way_through_chunks() -> None:
    def invented(raw: bytes) -> list[Any]:
        return PARTS

    encoder = ChatEncoder(ask())
    written = encoder.event(Event(b"?", invented))
    assert list(chat_parts(written)) == PARTS
    assert encoder.end() == b"data: [DONE]\n\n"
    text = CompletionEncoder(ask()).event(Event(b"?", invented))
    kept = [part for part in PARTS if isinstance(part, TextPart | FinishPart | UsagePart)]
    assert list(completion_parts(text)) == kept


def test_a_last_event_of_another_protocol_ends_the_stream_unless_it_is_an_error() -> None:
    said, failed = [TextPart("so"), FinishPart("stop")], [ErrorPart("gone", "replica_lost")]
    for encoder in (ChatEncoder(ask()), CompletionEncoder(ask())):
        assert encoder.event(Event(b"?", lambda raw: said, last=True)).endswith(b"data: [DONE]\n\n")
        assert encoder.event(Event(b"?", lambda raw: [], last=True)) == b"data: [DONE]\n\n"
        assert b"[DONE]" not in encoder.event(Event(b"?", lambda raw: said))
        assert b"[DONE]" not in encoder.event(Event(b"?", lambda raw: failed, last=True))


def test_parts_become_a_whole_answer_and_come_back() -> None:
    body = ChatEncoder(ask()).whole(WholeAnswer(b"?", lambda raw: PARTS))
    answer = json.loads(body)
    assert answer["choices"][0]["message"]["content"] == "Hel"
    assert answer["choices"][1]["message"]["content"] == "lo"
    assert answer["choices"][0]["finish_reason"] == "stop"
    call = answer["choices"][0]["message"]["tool_calls"][0]
    assert call["id"] == "id"
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert TextPart("lo", 1) in chat_answer_parts(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["choices", "delta", "content", "tool_calls", "index", "usage", "error", "function", "x"]
                ),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_a_server_sends_is_read_or_passed_over(value: Any) -> None:
    raw = b"data: " + json.dumps(value).encode() + b"\n\n"
    chat_parts(raw)
    completion_parts(raw)
    chat_answer_parts(json.dumps(value).encode())


@pytest.mark.parametrize(
    "value",
    [float("inf"), float("nan"), -1, -(10**9), 1e30, 10**400, "seven", True, None, [], {}],
)
def test_a_usage_nobody_can_believe_is_none(value: Any) -> None:
    assert read_usage({"prompt_tokens": value}) is None
    assert read_usage({"prompt_tokens": 5, "completion_tokens": value}, counted=2) == Usage(5, 2)


def test_usage_has_its_cached_part_within_the_prompt() -> None:
    found = read_usage(
        {"prompt_tokens": 5.0, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}}
    )
    assert found == Usage(5, 2, 5)


def test_an_error_event_is_a_part() -> None:
    [part] = chat_parts(sse({"error": {"message": "gone", "code": "replica_lost", "type": "server_error"}}))
    assert part == ErrorPart("gone", "replica_lost")


@given(
    st.lists(
        st.binary(min_size=1, max_size=12).filter(lambda b: b"\n" not in b and b"\r" not in b), max_size=6
    ),
    st.integers(1, 9),
)
def test_framing_gives_the_same_events_whatever_the_pieces(datas: list[bytes], size: int) -> None:
    stream = b"".join(b"data: " + data + b"\n\n" for data in datas)
    framer, out = EventFramer(), b""
    for start in range(0, len(stream), size):
        out += framer.feed(stream[start : start + size])
    assert out + framer.flush() == stream
    assert event_data(stream) == [data.removeprefix(b"") for data in datas]


def test_lines_of_one_event_are_joined_and_comments_left_out() -> None:
    assert event_data(b": hi\n\nevent: x\ndata: a\ndata: b\n\ndata:c\n\n") == [b"a\nb", b"c"]
