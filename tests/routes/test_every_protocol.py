# ruff: noqa: E501 - tables read best a case to a line
"""Money, limits and time are the same in every protocol, streamed and whole, by a model or a route."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.backends import Backend, Front, fleet, serving

#: As long as the prompt that is billed: more than was asked is not believed.
PROMPT = "weigh " * 10_000
TURNS = [{"role": "user", "content": PROMPT}]
#: Path and body of one question in each protocol.
PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": TURNS, "max_tokens": 5000}),
    "responses": ("/v1/responses", {"input": PROMPT, "max_output_tokens": 5000}),
    "messages": ("/v1/messages", {"messages": TURNS, "max_tokens": 5000}),
    "ollama chat": ("/api/chat", {"messages": TURNS, "options": {"num_predict": 5000}}),
    "ollama generate": ("/api/generate", {"prompt": PROMPT, "options": {"num_predict": 5000}}),
}
#: US dollars per million: input 1.25, output 2.5, cached 0.2.
PRICE = "{input_usd_per_million: 1.25, output_usd_per_million: 2.5, cached_usd_per_million: 0.2}"
#: xAI's: thinking on top, as the sum says.
ON_TOP = {
    "prompt_tokens": 10120,
    "completion_tokens": 1499,
    "total_tokens": 14428,
    "prompt_tokens_details": {"cached_tokens": 128},
    "completion_tokens_details": {"reasoning_tokens": 2809},
}


class Thinks(Backend):
    """A provider that says nothing but what it thinks, and not what that costs."""

    def _chunk(self, chat: bool, text: str, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": finish, "delta": {"reasoning_content": text} if text else {}}
        return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    async def _event(self, send: Any, value: Any) -> None:
        if not value.get("usage"):
            await super()._event(send, value)


#: What an answer about streams is made of: what ends or frames them in one protocol or another, and other line ends.
FRAMES = [
    "ends with `data: [DONE]`", "\n\ndata: [DONE]\n\n", "[DONE]", "\r\n\r\ndata: [DONE]\r\n\r\n", ": a comment\n", "id: 7\nretry: 1\n\n",
    'event: error\ndata: {"error": {"message": "x"}}\n\n', "event: message_stop\ndata: {}\n\n", '{"type": "response.completed"}', "data:",
    '"finish_reason": "stop"', '{"usage": {"prompt_tokens": 1, "completion_tokens": 1}}', '{"done": true}\n', "\u2028data: [DONE]\u2028",
    "\x0bdata: [DONE]\x0c\x85", "\ufeffdata: [DONE]", "event: done\n\n\n", "\ndata", ": [DO", "NE]\n", "\n",
]  # fmt: skip


class Quotes(Backend):
    """A provider whose answer talks about how streams are framed."""

    def _chunk(self, chat: bool, text: str, finish: str | None) -> dict[str, Any]:
        piece = FRAMES[int(text.strip().removeprefix("t"))] if text.strip() else text
        return super()._chunk(chat, piece, finish)


def text_of(protocol: str, data: bytes) -> str:
    """What a streamed answer says, read as its protocol has it."""
    if protocol.startswith("ollama"):
        lines = [json.loads(line) for line in data.split(b"\n") if line]
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        return "".join(
            [line["message"]["content"] if "message" in line else line["response"] for line in lines]
        )
    said = ""
    for event in data.decode().split("\n\n"):
        lines = [line.removeprefix("data: ") for line in event.split("\n") if line.startswith("data: ")]
        if not lines or lines == ["[DONE]"]:
            continue
        value = json.loads("\n".join(lines))
        if protocol == "chat":
            said += "".join([choice["delta"].get("content") or "" for choice in value["choices"]])
        elif value.get("type") == "response.output_text.delta":
            said += value["delta"]
        elif value.get("type") == "content_block_delta":
            said += value["delta"]["text"]
    return said


@asynccontextmanager
async def front_at(far: str, near: str, top: str = "") -> AsyncIterator[Front]:
    """A model `m` and a route `auto` whose cloud is the same server, which bills as a provider does."""
    config = f"""{top}
retry: {{attempts: 1}}
health: {{interval: 0.05, slow_start: 0}}
models:
  m: {{replicas: [{{name: far, url: '{far}', dialect: openai, price: {PRICE}}}]}}
routes:
  auto:
    edge: {{url: '{near}/v1', model: small}}
    cloud: {{url: '{far}/v1', model: big, price: {PRICE}}}
