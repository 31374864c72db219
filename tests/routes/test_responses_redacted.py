"""OpenAI's Responses on a route that redacts: whatever field a value stands in, it does not leave, and comes back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import clients
from tests.fleet.backends import serving as serving_app
from tests.routes.stub import Stub, serving
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import load_configuration
from weighbridge.server.app import create_app
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.responses.file import ResponseFile

CONFIG = """
responses_file: responses.sqlite
routes:
  auto:
    edge: {{url: "{edge}", model: small}}
    cloud: {{url: "{cloud}", model: big, price: {{input_usd_per_million: 1, output_usd_per_million: 1}}}}
    residency: redact_then_cloud
    {more}
"""
VALUE = "jane.doe@example.com"
ASK = {"role": "user", "content": f"Write to {VALUE} please."}
PLAIN = {"role": "user", "content": "Go on."}
CALL = {"type": "function_call", "call_id": "c1", "name": "send", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sent"}
TOOL = {"type": "function", "name": "send", "parameters": {"type": "object", "properties": {}}}


def schema(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"to": {"type": "string", **fields}}}


#: What is sent, with a value in one place; "input" is what the stub says again, for the places that it sees last.
PLACES: dict[str, dict[str, Any]] = {
    "a text": {"input": f"Write to {VALUE} please."},
    "instructions": {"instructions": f"The owner is {VALUE}.", "input": [PLAIN]},
    "a message": {"input": [ASK]},
    "a developer's message": {"input": [{"role": "developer", "content": VALUE}, PLAIN]},
    "a part": {"input": [{"role": "user", "content": [{"type": "input_text", "text": f"To {VALUE}"}]}]},
    "what was said": {"input": [{"role": "assistant", "content": f"I wrote to {VALUE}"}, PLAIN]},
    "what was refused": {
        "input": [
            {"role": "assistant", "content": [{"type": "refusal", "refusal": f"Not to {VALUE}"}]},
            PLAIN,
        ]
    },
    "what was thought": {
        "input": [
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": VALUE}]},
            PLAIN,
        ]
    },
    "a summary": {
        "input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": f"To {VALUE}"}]}, PLAIN]
    },
    "arguments": {"input": [PLAIN, CALL | {"arguments": json.dumps({"to": VALUE})}, OUTPUT]},
    "arguments that were cut off": {"input": [PLAIN, CALL | {"arguments": f'{{"to": "{VALUE}", "b'}, OUTPUT]},
    "a result": {"input": [PLAIN, CALL, OUTPUT | {"output": f"sent to {VALUE}"}]},
    "a part of a result": {
        "input": [PLAIN, CALL, OUTPUT | {"output": [{"type": "input_text", "text": f"sent to {VALUE}"}]}]
    },
    "a tool's description": {"input": [PLAIN], "tools": [TOOL | {"description": f"Writes to {VALUE}."}]},
    "a tool's parameter": {
        "input": [PLAIN],
        "tools": [TOOL | {"parameters": schema(description=f"such as {VALUE}")}],
    },
    "a format's description": {
        "input": [PLAIN],
        "text": {"format": {"type": "json_schema", "name": "a", "description": VALUE, "schema": schema()}},
    },
    "a format's schema": {
        "input": [PLAIN],
        "text": {"format": {"type": "json_schema", "name": "a", "schema": schema(default=VALUE)}},
    },
    "metadata": {"input": [PLAIN], "metadata": {"who": VALUE}},
    "a user": {"input": [PLAIN], "user": VALUE},
    "a safety identifier": {"input": [PLAIN], "safety_identifier": VALUE, "prompt_cache_key": VALUE},
}
#: Where the stub sees the value last, and says it again.
SAID_AGAIN = ("a text", "a message", "a part", "a result", "a part of a result")


@asynccontextmanager
async def route_over(edge: Stub, cloud: Stub, folder: Path, more: str = "") -> AsyncIterator[tuple[str, Any]]:
    async with serving(edge, cloud) as (edge_url, cloud_url):
        path = folder / "weighbridge.yaml"
        path.write_text(CONFIG.format(edge=edge_url, cloud=cloud_url, more=more), encoding="utf-8")
        read = load_configuration(path)
        gateway = Gateway(read.fleet, build_replica)
        usage = add_routes(gateway, read.routes)
        async with (
            serving_app(create_app(GatewayService(gateway, GatewayMetrics(gateway), usage)), "on") as url,
            clients() as session,
        ):
            yield f"{url}/v1/responses", session


def events(data: bytes) -> list[dict[str, Any]]:
    lines = data.decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def asked(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "auto", "store": True, "weighbridge": {"placement": "prefer_cloud"}, **fields, **more}


@pytest.mark.parametrize("place", PLACES)
async def test_no_value_leaves_and_all_come_back(place: str, tmp_path: Path) -> None:
    edge, cloud = Stub(), Stub()
    async with route_over(edge, cloud, tmp_path) as (url, session):
        async with session.post(url, json=asked(PLACES[place])) as answer:
            whole = await answer.json()
            assert answer.status == 200, whole
        async with session.post(url, json=asked(PLACES[place], stream=True)) as answer:
            streamed = events(await answer.read())
    assert len(cloud.log) == 2, "both were answered by the cloud"
    assert not edge.log
    sent = "".join(entry.raw for entry in cloud.log)
    assert "jane" not in sent
    assert "doe@" not in sent
    last = streamed[-1]["response"]
    pieces = "".join(event["delta"] for event in streamed if event["type"] == "response.output_text.delta")
    for response in (whole, last):
        assert response["status"] == "completed"
        [item] = response["output"]
        text = item["content"][0]["text"]
        assert (VALUE in text) == (place in SAID_AGAIN)
        assert text == pieces
    if place not in (
        "metadata",
        "a user",
        "a safety identifier",
    ):  # of no use to a model: they stay, and hide nothing
        assert not (tmp_path / "responses.sqlite").exists(), "what was redacted is not written down"


async def test_arguments_come_back_whole(tmp_path: Path) -> None:
    cloud = Stub(arguments=lambda body: json.dumps({"to": body["messages"][-1]["content"]}))
    fields = {"input": [ASK], "tools": [TOOL]}
    async with (
        route_over(Stub(), cloud, tmp_path) as (url, session),
        session.post(url, json=asked(fields, stream=True)) as answer,
    ):
        streamed = events(await answer.read())
    assert "jane" not in cloud.log[0].raw
    pieces = "".join(event["delta"] for event in streamed if event["type"].endswith("arguments.delta"))
    [call] = [item for item in streamed[-1]["response"]["output"] if item["type"] == "function_call"]
    assert call["arguments"] == pieces
    assert json.loads(pieces) == {"to": ASK["content"]}


async def test_a_later_turn_is_redacted_with_all_before_it(tmp_path: Path) -> None:
    cloud = Stub()
    async with route_over(Stub(), cloud, tmp_path) as (url, session):
        async with session.post(url, json=asked({"input": [ASK]})) as answer:
            first = await answer.json()
        async with session.post(
            url, json=asked({"input": [PLAIN]}, previous_response_id=first["id"])
        ) as answer:
            assert answer.status == 200
        async with session.get(f"{url}/{first['id']}/input_items") as answer:
            [item] = (await answer.json())["data"]
            assert item["content"][0]["text"] == ASK["content"], "here it is as it was written"
    assert "[EMAIL_1]" in cloud.log[1].raw
    assert "jane" not in cloud.log[1].raw
    assert not (tmp_path / "responses.sqlite").exists()


async def test_a_route_may_allow_that_it_is_written_down(tmp_path: Path) -> None:
    async with (
        route_over(Stub(), Stub(), tmp_path, "may_store: true") as (url, session),
        session.post(url, json=asked({"input": [ASK]})) as answer,
    ):
        name = (await answer.json())["id"]
    assert ResponseFile(tmp_path / "responses.sqlite").get(name, 0.0) is not None
