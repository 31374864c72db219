"""Streams: what is refused before the first byte is an answer like any other, and what comes is whole."""

from __future__ import annotations

from tests.doors.client import Reply
from tests.doors.rows.endpoints import JSON, NO_MODEL, STREAM
from tests.doors.rows.extension import MISSED
from tests.doors.table import GONE, Row, Want, at, bad, chat, ok


def of_two_choices(reply: Reply) -> bool:
    """Two choices, each with one finish, and usage once behind them."""
    *chunks, last = reply.events
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    finished = [choice["index"] for choice in choices if choice["finish_reason"]]
    told = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return (
        last == "[DONE]"
        and sorted(finished) == [0, 1]
        and [usage["completion_tokens"] for usage in told] == [8]
    )


def begins_with_a_role(reply: Reply) -> bool:
    return bool(reply.events[0]["choices"][0]["delta"].get("role") == "assistant")


def of_one_object(reply: Reply) -> bool:
    *chunks, _ = reply.events
    return {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and all(
        isinstance(chunk["created"], int) and chunk["model"] for chunk in chunks
    )


def streamed(name: str, want: Want, **fields: object) -> Row:
    return Row(name, want, chat(stream=True, **fields))


STREAMS = [
    streamed("a stream begins with a role", ok(tokens=4, body=begins_with_a_role)),
    streamed("a stream is of one kind of object", ok(tokens=4, body=of_one_object)),
    streamed(
        "a stream of two choices",
        ok(tokens=8, headers=STREAM, body=of_two_choices),
        n=2,
        temperature=1,
        seed=1,
        stream_options={"include_usage": True},
    ),
    streamed("a stream with a wrong field", bad("temperature", headers=JSON), temperature=9),
    streamed("a stream with too many stops", bad("stop", headers=JSON), stop=["a"] * 17),
    streamed("a stream of no messages", bad("messages", headers=JSON), messages=[]),
    streamed("a stream of an unknown model", NO_MODEL, model="nobody"),
    streamed(
        "a stream with a misspelt restriction", bad("weighbridge", headers=JSON), weighbridge={"label": ["a"]}
    ),
    streamed(
        "a stream too late",
        MISSED,
        weighbridge={"deadline_ms": 0.001, "placement": "only_edge"},
    ),
    streamed(
        "a stream of a prompt longer than the context",
        bad(code="context_length_exceeded", headers=JSON),
        messages=[{"role": "user", "content": "weigh it " * 2000}],
        weighbridge={"placement": "only_edge"},
    ),
    Row(
        "a stream that must leave",
        ok(left=True, placement="cloud"),
        chat(stream=True, weighbridge={"placement": "only_cloud"}),
        differs=at("single gateway", "one place", bad("weighbridge", headers=JSON)),
    ),
    Row("an answer of one token", ok(tokens=1), chat(max_tokens=1)),
    Row("an answer without a bound", ok(), chat(max_tokens=GONE, stop="e")),
]
