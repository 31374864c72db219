"""Anthropic's Messages: what a request means as a chat, and that every answer is a message by the letter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.usage import Usage
from weighbridge.ticket import Ticket
from weighbridge.wire.errors import ApiError
from weighbridge.wire.events import (
    ErrorPart,
    Event,
    FinishPart,
    Part,
    ReasoningPart,
    TextPart,
    ToolCallPart,
    UsagePart,
)
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocols.messages import MessageEncoder, MessagesProtocol, listed
from weighbridge.wire.sse import event_data

Body = dict[str, Any]
HI = {"role": "user", "content": "hi"}
PROTOCOL = MessagesProtocol()


def read(*turns: Body, **fields: Any) -> Body:
    """The chat that a request means."""
    body = {"model": "m", "max_tokens": 9, "messages": list(turns) or [HI], **fields}
    ask = PROTOCOL.read(msgspec.json.encode(body))
    assert ask.path == "/v1/chat/completions"
    assert msgspec.json.decode(ask.raw) == {
        name: msgspec.json.decode(raw) for name, raw in ask.fields.items()
    }
    found: Body = msgspec.json.decode(ask.raw)
    return found


def user(*blocks: Body) -> Body:
    return {"role": "user", "content": list(blocks)}


def text(words: str) -> Body:
    return {"type": "text", "text": words}


# -- requests --------------------------------------------------------------------------------------------


def test_a_short_request_is_a_short_chat() -> None:
    assert read() == {"model": "m", "messages": [HI], "max_tokens": 9}


def test_a_stream_asks_for_usage_which_its_end_tells() -> None:
    ask = PROTOCOL.read(
        msgspec.json.encode({"model": "m", "max_tokens": 9, "messages": [HI], "stream": True})
    )
    assert (ask.stream, ask.wants_usage, ask.max_tokens, ask.model) == (True, True, 9, "m")


def test_sampling_has_other_names() -> None:
    chat = read(temperature=0.5, top_k=4, top_p=0.0, stop_sequences=["a", "b"], metadata={"user_id": "jane"})
    assert chat["stop"] == ["a", "b"]
    assert (chat["temperature"], chat["top_k"]) == (0.5, 4)
    assert 0 < chat["top_p"] < 1e-6
    assert "jane" not in json.dumps(chat)


def test_who_a_client_works_for_is_no_tenant() -> None:
    body = {"model": "m", "max_tokens": 9, "messages": [HI], "metadata": {"user_id": "jane"}}
    assert PROTOCOL.read(msgspec.json.encode(body)).user is None


def test_a_round_of_tools() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "weigh", "input": {"what": "ø"}}
    answer = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, text("ok"), use],
    }
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("3 t")], "is_error": True}
    schema = {"type": "object", "properties": {"what": {"type": "string"}}}
    tool = {
        "name": "weigh",
        "description": "d",
        "input_schema": schema,
        "cache_control": {"type": "ephemeral"},
    }
    choice = {"type": "any", "disable_parallel_tool_use": True}
    chat = read(HI, answer, user(text("and?"), result), tools=[tool], tool_choice=choice)
    call = {"id": "toolu_1", "type": "function", "function": {"name": "weigh", "arguments": '{"what": "ø"}'}}
    assert chat["messages"] == [
        HI,
        {"role": "assistant", "content": "ok", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: 3 t"},
        {"role": "user", "content": "and?"},
    ]
    assert chat["tools"] == [
        {"type": "function", "function": {"name": "weigh", "parameters": schema, "description": "d"}}
    ]
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == ("required", False)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "weigh"}, {"type": "function", "function": {"name": "weigh"}}),
    ],
)
def test_choices_of_tools(choice: Body, wanted: Any) -> None:
    tool = {"name": "weigh", "input_schema": {"type": "object"}, "type": "custom"}
    assert read(tools=[tool], tool_choice=choice)["tool_choice"] == wanted


def test_turns_of_one_side_are_one_turn() -> None:
    chat = read(HI, user(text("a"), text("b")), {"role": "assistant", "content": "c"}, HI)
    assert [one["role"] for one in chat["messages"]] == ["user", "assistant", "user"]
    assert chat["messages"][0]["content"] == [text("hi"), text("a"), text("b")]


def test_system_comes_first_as_a_text_or_as_parts() -> None:
    assert read(system="be kind")["messages"][0] == {"role": "system", "content": "be kind"}
    parts = [text("be kind"), text("be brief")]
    marked = [{**one, "cache_control": {"type": "ephemeral"}} for one in parts]
    assert read(system=marked)["messages"][0] == {"role": "system", "content": parts}
    assert read(system="")["messages"] == [HI]


def test_pictures_go_on_as_a_chat_has_them() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    shown = read(user({"type": "image", "source": source}, text("what?")))["messages"][0]["content"]
    assert shown == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, text("what?")]
    linked = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [linked]}
    assert read(user(result))["messages"][0]["content"][0]["image_url"] == {"url": "https://x/y.png"}


def test_a_form_and_an_effort() -> None:
    schema = {"type": "object"}
    chat = read(output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "max"})
    assert chat["response_format"]["json_schema"]["schema"] == schema
    assert chat["reasoning_effort"] == "xhigh"
    assert read(thinking={"type": "disabled"})["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in read(thinking={"type": "adaptive"})


def test_an_answer_that_has_begun_goes_on() -> None:
    chat = read(HI, {"role": "assistant", "content": "The"})
    assert chat["messages"][-1] == {"role": "assistant", "content": "The"}
    assert (chat["continue_final_message"], chat["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in read(HI)


NAMED = {"name": "t", "input_schema": {}}
REFUSED: dict[str, tuple[list[Body], Body, str]] = {
    "a tool of the provider": ([HI], {"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0]"),
    "a described tool of the provider": (
        [HI],
        {"tools": [{"type": "computer_20250124", "name": "c", "input_schema": {}}]},
        "tools[0]",
    ),
    "a tool without a schema": ([HI], {"tools": [{"name": "w"}]}, "tools[0]"),
    "servers": ([HI], {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    "a container": ([HI], {"container": "c"}, "container"),
    "a region": ([HI], {"inference_geo": "us"}, "inference_geo"),
    "a document": ([user({"type": "document", "source": {}})], {}, "messages[0].content[0]"),
    "a file": ([user({"type": "image", "source": {"type": "file", "file_id": "f"}})], {}, "messages[0]"),
    "a text that is none": ([user({"type": "text", "text": 3})], {}, "messages[0].content[0].text"),
    "a block that is none": ([user({"type": "tool_result", "tool_use_id": "t", "content": ["x"]})], {}, "content"),
    "a call without its result": (
        [HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "w", "input": {}}]}],
        {},
        "messages",
    ),
    "a picture as system": (
        [HI],
        {"system": [{"type": "image", "source": {"type": "url", "url": "http://h/p.png"}}]},
        "system[0]",
    ),
    "no name for a tool": ([HI], {"tools": [NAMED], "tool_choice": {"type": "tool"}}, "name"),
    "another role": ([{"role": "tool", "content": "x"}], {}, "messages[0].role"),
    "no turn": ([{"role": "user"}], {}, "messages[0]"),
    "no tokens": ([HI], {"max_tokens": 0}, "max_tokens"),
    "too hot": ([HI], {"temperature": 1.5}, "temperature"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_an_error_that_names_it(name: str) -> None:
    turns, fields, says = REFUSED[name]
    with pytest.raises(ApiError) as found:
        read(*turns, **fields)
    assert found.value.status == 400
    assert says in str(found.value)


KINDS = [
    (400, 400, "invalid_request_error"),
    (401, 401, "authentication_error"),
    (403, 403, "permission_error"),
    (404, 404, "not_found_error"),
    (413, 413, "request_too_large"),
    (429, 429, "rate_limit_error"),
    (500, 500, "api_error"),
    (502, 502, "api_error"),
    (503, 529, "overloaded_error"),
    (504, 504, "timeout_error"),
]


@pytest.mark.parametrize(("status", "shown", "kind"), KINDS)
def test_errors_have_its_kinds(status: int, shown: int, kind: str) -> None:
    error = ApiError(status, "no")
    assert PROTOCOL.status(error) == shown
    wanted = {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "abc"}
    assert json.loads(PROTOCOL.error(error, "abc")) == wanted
    assert json.loads(PROTOCOL.error(error))["request_id"] is None


def test_models_are_listed_in_its_form() -> None:
    page = listed([{"id": "m", "created": 0, "max_model_len": 9}, {"id": "n", "created": 0}])
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("m", "n", False)
    assert page["data"][0]["created_at"] == "1970-01-01T00:00:00Z"
    assert listed([])["first_id"] is None


# -- answers ---------------------------------------------------------------------------------------------


def encoder() -> MessageEncoder:
    made = MessageEncoder("m")
    made.begin(Ticket("ab12", "t", "m", "", 7, 9))
    return made


def streamed(parts: Sequence[Sequence[Part]], last: bool = True) -> list[Body]:
    """The events of a stream that came in these pieces."""
    writer, out = encoder(), b""
    for index, piece in enumerate(parts):
        out += writer.event(Event(b"x", lambda raw, piece=piece: piece, last and index == len(parts) - 1))
    if not last:
        out += writer.end()
    return checked(out)


def checked(out: bytes) -> list[Body]:
    """Events whose names are their types, decoded."""
    found = [json.loads(data) for data in event_data(out)]
    assert [line[7:] for line in out.decode().split("\n") if line.startswith("event: ")] == [
        e["type"] for e in found
    ]
    return found


def message_of(events: Sequence[Body]) -> Body:
    """The message that a client puts together, by the letter of the protocol. Fails where a stream is none."""
    first, *rest = events
    assert first["type"] == "message_start"
    message: Body = first["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    open_block: int | None = None
    inputs: dict[int, str] = {}
    for event in rest[:-2]:
        match event["type"]:
            case "content_block_start":
                assert open_block is None
                assert event["index"] == len(message["content"])
                open_block = event["index"]
                message["content"].append(event["content_block"])
            case "content_block_stop":
                assert event["index"] == open_block
                open_block = None
            case "content_block_delta":
                assert event["index"] < len(message["content"])
                add_to(message["content"][event["index"]], event["delta"], inputs, event["index"])
            case kind:
                raise AssertionError(kind)
    assert open_block is None
    ending, stop = rest[-2:]
    assert (ending["type"], stop) == ("message_delta", {"type": "message_stop"})
    for index, json_text in inputs.items():
        message["content"][index]["input"] = json_text
    return {**message, **ending["delta"], "usage": ending["usage"]}


def add_to(block: Body, delta: Body, inputs: dict[int, str], index: int) -> None:
    if delta["type"] == "input_json_delta":
        assert block["type"] == "tool_use"
        inputs[index] = inputs.get(index, "") + delta["partial_json"]
        return
    name = {"text_delta": "text", "thinking_delta": "thinking"}[delta["type"]]
    assert block["type"] == name
    block[name] += delta[name]


def test_a_stream_by_the_letter() -> None:
    events = streamed(
        [
            [],
            [ReasoningPart("h"), ReasoningPart("m")],
            [TextPart("a"), TextPart("b")],
            [ToolCallPart(0, "", "c1", "weigh"), ToolCallPart(0, '{"x"'), ToolCallPart(0, ": 1}")],
            [ToolCallPart(1, "{}", "c2", "stop")],
            [FinishPart("tool_calls")],
            [UsagePart(Usage(10, 5, 4, 1))],
        ]
    )
    assert [event["type"] for event in events][:3] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
    ]
    assert events[0]["message"]["id"] == "msg_ab12"
    assert events[0]["message"]["usage"]["input_tokens"] == 7
    message = message_of(events)
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "ab"},
        {"type": "tool_use", "id": "c1", "name": "weigh", "input": '{"x": 1}'},
        {"type": "tool_use", "id": "c2", "name": "stop", "input": "{}"},
    ]
    assert message["stop_reason"] == "tool_use"
    assert message["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 1,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
    }


def test_an_empty_answer_is_a_message_too() -> None:
    assert message_of(streamed([[FinishPart("stop")]]))["content"] == []
    assert message_of(streamed([], last=False))["stop_reason"] == "end_turn"


def test_a_call_waits_for_its_name_and_a_late_piece_finds_its_block() -> None:
    pieces = [
        ToolCallPart(0, '{"a"', "c1"),
        ToolCallPart(0, ":", "", "weigh"),
        ToolCallPart(1, "{}", "c2", "stop"),
    ]
    message = message_of(streamed([[*pieces, ToolCallPart(0, "1}"), FinishPart("stop")]]))
    assert [block["input"] for block in message["content"]] == ['{"a":1}', "{}"]
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (FinishPart("stop"), "end_turn", None),
        (FinishPart("length"), "max_tokens", None),
        (FinishPart("content_filter"), "refusal", None),
        (FinishPart("stop", stopped_by="END"), "stop_sequence", "END"),
    ],
)
def test_why_an_answer_ended(finish: FinishPart, reason: str, sequence: str | None) -> None:
    message = message_of(streamed([[TextPart("x"), finish]]))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_an_error_is_the_last_event() -> None:
    events = streamed([[TextPart("x")], [ErrorPart("broke"), TextPart("y")], [FinishPart("stop")]])
    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "broke"}}
    assert [event["type"] for event in events].count("content_block_delta") == 1


def test_a_silent_stream_is_kept_open_by_pings() -> None:
    assert checked(encoder().keep_alive) == [{"type": "ping"}]


def test_an_answer_in_one_piece_can_end_a_stream_that_was_kept_open() -> None:
    parts = [TextPart("all"), FinishPart("stop"), UsagePart(Usage(2, 1))]
    events = checked(encoder().late(WholeAnswer(b"x", lambda raw: parts)))
    assert message_of(events)["content"] == [{"type": "text", "text": "all"}]


WORDS = st.text(max_size=4)
CALLS = st.tuples(st.integers(0, 3), WORDS)
SAID = st.one_of(WORDS.map(TextPart), WORDS.map(ReasoningPart), CALLS, st.just(TextPart("other", 1)))
ENDS = st.sampled_from([FinishPart("stop"), FinishPart("length"), FinishPart("tool_calls")])


@given(st.lists(st.lists(SAID, max_size=3), max_size=8), ENDS)
def test_whatever_comes_is_a_message_with_all_of_it(pieces: list[list[Any]], end: FinishPart) -> None:
    begun: set[int] = set()

    def part(one: Any) -> Part:
        if not isinstance(one, tuple):
            made: Part = one
            return made
        index, arguments = one
        name = "" if index in begun else f"tool{index}"
        begun.add(index)
        return ToolCallPart(index, arguments, name and f"c{index}", name)

    parts = [[part(one) for one in piece] for piece in pieces]
    flat = [one for piece in parts for one in piece]
    message = message_of(streamed([*parts, [end]]))
    blocks = message["content"]
    for kind, part_type in (("text", TextPart), ("thinking", ReasoningPart)):
        said = [one.text for one in flat if isinstance(one, part_type) and not one.choice]
        assert "".join(block[kind] for block in blocks if block["type"] == kind) == "".join(said)
    calls = {block["name"]: block["input"] or "" for block in blocks if block["type"] == "tool_use"}
    for index in begun:
        told = [one.arguments for one in flat if isinstance(one, ToolCallPart) and one.index == index]
        assert calls[f"tool{index}"] == "".join(told)
    assert len(calls) == len(begun)


@pytest.mark.parametrize("arguments", [r'{"a": "\ud800"}', r'{"\udc00": 1}', "[1]", '{"a": ' * 2000, "x"])
def test_arguments_that_are_no_object_or_cannot_be_written_are_shown_as_they_came(arguments: str) -> None:
    parts: list[Part] = [ToolCallPart(0, arguments, "c", "weigh"), FinishPart("tool_calls")]
    told = json.loads(encoder().whole(WholeAnswer(b"x", lambda raw: parts)))
    assert told["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_a_whole_message_says_what_its_stream_says() -> None:
    parts: list[Part] = [
        ReasoningPart("hm"),
        TextPart("ab"),
        ToolCallPart(0, '{"x": 1}', "c1", "weigh"),
        ToolCallPart(1, '{"x": ', "c2", "weigh"),
        FinishPart("length"),
        UsagePart(Usage(10, 5, 4)),
    ]
    whole = json.loads(encoder().whole(WholeAnswer(b"x", lambda raw: parts)))
    told = message_of(streamed([parts]))
    for block in told["content"]:
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(block["input"])
            except ValueError:
                block["input"] = {"INVALID_JSON": block["input"]}
    assert whole == told
