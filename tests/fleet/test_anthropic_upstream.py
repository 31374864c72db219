"""Servers that speak Anthropic's Messages behind clients of every protocol: text, tools, thoughts, usage, errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.fleet.anthropic_server import CALLS, TEXT, USAGE, AnthropicServer, events, message
from tests.fleet.backends import Front, fleet, serving
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.chat import chat_answer_parts, chat_parts
from weighbridge.wire.protocols.message_upstream import MessageEvents, chat_answer, message_request
from weighbridge.wire.protocols.messages import MessagesProtocol

WEIGH = {
    "name": "weigh",
    "description": "Weighs.",
    "parameters": {"type": "object", "properties": {"thing": {"type": "string"}}},
}
TOOLS = [{"type": "function", "function": WEIGH}]
ALL = USAGE["input_tokens"] + USAGE["cache_read_input_tokens"] + USAGE["cache_creation_input_tokens"]


@asynccontextmanager
async def behind(server: AnthropicServer, *, route: bool = False) -> AsyncIterator[Front]:
    async with serving(server) as url:
        replica = f"{{name: claude, url: '{url}', dialect: anthropic, model: claude-x, key: k-ant}}"
        config = f"health: {{interval: 0.05}}\nmodels:\n  m:\n    replicas: [{replica}]\n"
        if route:
            config += "  far:\n    replicas: [" + replica.replace("claude,", "other,") + "]\n"
            config += "routes:\n  auto:\n    edge: {model: m}\n    cloud: {model: far}\n    cascade: {enabled: false}\n"
        async with fleet(config=config) as front:
            yield front


def translated(**chat: Any) -> dict[str, Any]:
    fields = {"model": "m", "messages": [{"role": "user", "content": "a"}]} | chat
    made: dict[str, Any] = json.loads(message_request(json.dumps(fields).encode()))
    return made


# -- requests --------------------------------------------------------------------------------------------


def test_a_chat_with_all_it_can_have_becomes_a_request_for_a_message() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": '{"thing": "a"}'}}
    picture = "data:image/png;base64,aGk="
    made = translated(
        messages=[
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {"type": "image_url", "image_url": {"url": picture}},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "12 g"},
            {"role": "tool", "tool_call_id": "c2", "content": ""},
            {"role": "user", "content": "And?"},
        ],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "weigh"}},
        parallel_tool_calls=False,
        max_completion_tokens=77,
        temperature=1.7,
        top_p=0.5,
        stop="END",
        seed=3,
        reasoning_effort="minimal",
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    )
    used = {"type": "tool_use", "name": "weigh", "input": {"thing": "a"}}
    assert made == {
        "model": "m",
        "system": [{"type": "text", "text": "Be brief."}],
        "max_tokens": 77,
        "temperature": 1.0,
        "top_p": 0.5,
        "stop_sequences": ["END"],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
                    },
                ],
            },
            {"role": "assistant", "content": [{**used, "id": "c1"}, {**used, "id": "c2"}]},
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "c1",
                        "content": [{"type": "text", "text": "12 g"}],
                    },
                    {"type": "tool_result", "tool_use_id": "c2", "content": []},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
        "tools": [{"name": "weigh", "description": "Weighs.", "input_schema": WEIGH["parameters"]}],
        "tool_choice": {"type": "tool", "name": "weigh", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"},
    }


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}, {"logit_bias": {"1": 2}}],
)
def test_what_the_api_cannot_do_is_refused_and_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        translated(**fields)
    assert (refused.value.status, refused.value.param) == (400, next(iter(fields)))


SAID = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
ARGUMENTS = st.dictionaries(SAID, st.one_of(SAID, st.integers(-9, 9), st.none()), max_size=3)
TURNS = st.lists(
    st.one_of(
        st.builds(lambda text: [{"role": "user", "content": [{"type": "text", "text": text}]}], SAID),
        st.builds(
            lambda text, given: [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": text},
                        {"type": "tool_use", "id": "t", "name": "f", "input": given},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [{"type": "text", "text": text}],
                        }
                    ],
                },
            ],
            SAID,
            ARGUMENTS,
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(TURNS)
def test_messages_that_pass_through_a_chat_are_what_they_were(parts: list[list[dict[str, Any]]]) -> None:
    turns = [turn for part in parts for turn in part]
    expected: list[dict[str, Any]] = []
    for turn in turns:
        if expected and expected[-1]["role"] == turn["role"]:
            blocks = [*expected[-1]["content"], *turn["content"]]
            blocks.sort(key=lambda block: block["type"] != "tool_result")  # what tools said comes first
            expected[-1] = {**turn, "content": blocks}
        else:
            expected.append(turn)
    asked = {"model": "m", "max_tokens": 5, "messages": turns}
    ask = MessagesProtocol().read(json.dumps(asked).encode())
    assert json.loads(message_request(ask.as_body()))["messages"] == expected


# -- answers ---------------------------------------------------------------------------------------------


def streamed(blocks: list[dict[str, Any]], stop: str, by: str | None = None) -> bytes:
    read = MessageEvents(1)
    told = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events(blocks, stop, by)]
    return b"".join(read.read(one) for one in told)


@pytest.mark.parametrize("blocks", [TEXT, CALLS, []])
@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
    ],
)
def test_a_stream_says_what_the_whole_says(blocks: list[dict[str, Any]], stop: str, finish: str) -> None:
    answer = ChatCompletion.model_validate_json(
        chat_answer(json.dumps(message(blocks, stop)).encode(), 1), strict=True
    )
    assert answer.choices[0].finish_reason == finish
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (ALL, USAGE["output_tokens"])
    assert answer.usage.prompt_tokens_details
    assert answer.usage.prompt_tokens_details.cached_tokens == USAGE["cache_read_input_tokens"]
    text, thought, calls, usage = "", "", dict[int, list[str]](), None
    raw = streamed(blocks, stop)
    assert raw.endswith(b"data: [DONE]\n\n")
    for data in raw.split(b"\n\n")[:-2]:
        if data.startswith(b":"):
            continue
        chunk = ChatCompletionChunk.model_validate_json(data.removeprefix(b"data: "), strict=True)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or ():
                assert call.function
                mine = calls.setdefault(call.index, [call.id or "", call.function.name or "", ""])
                mine[2] += call.function.arguments or ""
            last = choice.finish_reason or None
    said = answer.choices[0].message
    assert (text, thought) == (said.content or "", getattr(said, "reasoning_content", ""))
    whole = [[one.id, one.function.name, json.loads(one.function.arguments)] for one in said.tool_calls or ()]  # type: ignore[union-attr]
    assert [[id, name, json.loads(given or "{}")] for id, name, given in calls.values()] == whole
    assert usage == answer.usage
    assert last == finish
    assert chat_parts(raw)
    assert chat_answer_parts(chat_answer(json.dumps(message(blocks, stop)).encode(), 1))


@given(
    st.binary(max_size=80)
    | st.builds(
        lambda v: json.dumps(v).encode(),
        st.recursive(
            st.none() | st.text(max_size=3) | st.integers(),
            lambda c: (
                st.lists(c, max_size=2)
                | st.dictionaries(st.sampled_from(["type", "content", "delta", "index"]), c, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_what_is_no_message_is_said_to_be_none(body: bytes) -> None:
    for read in (lambda: chat_answer(body, 1), lambda: MessageEvents(1).read(b"data: " + body + b"\n\n")):
        with suppress(ValueError):  # and nothing else
            read()


# -- over sockets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["m", "auto"])
async def test_clients_of_every_protocol_are_answered(model: str) -> None:
    server = AnthropicServer(CALLS, "tool_use")
    async with behind(server, route=True) as front:
        async with front.post(model=model, tools=TOOLS) as answer:
            chat = ChatCompletion.model_validate_json(await answer.read())
            if model == "m":
                assert answer.headers["x-weighbridge-replica-request-id"] == "req_1"
        assert [one.function.name for one in chat.choices[0].message.tool_calls or ()] == ["weigh", "now"]  # type: ignore[union-attr]
        found = await front.stream(model=model, tools=TOOLS, stream_options={"include_usage": True})
        assert found[-1] == "[DONE]"
        assert found[-2]["usage"]["prompt_tokens"] == ALL
        ask = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "a"}]}
        tools = [{"name": "weigh", "input_schema": WEIGH["parameters"]}]
        async with front.client.post(front.url + "/v1/messages", json={**ask, "tools": tools}) as answer:
            message = await answer.json()
        assert [one["type"] for one in message["content"]] == [one["type"] for one in CALLS]
        assert message["content"][2:] == CALLS[2:]
        assert message["stop_reason"] == "tool_use"
        assert message["usage"] == USAGE
        async with front.client.post(
            front.url + "/v1/responses", json={"model": model, "input": "a"}
        ) as answer:
            response = await answer.json()
        assert [one["type"] for one in response["output"]] == [
            "reasoning",
            "message",
            "function_call",
            "function_call",
        ]
        async with front.client.post(
            front.url + "/api/chat", json={"model": model, "messages": ask["messages"], "stream": False}
        ) as answer:
            ollama = await answer.json()
        assert ollama["message"]["content"] == "Let me see."
        await front.idle()
    assert set(server.paths) == {"/v1/messages"}
    assert {one["x-api-key"] for one in server.headers} == {"k-ant"}
    assert not any("authorization" in one for one in server.headers)


async def test_errors_come_as_openais_and_an_overload_is_tried_again() -> None:
    server = AnthropicServer(statuses=[400, 529, 200])
    async with behind(server) as front:
        async with front.post() as answer:
            assert (answer.status, (await answer.json())["error"]) == (
                400,
                {
                    "message": "max_tokens: too many",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_request_error",
                },
            )
        async with front.post() as answer:
            assert answer.status == 200, await answer.text()
        async with front.post("/v1/completions", prompt="a") as answer:
            assert answer.status == 400  # nobody can
        server.breaks = True
        found = await front.stream()
        (error,) = [one["error"] for one in found if "error" in one]
        assert error["message"] == "Overloaded"
        await front.idle()
    assert len(server.asked) == 4


async def test_a_wrong_key_is_said_without_it() -> None:
    server = AnthropicServer(key="another")
    async with behind(server) as front, front.post() as answer:
        assert answer.status in (429, 502, 503)  # it is left alone for a while
        assert "k-ant" not in await answer.text()
