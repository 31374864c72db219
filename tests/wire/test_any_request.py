"""Whatever a client of Anthropic or Ollama sends: it is a request, or an error that says what is wrong with it."""

from __future__ import annotations

import copy
import json
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.wire.ask import Ask
from weighbridge.wire.errors import ApiError, as_api_error
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols.messages import MessagesProtocol
from weighbridge.wire.protocols.ollama import OllamaChat, OllamaEmbed, OllamaEmbeddings, OllamaGenerate
from weighbridge.wire.protocols.responses import ResponsesProtocol

USER = {"role": "user", "content": "weigh"}
SCHEMA = {"type": "object", "properties": {"to": {"type": "string"}}}
RESULT = [{"type": "text", "text": "3 t"}, {"type": "image", "source": {"type": "url", "url": "https://x/y"}}]
PICTURE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
ANSWER = [
    {"type": "thinking", "thinking": "hm", "signature": "s"},
    {"type": "redacted_thinking", "data": "x"},
    {"type": "text", "text": "ok", "cache_control": {"type": "ephemeral"}},
    {"type": "tool_use", "id": "t", "name": "send", "input": {"to": "x"}},
]
CALL = {"id": "c", "function": {"name": "send", "arguments": {"to": "x"}}}
TURN = {"role": "assistant", "content": "x", "thinking": "hm", "tool_calls": [CALL]}

#: A request with everything in it, for each protocol.
FULL: list[tuple[WireProtocol, dict[str, Any]]] = [
    (
        MessagesProtocol(),
        {
            "model": "m", "max_tokens": 9, "stream": True, "temperature": 0.5, "top_p": 0.5, "top_k": 3,
            "messages": [
                USER,
                {"role": "assistant", "content": ANSWER},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": RESULT}]},
                {"role": "user", "content": [{"type": "image", "source": PICTURE}]},
            ],
            "system": [{"type": "text", "text": "be kind"}], "stop_sequences": ["x"],
            "tools": [{"name": "send", "description": "d", "input_schema": SCHEMA, "strict": True}],
            "tool_choice": {"type": "tool", "name": "send", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 9}, "metadata": {"user_id": "u"},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
            "mcp_servers": [], "container": None, "weighbridge": {"labels": ["x"]},
        },
    ),
    (
        OllamaChat(),
        {
            "model": "m:latest", "messages": [USER, TURN, {"role": "tool", "tool_name": "send", "content": "3 t"}],
            "tools": [{"type": "function", "function": {"name": "send", "parameters": SCHEMA}}], "format": SCHEMA,
            "options": {"temperature": 0.5, "num_predict": 3, "stop": ["x"], "mirostat": 0, "num_ctx": 9},
            "think": True, "keep_alive": "5m", "stream": False, "weighbridge": {"labels": ["x"]},
        },
    ),
    (
        OllamaGenerate(),
        {
            "model": "m", "prompt": "x", "system": "y", "images": ["iVBORw0KGgo="], "raw": False, "format": "json",
            "think": "low", "options": {"seed": 1}, "context": [], "suffix": "", "template": "", "keep_alive": 0,
        },
    ),
    (OllamaEmbed(), {"model": "m", "input": ["a", "b"], "truncate": True, "dimensions": 3, "options": {}}),
    (OllamaEmbeddings(), {"model": "m", "prompt": "a", "keep_alive": -1}),
]  # fmt: skip

CALLS = [{"function": {"name": "send", "arguments": {}}}] * 40_000
SAID = {"role": "assistant", "content": "x" * 50}
TOLD = {"role": "tool", "tool_name": "other", "content": "x"}
MANY: list[tuple[WireProtocol, dict[str, Any]]] = [
    (MessagesProtocol(), {"model": "m", "max_tokens": 1, "messages": [USER, *[SAID] * 40_000, USER]}),
    (ResponsesProtocol(), {"model": "m", "input": [SAID] * 40_000}),
    (
        OllamaChat(),
        {"model": "m", "messages": [{"role": "assistant", "tool_calls": CALLS}, *[TOLD] * 40_000]},
    ),
]

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 1 << 70), st.floats(), st.text(max_size=3), st.just("text")
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all that is inside of a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inside for found in [(*path, key), *places(one, (*path, key))]]


def changed(body: dict[str, Any], path: tuple[Any, ...], to: Any) -> dict[str, Any]:
    made = at = copy.deepcopy(body)
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return made


@pytest.mark.parametrize(("protocol", "body"), FULL, ids=[one.name for one, _ in FULL])
def test_a_request_with_everything_in_it_is_read(protocol: WireProtocol, body: dict[str, Any]) -> None:
    assert protocol.read(msgspec.json.encode(body)).model == "m"


