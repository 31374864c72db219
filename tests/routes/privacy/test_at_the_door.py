"""Rows of what leaked once, over a route with real sockets: what the cloud gets, and what the client gets back."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import msgspec
import pytest
from benchmarks.evidence.encodings import ENCODINGS

from tests.routes.privacy.bodies import tool
from tests.routes.routes import answer, ask, routed
from tests.routes.stub import Stub, echo, serving
from weighbridge.errors import Refused
from weighbridge.routes.policy import Residency, ResidencyPolicy, Rule
from weighbridge.routes.privacy.patterns import DenyListDetector, PatternDetector

REDACT = ResidencyPolicy(default=Residency.REDACT)
UTF16 = "data:text/plain;base64," + base64.b64encode("mail alice@example.com".encode("utf-16-le")).decode()
TEXT, REFUSAL = {"type": "text", "text": "alice@exam"}, {"type": "refusal", "refusal": "ple.com"}
FILE = {"type": "file", "file": {"filename": "a.txt", "file_data": UTF16}}


def said(*parts: Any, **fields: Any) -> dict[str, Any]:
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"text": [{"role": "user", "content": content}], **fields}


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "sharp s": (said("mail groß@beispiel.de"), "beispiel.de"),
    "a phrase with sharp s": (said("the MASSWERK is"), "MASSWERK"),
    "under role": (said(json.dumps({"role": "alice@example.com"})), "alice@"),
    "under type": (said(json.dumps({"x": [{"type": "4111 1111 1111 1111"}]})), "4111"),
    "tabs in a card": (said("card 4111\t1111\t1111\t1111"), "4111"),
    "dots in a card": (said("pay with 4111.1111.1111.1111"), "4111"),
    "line ends in a card": (said("pay with 4111\n1111\n1111\n1111"), "4111"),
    "percent": (said("alice%40example.com"), "alice"),
    "entity": (said("alice&#64;example.com"), "alice"),
    "NUL": (said("ali\x00ce@exam\x00ple.com"), "ali"),
    "UTF-16": (said({"type": "text", "text": "read"}, FILE), UTF16),
    "text and refusal": (said(TEXT, REFUSAL), "alice"),
    "stop": (said("hello", stop=["alice@exam", "ple.com"]), "alice"),
    "Chinese telephone": (said("手机号 13812345678"), "13812345678"),
    "French telephone": (said("téléphone 0612345678"), "0612345678"),
    "Chinese id": (said("身份证号 11010519491231002X"), "11010519491231002X"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_leaked_once_is_replaced_or_stays(name: str, stream: bool) -> None:
    fields, secret = ROWS[name]
    fields = dict(fields)
    detectors = [PatternDetector(), DenyListDetector(["Maßwerk"])]
    edge, cloud = Stub(), Stub()
    async with serving(edge, cloud) as urls, routed(urls, policy=REDACT, detectors=detectors) as over:
        request = ask(fields.pop("text"), placement="prefer_cloud", stream=stream, **fields)
        found = await answer(over, request)
        body = {name: json.loads(bytes(raw)) for name, raw in request.fields.items()}
    assert all(secret not in json.dumps(json.loads(entry.raw), ensure_ascii=False) for entry in cloud.log)
    assert len(cloud.log) + len(edge.log) == 1
    assert found.message["content"] == echo(body)


@pytest.mark.parametrize(
    "name", ["over two text parts", "over stop sequences", "attachment, UTF-32", "percent, twice"]
)
async def test_an_encoded_address_reaches_the_cloud_in_no_form(name: str) -> None:
    planted = ENCODINGS[name]("alice.smith@example.com")
    edge, cloud = Stub(), Stub()
    async with serving(edge, cloud) as urls, routed(urls, policy=REDACT) as over:
        fields = dict(planted.body)
        await answer(over, ask(fields.pop("messages"), placement="prefer_cloud", **fields))
    assert all(piece not in entry.raw for entry in cloud.log for piece in planted.pieces)


async def test_only_cloud_is_refused_where_a_value_cannot_be_taken_out() -> None:
    cloud = Stub()
    async with serving(Stub(), cloud) as urls, routed(urls, policy=REDACT) as over:
        with pytest.raises(Refused):
            await answer(over, ask("hello", placement="only_cloud", stop=["alice@exam", "ple.com"]))
    assert cloud.log == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_that_would_be_changed_is_answered_here_and_its_ticket_says_why(stream: bool) -> None:
    edge, cloud = Stub(), Stub()
    async with serving(edge, cloud) as urls, routed(urls, policy=REDACT) as over:
        tools = [tool("send", {"to": {"type": "string", "enum": ["ann@example.com"]}})]
        found = await answer(over, ask("write", placement="prefer_cloud", stream=stream, tools=tools))
    assert cloud.log == []
    assert "ann@example.com" in edge.log[0].raw
    assert found.ticket.rule == "unhidable"
    assert any("pattern, enum or const" in reason for reason in found.ticket.decisions)


ADDRESS = '12 "High" Street\nLondon\nN1 9GU'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_an_address_of_three_lines_in_a_json_answer_is_json(stream: bool, depth: int) -> None:
    def reply(body: dict[str, Any]) -> str:
        text = re.search(r"\[DENIED_\d+\]", echo(body))
        assert text is not None
        made = json.dumps({"address": text[0]})
        for _ in range(depth - 1):
            made = json.dumps({"address": made})
        return made

    detectors = [DenyListDetector([ADDRESS])]
    cloud = Stub(answer=reply, piece=3)
    async with serving(Stub(), cloud) as urls, routed(urls, policy=REDACT, detectors=detectors) as over:
        found = await answer(over, ask(f"I live at {ADDRESS}", placement="only_cloud", stream=stream))
    value = found.message["content"]
    for _ in range(depth):
        value = json.loads(value)["address"]
    assert value == ADDRESS


@pytest.mark.parametrize("stream", [False, True])
async def test_a_denied_word_in_the_name_of_a_tool_has_a_legal_alias(stream: bool) -> None:
    def named(body: dict[str, Any]) -> str:
        return str(body["tools"][0]["function"]["name"])

    def arguments(body: dict[str, Any]) -> str:
        return json.dumps({body["tools"][0]["function"]["parameters"]["required"][0]: 3})

    cloud = Stub(answer=lambda body: "", arguments=arguments, called=named, piece=2)
    tools = [tool("bluefin_search", {"bluefin_id": {"type": "integer"}}, required=["bluefin_id"])]
    choice = {"type": "function", "function": {"name": "bluefin_search"}}
    options: dict[str, Any] = {"policy": REDACT, "detectors": [DenyListDetector(["bluefin"])]}
    async with serving(Stub(), cloud) as urls, routed(urls, **options) as over:
        request = ask("find it", placement="only_cloud", stream=stream, tools=tools, tool_choice=choice)
        found = await answer(over, request)
    sent = json.loads(cloud.log[0].raw)
    assert "bluefin" not in cloud.log[0].raw.lower()
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", sent["tools"][0]["function"]["name"])
    assert sent["tool_choice"]["function"]["name"] == sent["tools"][0]["function"]["name"]
    call = found.message["tool_calls"][0]["function"]
    assert json.loads(call["arguments"]) == {"bluefin_id": 3}
    if not stream:
        assert call["name"] == "bluefin_search"


@pytest.mark.parametrize("written", ["[email 1]", "\\[EMAIL\\_1\\]", "**EMAIL_1**", "[Email-1]"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_placeholder_that_the_model_rewrote_comes_back(written: str, stream: bool) -> None:
    cloud = Stub(answer=lambda body: f"I wrote to {written}.", piece=2)
    async with serving(Stub(), cloud) as urls, routed(urls, policy=REDACT) as over:
        request = ask("write to ann@example.com", placement="only_cloud", stream=stream)
        found = await answer(over, request)
    assert found.message["content"].replace("*", "") == "I wrote to ann@example.com."


async def test_what_no_detector_saw_does_not_leave() -> None:
    """A field that is written twice: decoders take the last, and the bytes have both."""
    policy = ResidencyPolicy((Rule("no mail", Residency.NEVER, types=("EMAIL",)),))
    edge, cloud = Stub(), Stub()
    async with serving(edge, cloud) as urls, routed(urls, policy=policy) as over:
        request = ask("hello", placement="prefer_cloud")
        twice = b'[{"role": "user", "content": "ann@example.com", "content": "hello"}]'
        request.fields["messages"] = msgspec.Raw(twice)
        await answer(over, request)
    assert len(cloud.log) == 1
    assert "ann@" not in cloud.log[0].raw
