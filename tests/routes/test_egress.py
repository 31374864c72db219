# ruff: noqa: E501 - a body to a line reads best as a table
"""What the cloud receives, with secrets planted in every position, while everything around it breaks.

Base64 in running text is left as it is, by design: a test of its own pins that down. Text attachments are opened.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import unused_port

from tests.routes.routes import Routed, answer, ask, routed
from tests.routes.stub import BROKEN, BUSY, CUT, OK, Stub, echo, serving
from weighbridge.errors import Refused
from weighbridge.routes.budget import Budgets
from weighbridge.routes.policy import Residency, ResidencyPolicy
from weighbridge.routes.privacy.checksums import luhn
from weighbridge.routes.privacy.hits import Hit
from weighbridge.routes.privacy.patterns import DenyListDetector, PatternDetector
from weighbridge.wire.ask import Ask

LETTERS = "abcdefghjkmnpqrstuvwxyz"
POSITIONS = (
    "user", "system", "history", "parts", "tool_arguments", "nested_arguments", "number_arguments",
    "escaped_arguments", "tool_result", "tool_definition", "schema_key", "zero_width", "full_width",
    "attachment", "stop", "metadata", "split_parts", "query_url", "tool_id",
)  # fmt: skip


def card(rng: random.Random) -> str:
    body = "4" + "".join(rng.choices("0123456789", k=14))
    return next(body + digit for digit in "0123456789" if luhn(body + digit))


def secret(rng: random.Random, position: str) -> str:
    word = "".join(rng.choices(LETTERS, k=9))
    number = card(rng)
    kinds = [
        f"{word}@{word[::-1]}.com",
        number,
        f"sk-{word}{number}",
        f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
        f"+49 151 {rng.randint(10000000, 99999999)}",
    ]
    return number if position == "number_arguments" else rng.choice(kinds)


def call(arguments: str, id: str = "call_1") -> dict[str, Any]:
    function = {"name": "send", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": id, "type": "function", "function": function}],
    }


def plant(position: str, value: str) -> dict[str, Any]:
    """A request body with `value` at `position`; the last message repeats it where a text can hold it."""
    user = {"role": "user", "content": f"Please write to {value} and say so."}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "done"}
    plain: dict[str, Any] = {"messages": [user]}
    json_value = json.dumps({"to": value})
    bodies: dict[str, dict[str, Any]] = {
        "user": plain,
        "system": {"messages": [{"role": "system", "content": f"The owner is {value}."}, user]},
        "history": {"messages": [user, {"role": "assistant", "content": f"I wrote to {value}"}, user]},
        "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": f"To {value} please"}]}]},
        "tool_arguments": {"messages": [user, call(json_value), result, user]},
        "nested_arguments": {"messages": [user, call(json.dumps({"deep": json_value})), result, user]},
        "number_arguments": {"messages": [user, call(json.dumps({"card": int(value)} if value.isdigit() else {})), result, user]},
        "escaped_arguments": {"messages": [user, call('{"to": "' + "".join(f"\\u{ord(c):04x}" for c in value) + '"}'), result, user]},
        "tool_result": {"messages": [user, call("{}"), {**result, "content": json.dumps({"rows": [{"c": value}]})}, user]},
        "tool_definition": {**plain, "tools": [{"type": "function", "function": {"name": "send", "description": f"mails {value}"}}]},
        "schema_key": {**plain, "tools": [{"type": "function", "function": {"name": "send", "parameters": {"type": "object", "properties": {value: {"type": "string"}}}}}]},
        "zero_width": {"messages": [{"role": "user", "content": "Write to " + "\u200b".join(value) + " now"}]},
        "full_width": {"messages": [{"role": "user", "content": "Write to " + "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in value) + " now"}]},
        "attachment": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Read this"}, {"type": "file", "file": {"filename": "a.txt", "file_data": "data:text/plain;base64," + base64.b64encode(f"mail {value} soon".encode()).decode()}}]}]},
        "stop": {**plain, "stop": [value]},
        "metadata": {"messages": [{"role": "user", "content": "hello there"}], "metadata": {"who": value}, "user": value},
        "split_parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "To " + value[:6]}, {"type": "text", "text": value[6:] + " please"}]}]},
        "query_url": {"messages": [{"role": "user", "content": f"Open https://x.example.com/?q={value} for me"}]},
        "tool_id": {"messages": [user, call(json_value, f"call {value}"), {**result, "tool_call_id": f"call {value}"}, user]},
    }  # fmt: skip
    return bodies[position]


class Moody:
    """The patterns, but it crashes, or comes too late, when it is told to."""

    name = "moody"
    is_quick = False

    def __init__(self) -> None:
        self.mood = "well"
        self.late = threading.Event()

    def detect(self, text: str) -> list[Hit]:
        if self.mood == "crash":
            raise RuntimeError("the detector crashed")
        if self.mood == "late":
            self.late.wait(60)
        return PatternDetector().detect(text)


def readings(raw: str) -> list[str]:
    """What a curious reader could make of the bytes the cloud received."""
    texts = [raw]
    stripped = raw.replace("\\u200b", "").replace("\u200b", "")
    texts.append(stripped)
    texts.append(
        "".join(
            chr(ord(c) - 0xFEE0) if 0xFF10 <= ord(c) <= 0xFF19 else c
            for c in json.dumps(json.loads(raw), ensure_ascii=False)
        )
    )
    for message in json.loads(raw)["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            texts.append("".join(part.get("text", "") for part in content))
            texts += [
                base64.b64decode(part["file"]["file_data"].partition(",")[2]).decode()
                for part in content
                if "file" in part
            ]
        for one in message.get("tool_calls") or ():
            texts.append(str(_opened(one["function"]["arguments"])))
    return texts


def _opened(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return {key: _opened(one) if isinstance(one, str) else one for key, one in value.items()}


@dataclass
class Tally:
    answered: int = 0
    cloud: int = 0
    refused: int = 0
    broken: int = 0


async def run(residency: Residency, requests: int, seed: int) -> tuple[Tally, Stub]:
    """Plant, send, and check every answer that came back whole."""
    rng = random.Random(seed)
    fates = [rng.choices((OK, BUSY, BROKEN, CUT), (8, 1, 1, 1))[0] for _ in range(10 * requests)]
    edge = Stub(answer=echo, logprob=-3.0)
    cloud = Stub(fates=fates, answer=echo, piece=3)
    tally, planted = Tally(), []
    late = set(rng.sample(range(requests), max(2, requests // 50)))  # each takes the whole time-out
    async with serving(edge, cloud) as urls, AsyncExitStack() as stack:
        moody = Moody()

        async def over(urls: list[str], **options: Any) -> Routed:
            policy = ResidencyPolicy(default=residency)
            return await stack.enter_async_context(routed(urls, policy=policy, **options))

        router = await over(urls, detectors=[moody], timeout=2.0)
        poor = await over(urls, budgets=Budgets(total=0.0))
        nowhere = f"http://127.0.0.1:{unused_port()}/v1"
        down = await over([urls[0], nowhere])
        for number in range(requests):
            position = POSITIONS[number % len(POSITIONS)]
            value = secret(rng, position)
            planted.append(value)
            moody.mood = "late" if number in late else rng.choices(("well", "crash"), (20, 1))[0]
            moody.late.clear()
            chosen = poor if number % 23 == 0 else down if number % 29 == 0 else router
            body = plant(position, value)
            placement = rng.choice(("auto", "prefer_cloud"))
            request = ask(body.pop("messages"), placement=placement, stream=bool(number % 2), **body)
            await one(chosen, request, tally)
            moody.late.set()
    leaks = [
        value for entry in cloud.log for text in readings(entry.raw) for value in planted if value in text
    ]
    assert leaks == []
    return tally, cloud


async def one(chosen: Routed, request: Ask, tally: Tally) -> None:
    try:
        async with asyncio.timeout(60):
            found = await answer(chosen, request)
    except Refused:
        tally.broken += 1
        return
    if found.error is not None:
        tally.broken += 1
        return
    tally.answered += 1
    tally.cloud += found.ticket.placement == "cloud"
    body = {name: msgspec.json.decode(raw) for name, raw in request.fields.items()}
    assert (found.message["content"] or "") == echo(body)


@pytest.mark.parametrize("residency", [Residency.NEVER, Residency.REDACT])
async def test_no_planted_secret_leaves(residency: Residency) -> None:
    tally, cloud = await run(residency, 10 * len(POSITIONS), seed=1)
    if residency is Residency.NEVER:
        assert cloud.log == []
        assert tally.answered == 10 * len(POSITIONS)
    else:
        assert tally.cloud > 60


@pytest.mark.proof
@pytest.mark.timeout(900)
@pytest.mark.parametrize("residency", [Residency.NEVER, Residency.REDACT])
async def test_no_planted_secret_leaves_in_a_thousand_requests(residency: Residency) -> None:
    tally, cloud = await run(residency, 1000, seed=2)
    print(residency, tally, f"{len(cloud.log)} requests reached the cloud")
    assert tally.answered + tally.broken == 1000


async def test_base64_in_running_text_is_left_as_it_is() -> None:
    """No detector reads it, which docs/guide/routes.md says: whoever needs it kept uses `never_leaves`."""
    hidden = base64.b64encode(b"ann@example.com and 4111111111111111").decode()
    cloud = Stub(answer=echo)
    async with (
        serving(Stub(), cloud) as urls,
        routed(urls, policy=ResidencyPolicy(default=Residency.REDACT)) as over,
    ):
        await answer(over, ask(f"decode {hidden}", placement="only_cloud"))
    assert hidden in cloud.log[0].raw


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_call_arguments_come_back_as_valid_json(stream: bool) -> None:
    """A value with a quote and a line break is put back as JSON writes it, split over chunks as it is."""
    secret_value = 'secret=ab12"cd34\nxy'
    cloud = Stub(
        answer=lambda body: "",
        arguments=lambda body: json.dumps({"to": echo(body).removeprefix("send ")}),
        piece=2,
    )
    options: dict[str, Any] = {
        "policy": ResidencyPolicy(default=Residency.REDACT),
        "detectors": [DenyListDetector([secret_value])],
    }
    async with serving(Stub(), cloud) as urls, routed(urls, **options) as over:
        found = await answer(over, ask(f"send {secret_value}", placement="only_cloud", stream=stream))
    function = found.message["tool_calls"][0]["function"]
    assert json.loads(function["arguments"]) == {"to": secret_value}
    assert "ab12" not in cloud.log[0].raw
