"""Redaction reaches every text of Anthropic's and Ollama's requests, and what is put back reaches their answers."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.fleet.backends import clients
from tests.fleet.backends import serving as serving_app
from tests.routes.routes import routed
from tests.routes.stub import Stub, serving
from weighbridge.routes.policy import Residency, ResidencyPolicy
from weighbridge.server.app import create_app
from weighbridge.server.gateway.service import GatewayService

REDACT = ResidencyPolicy(default=Residency.REDACT)
SECRET = "alice.smith@example.com"
MAIL = f"mail {SECRET} now"
SCHEMA = {"type": "object", "properties": {"to": {"type": "string", "description": MAIL}}}
USER = {"role": "user", "content": "hello"}

Body = dict[str, Any]


def message(*turns: Body, **fields: Any) -> tuple[str, Body]:
    return "/v1/messages", {"max_tokens": 50, "messages": [*turns, USER], **fields}


def chat(*turns: Body, **fields: Any) -> tuple[str, Body]:
    return "/api/chat", {"messages": [*turns, USER], "stream": False, **fields}


def prompt(**fields: Any) -> tuple[str, Body]:
    return "/api/generate", {"prompt": "hello", "stream": False, **fields}


def user(*blocks: Body) -> Body:
    return {"role": "user", "content": list(blocks)}


def text(words: str, **more: Any) -> Body:
    return {"type": "text", "text": words, **more}


def thought(words: str) -> Body:
    return {"type": "thinking", "thinking": words, "signature": "s"}


def use(**arguments: Any) -> Body:
    call = {"type": "tool_use", "id": "toolu_1", "name": "send", "input": arguments}
    return {"role": "assistant", "content": [thought("hm"), call]}


def result(content: Any, **more: Any) -> Body:
    return user({"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more})


def called(**arguments: Any) -> Body:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "send", "arguments": arguments}}],
    }


TOOL = {"name": "send", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "send", "description": "x", "parameters": SCHEMA}}

#: A request with the secret in one field, for each field that has a text.
FIELDS: dict[str, tuple[str, Body]] = {
    "messages: text": message({"role": "user", "content": MAIL}),
    "messages: a block of text": message(user(text(MAIL, cache_control={"type": "ephemeral"}))),
    "messages: an answer": message(USER, {"role": "assistant", "content": MAIL}),
    "messages: a thought": message(USER, {"role": "assistant", "content": [thought(MAIL), text("x")]}),
    "messages: what a tool was told": message(USER, use(to=SECRET), result("done")),
    "messages: what a tool said": message(USER, use(), result(MAIL)),
    "messages: a block of what a tool said": message(USER, use(), result([text("x"), text(MAIL)])),
    "messages: a tool's error": message(USER, use(), result(MAIL, is_error=True)),
    "messages: JSON of a tool": message(USER, use(), result(json.dumps({"a": [MAIL]}))),
    "messages: system": message(system=MAIL),
    "messages: a block of system": message(system=[text("be kind"), text(MAIL)]),
    "messages: a turn of the system": message({"role": "system", "content": MAIL}),
    "messages: a tool's description": message(tools=[{**TOOL, "description": MAIL}]),
    "messages: a tool's schema": message(tools=[TOOL]),
    "messages: stop_sequences": message(stop_sequences=[SECRET]),
    "messages: a form": message(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}),
    "messages: metadata": message(user(text(MAIL)), metadata={"user_id": SECRET}),
    "chat: text": chat({"role": "user", "content": MAIL}),
    "chat: system": chat({"role": "system", "content": MAIL}),
    "chat: a thought": chat({"role": "assistant", "content": "x", "thinking": MAIL}),
    "chat: what a tool was told": chat(called(to=SECRET), {"role": "tool", "content": "done"}),
    "chat: what a tool said": chat(called(), {"role": "tool", "tool_name": "send", "content": MAIL}),
    "chat: a tool's schema": chat(tools=[FUNCTION]),
    "chat: a form": chat(format=SCHEMA),
    "chat: stop": chat(options={"stop": [SECRET]}),
    "generate: prompt": prompt(prompt=MAIL),
    "generate: system": prompt(system=MAIL),
    "generate: a form": prompt(format=SCHEMA),
    "generate: stop": prompt(options={"stop": SECRET}),
}  # fmt: skip


async def sent(path: str, body: Body, **more: Any) -> tuple[Stub, Stub, int, bytes]:
    """The edge and the cloud of a request that would rather leave, and what came back."""
    edge, cloud = Stub(), Stub()
    async with serving(edge, cloud) as urls, routed(urls, policy=REDACT) as over:
        app = create_app(GatewayService(over.gateway, over.metrics))
        headers = {"x-weighbridge-placement": "prefer_cloud"}
        async with serving_app(app, "off") as front, clients() as client:
            made = {"model": "auto", **body, **more}
            answer = await post(client, front + path, made, headers)
    return edge, cloud, *answer


async def post(
    client: aiohttp.ClientSession, url: str, body: Body, headers: dict[str, str]
) -> tuple[int, bytes]:
    async with client.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("field", FIELDS)
async def test_a_secret_in_this_field_does_not_leave(field: str) -> None:
    path, body = FIELDS[field]
    assert SECRET in json.dumps(body)
    edge, cloud, status, answer = await sent(path, body)
    assert status == 200, answer
    assert not edge.log
    [entry] = cloud.log
    assert "alice" not in entry.raw
    assert "EMAIL" in entry.raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", "/api/generate"])
async def test_a_value_that_was_taken_out_is_back_in_the_answer(path: str, stream: bool) -> None:
    asked: Body = (
        {"prompt": MAIL} if path == "/api/generate" else {"messages": [{"role": "user", "content": MAIL}]}
    )
    _, cloud, status, answer = await sent(path, {"max_tokens": 500, **asked}, stream=stream)
    assert status == 200, answer
    assert SECRET not in cloud.log[0].raw
    assert said(path, stream, answer) == MAIL


def said(path: str, stream: bool, answer: bytes) -> str:
    if path == "/v1/messages":
        if not stream:
            return "".join(block["text"] for block in json.loads(answer)["content"])
        datas = [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: ")]
        return "".join(one["delta"]["text"] for one in datas if one["type"] == "content_block_delta")
    lines = [json.loads(line) for line in answer.splitlines()]
    return "".join(
        line["response"] if path == "/api/generate" else line["message"]["content"] for line in lines
    )


async def test_a_template_of_a_client_is_refused_and_goes_nowhere() -> None:
    edge, cloud, status, answer = await sent(*prompt(template=MAIL))
    assert (status, edge.log, cloud.log) == (400, [], [])
    assert "template" in json.loads(answer)["error"]


SPLIT = [text("alice.smith@exam"), text("ple.com")]
TOGETHER: dict[str, tuple[str, Body]] = {
    "two blocks": message(user(*SPLIT)),
    "two turns": message(user(SPLIT[0]), user(SPLIT[1])),
    "two blocks of system": message(system=SPLIT),
    "two blocks of what a tool said": message(USER, use(), result(SPLIT)),
}


@pytest.mark.parametrize("name", TOGETHER)
async def test_a_secret_over_a_seam_stays_here(name: str) -> None:
    edge, cloud, status, answer = await sent(*TOGETHER[name])
    assert status == 200, answer
    assert len(edge.log) == 1
    assert not cloud.log