@given(st.data(), st.sampled_from(FULL))
def test_a_request_with_anything_anywhere_is_read_or_refused(
    data: st.DataObject, asked: tuple[WireProtocol, dict[str, Any]]
) -> None:
    protocol, body = asked
    for path in data.draw(st.lists(st.sampled_from(places(body)), min_size=1, max_size=2, unique=True)):
        with suppress(TypeError, KeyError, IndexError):  # what was changed first may be no place any more
            body = changed(body, path, data.draw(ANYTHING))
    read = outcome(protocol, json.dumps(body).encode())
    if isinstance(read, ApiError):
        assert read.status == 400
        assert str(read)
    else:
        assert read.answer is not None or msgspec.json.decode(read.raw)


@pytest.mark.parametrize(("protocol", "body"), MANY, ids=[one.name for one, _ in MANY])
def test_many_small_turns_take_no_more_time_each(protocol: WireProtocol, body: dict[str, Any]) -> None:
    written = json.dumps(body).encode()
    began = time.process_time()
    assert isinstance(outcome(protocol, written), Ask)
    assert time.process_time() - began < 4, "40,000 of them took 12 to 30 s when each looked at all before it"


def test_turns_of_one_side_lose_none_of_their_calls_and_thoughts() -> None:
    def turn(name: str) -> dict[str, Any]:
        call = {"type": "tool_use", "id": name, "name": "send", "input": {}}
        return {"role": "assistant", "content": [{"type": "thinking", "thinking": name}, call]}

    body = {"model": "m", "max_tokens": 1, "messages": [USER, turn("a"), turn("b"), USER]}
    read = MessagesProtocol().read(json.dumps(body).encode())
    said = msgspec.json.decode(read.raw)["messages"][1]
    assert [call["id"] for call in said["tool_calls"]] == ["a", "b"]
    assert said["reasoning_content"] == "a\nb"


@pytest.mark.parametrize("depth", range(880, 1000, 4))
def test_whatever_is_nested_however_deep_is_read_or_refused(depth: int) -> None:
    schema = '{"properties":{"a":' * (depth // 2) + "{}" + "}}" * (depth // 2)
    call = {"function": {"name": "send", "arguments": "@"}}
    chat = {"model": "m", "messages": [USER, {"role": "assistant", "tool_calls": [call]}]}
    tool = {"type": "tool_use", "id": "t", "name": "send", "input": "@"}
    turns = {
        "model": "m",
        "max_tokens": 1,
        "messages": [USER, {"role": "assistant", "content": [tool]}, USER],
    }
    for protocol, body in (
        (OllamaChat(), chat),
        (OllamaChat(), chat | {"format": "@"}),
        (MessagesProtocol(), turns),
    ):
        written = json.dumps(body).replace('"@"', schema).encode()
        refused = outcome(protocol, written)
        assert isinstance(refused, Ask) or refused.status == 400


@pytest.mark.parametrize("name", [[1], {"a": 1}, None, 7])
def test_a_tool_that_may_be_called_has_a_name(name: Any) -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": name}]}
    tool = {"type": "function", "name": "send"}
    body = {"model": "m", "input": "x", "tools": [tool], "tool_choice": choice}
    refused = outcome(ResponsesProtocol(), json.dumps(body).encode())
    assert isinstance(refused, ApiError)
    assert refused.param == "tool_choice"


@pytest.mark.parametrize("kind", ["x" * 9000, [["x"] * 9000], {"a": "x" * 9000}, 7, None])
def test_what_is_refused_is_not_told_back_at_length(kind: Any) -> None:
    blocks = [{"type": kind}]
    for protocol, body in (
        (MessagesProtocol(), {"max_tokens": 1, "messages": [{"role": "user", "content": blocks}]}),
        (MessagesProtocol(), {"max_tokens": 1, "messages": [{"role": "assistant", "content": blocks}, USER]}),
        (MessagesProtocol(), {"max_tokens": 1, "messages": [USER], "system": blocks}),
        (ResponsesProtocol(), {"input": [{"role": "user", "content": blocks}]}),
        (ResponsesProtocol(), {"input": blocks}),
        (ResponsesProtocol(), {"input": "x", "tools": blocks}),
    ):
        refused = outcome(protocol, json.dumps({"model": "m", **body}).encode())
        assert isinstance(refused, ApiError)
        assert len(str(refused)) < 300


def outcome(protocol: WireProtocol, body: bytes) -> Ask | ApiError:
    try:
        return protocol.read(body)
    except (ApiError, RecursionError) as error:
        return as_api_error(error)