"""
    async with fleet(config=config) as front:
        yield front


@asynccontextmanager
async def front_over(cloud: Backend, edge: Backend | None = None, top: str = "") -> AsyncIterator[Front]:
    async with serving(cloud) as far, serving(edge or Backend()) as near, front_at(far, near, top) as front:
        yield front


async def ask(front: Front, protocol: str, model: str, *, stream: bool, **extension: Any) -> Any:
    """Status, headers and body of one question."""
    path, body = PROTOCOLS[protocol]
    told = {"placement": "only_cloud", **extension} if model == "auto" else extension
    fields = {**body, "model": model, "stream": stream, **({"weighbridge": told} if told else {})}
    if stream and protocol == "chat":
        fields["stream_options"] = {"include_usage": True}
    async with front.client.post(front.url + path, json=fields) as answer:
        data = await answer.read()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, data


def usage_of(protocol: str, stream: bool, data: bytes) -> tuple[int, int]:
    """Tokens of prompt and output that the client is told, in its own protocol's words."""
    if protocol.startswith("ollama"):
        last = json.loads(data.splitlines()[-1])
        return last["prompt_eval_count"], last["eval_count"]
    if not stream:
        usage = json.loads(data)["usage"]
    else:
        lines = [line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: {")]
        told = [json.loads(line) for line in lines]
        told = [one.get("response") or one for one in told]
        usage = [one["usage"] for one in told if one.get("usage")][-1]
    if protocol == "chat":
        return usage["prompt_tokens"], usage["completion_tokens"]
    cached = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
    return usage["input_tokens"] + cached, usage["output_tokens"]


async def ticket_of(front: Front, headers: dict[str, str]) -> Any:
    await front.idle()
    return await front.get(f"/v1/tickets/{headers['x-weighbridge-ticket']}")


every = pytest.mark.parametrize("protocol", PROTOCOLS)
streamed = pytest.mark.parametrize("stream", [False, True])
models = pytest.mark.parametrize("model", ["m", "auto"])


@models
async def test_the_bill_and_what_the_client_is_told_are_the_same(model: str) -> None:
    async with front_over(Backend(usage=ON_TOP)) as front:
        costs = []
        for protocol in PROTOCOLS:
            for stream in (False, True):
                status, headers, data = await ask(front, protocol, model, stream=stream)
                assert status == 200, data
                # what a provider writes in its own protocol goes through as it is
                told = (10120, 1499 if protocol == "chat" else 4308)
                assert usage_of(protocol, stream, data) == told, (protocol, stream, data)
                record = await ticket_of(front, headers)
                costs.append((protocol, stream, record["cost_usd"], record["output_tokens"]))
                if not stream:
                    assert float(headers["x-weighbridge-cost"]) == 0.0232856, protocol
        assert costs == [
            (protocol, stream, 0.0232856, 4308) for protocol in PROTOCOLS for stream in (False, True)
        ]
        rows = await front.get("/v1/usage")
        assert sum(row["cost_usd"] for row in rows["data"]) == pytest.approx(0.0232856 * len(costs))


@models
async def test_thinking_is_billed_where_no_usage_is_told(model: str) -> None:
    async with front_over(Thinks(tokens=41)) as front:
        for protocol in PROTOCOLS:
            _, headers, data = await ask(front, protocol, model, stream=True)
            record = await ticket_of(front, headers)
            assert record["output_tokens"] == 41, (protocol, data)
            assert record["cost_usd"] >= 41 * 2.5e-6


@models
@every
async def test_an_answer_about_streams_comes_whole(protocol: str, model: str) -> None:
    async with front_over(Quotes(tokens=len(FRAMES))) as front:
        status, headers, data = await ask(front, protocol, model, stream=True)
        record = await ticket_of(front, headers)
    assert status == 200
    assert text_of(protocol, data) == "".join(FRAMES)
    assert record["output_tokens"] == len(FRAMES)
    assert record["finish_reason"] == "stop"


@every
@streamed
async def test_limits_are_told_in_every_protocol(protocol: str, stream: bool) -> None:
    async with front_over(
        Backend(), top="limits: {requests_per_minute: 1, tokens_per_minute: 500000}"
    ) as front:
        found = [await ask(front, protocol, "m", stream=stream) for _ in range(2)]
        (first, said, _), (second, refused, body) = found
    assert (first, second) == (200, 429), body
    assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert int(said["x-ratelimit-remaining-tokens"]) < 500_000
    assert refused["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(refused["retry-after"]) <= 61


@streamed
async def test_what_a_provider_asks_to_wait_is_said_in_every_protocol(stream: bool) -> None:
    for protocol in PROTOCOLS:
        for model in ("m", "auto"):
            async with front_over(Backend(statuses=[429] * 9, retry_after="60")) as front:
                status, headers, body = await ask(front, protocol, model, stream=stream)
            assert status == 429, (protocol, model, status, body)
            assert 50 <= int(headers["retry-after"]) <= 61, (protocol, model)


@streamed
async def test_a_deadline_is_kept_in_every_protocol(stream: bool) -> None:
    async with front_over(Backend(first_delay=3600.0), Backend()) as front:
        for protocol in PROTOCOLS:
            began = time.monotonic()
            late, _, body = await ask(front, protocol, "auto", stream=stream, deadline_ms=300)
            assert late == 504, (protocol, body)
            assert time.monotonic() - began < 3.0
            near, headers, body = await ask(
                front, protocol, "auto", stream=stream, deadline_ms=2000, placement="prefer_cloud"
            )
            assert near == 200, (protocol, body)
            assert b"t4" in body
            assert headers["x-weighbridge-placement"] == "edge"
