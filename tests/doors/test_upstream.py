"""What a door says when the server behind it refuses, is silent or slow: gateway, a route in it, routes alone.

The single server has nothing behind it. How the server behind behaves is in its URL, so that each case has one of its
own that nobody remembers: a replica that asked for rest is left alone for a while.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import pytest

from tests.doors.client import Reply, exchange, request
from tests.doors.doors import GATEWAY, ROUTE, ROUTES, Loop, logged
from tests.doors.table import CHAT
from tests.fleet.backends import serving
from tests.server.running import free_port, wait_until_ready

STATUSES = (400, 401, 403, 404, 413, 422, 429, 500, 502, 503)
#: Values of Retry-After: the last two are seconds from now, as a date and as a number.
NONSENSE = {
    "word": "soon",
    "negative": "-5",
    "empty": "",
    "huge": "9" * 20,
    "noday": "Thu, 99 Foo 2026 00:00:00 GMT",
}
WAITS = ("seconds", "date", *NONSENSE)
CASES = [
    *(f"{status}-none-{form}" for status in STATUSES for form in ("whole", "stream")),
    *(f"{status}-{wait}" for status in (429, 503) for wait in WAITS),
    *("200-first", "200-later", "200-slow"),
]

behind = pytest.mark.parametrize("door", [GATEWAY, ROUTE, ROUTES])


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """`/STATUS-WAIT/v1/...` answers with that status, and with a Retry-After of that kind."""
    status, wait = 200, "none"
    if scope["method"] == "POST":
        word, wait, *_ = scope["path"].split("/")[1].split("-")
        status = int(word)
        if status == 200:
            await stream(wait, send)
            return
    body = json.dumps(
        {"error": {"message": f"a {status} of its own", "type": "odd", "code": "odd", "param": "odd"}}
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if wait != "none":
        date = formatdate(time.time() + 40, usegmt=True)
        headers.append((b"retry-after", {**NONSENSE, "seconds": "40", "date": date}[wait].encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


async def stream(pace: str, send: Any) -> None:
    """Three words: silent before the `first` one or before all `later` ones, or `slow`."""
    head = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }
    for index, word in enumerate(("one", " two", " three")):
        await asyncio.sleep(
            1.8 if pace == ("later" if index == 1 else "first" if index == 0 else "") else 0.0
        )
        await asyncio.sleep(1.0 if pace == "slow" else 0.0)
        if index == 0:
            await send(head)
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": "stop" if index == 2 else None}
        chunk = {
            "id": "x",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
        }
        body = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


@dataclass(frozen=True)
class Program:
    """A door of this module."""

    port: int
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Program]]:
    """A gateway with a model and a route for each case, and the same routes alone."""
    folder = tmp_path_factory.mktemp("upstream")
    with ExitStack() as stack:
        stub = stack.enter_context(Loop(serving(refusing)))
        models = "".join(
            f"  {letter}{case}: {{replicas: [{{url: '{stub}/{case}'}}]}}\n"
            for letter in "mc"
            for case in CASES
        )
        inside = "".join(
            f"  r{case}: {{edge: {{model: idle}}, cloud: {{model: c{case}}}, cloud_attempts: 1}}\n"
            for case in CASES
        )
        alone = "".join(
            f"  r{case}: {{edge: {{url: '{stub}/200/v1', model: idle}}, "
            f"cloud: {{url: '{stub}/{case}/v1', model: m}}, cloud_attempts: 1}}\n"
            for case in CASES
        )
        rest = "retry: {attempts: 1}\nhealth: {interval: 60}\n"
        texts = {
            GATEWAY: f"{rest}models:\n  idle: {{replicas: [{{url: '{stub}/200'}}]}}\n{models}routes:\n{inside}",
            ROUTES: f"routes:\n{alone}",
        }
        found: dict[str, Program] = {}
        for name, text in texts.items():
            file = folder / f"{name}.yaml"
            file.write_text(text, encoding="utf-8")
            words, port = ["serve"] if name == GATEWAY else ["route", "serve"], free_port()
            command = [*words, "--config", str(file), "--port", str(port)]
            process = stack.enter_context(logged(command, folder / f"{name}.log", impatient=True))
            found[name] = Program(port, process)
        for program in found.values():
            wait_until_ready(f"http://127.0.0.1:{program.port}", program.process, 120.0)
        yield {**found, ROUTE: found[GATEWAY]}


def ask(programs: dict[str, Program], door: str, case: str, **fields: Any) -> Reply:
    """A chat that only the server behind can answer, which refuses."""
    body: dict[str, Any] = {"model": f"m{case}", "messages": [{"role": "user", "content": "hello"}], **fields}
    if door != GATEWAY:
        body |= {"model": f"r{case}", "weighbridge": {"placement": "only_cloud"}}
    port = programs[door].port
    return exchange(port, request("POST", CHAT, [], json.dumps(body).encode(), f"127.0.0.1:{port}"))


@behind
@pytest.mark.parametrize("form", ["whole", "stream"])
@pytest.mark.parametrize("status", STATUSES)
def test_an_error_behind_is_an_error_here(
    status: int, form: str, door: str, programs: dict[str, Program]
) -> None:
    """In OpenAI's shape and with the other server's words, before the first byte of a stream too."""
    reply = ask(programs, door, f"{status}-none-{form}", stream=form == "stream")
    assert reply.status == (
        502 if status in (401, 403) else status
    )  # a key of ours is no fault of the caller's
    assert reply.header("content-type") == "application/json"
    assert f"a {status} of its own" in reply.error["message"]
    if status in (400, 413, 422):  # the request is at fault, wherever it is asked
        assert (reply.error["type"], reply.error["param"], reply.error["code"]) == ("odd", "odd", "odd")
    elif door != GATEWAY:
        assert reply.error["code"] == "side_failed"


@behind
@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
def test_when_to_come_back_is_passed_on_in_either_form(
    status: int, form: str, door: str, programs: dict[str, Program]
) -> None:
    reply = ask(programs, door, f"{status}-{form}")
    assert reply.status == status
    wait = reply.header("retry-after") or ""
    assert wait.endswith("GMT") or 30 <= int(wait) <= 41, reply


@behind
@pytest.mark.parametrize("word", NONSENSE)
@pytest.mark.parametrize("status", [429, 503])
def test_when_to_come_back_may_be_nonsense(
    status: int, word: str, door: str, programs: dict[str, Program]
) -> None:
    reply = ask(programs, door, f"{status}-{word}")
    assert reply.status == status
    assert reply.seconds < 15


@behind
@pytest.mark.parametrize("when", ["first", "later"])
def test_a_silent_stream_gets_comments_and_goes_on(
    when: str, door: str, programs: dict[str, Program]
) -> None:
    """So that proxies keep the line open, also before the first word."""
    reply = ask(programs, door, f"200-{when}", stream=True)
    before, _, after = reply.body.partition(b"one")
    assert reply.status == 200
    assert b": keep-alive\n\n" in (before if when == "first" else after)
    words = [
        event["choices"][0]["delta"].get("content") or "" for event in reply.events[:-1] if event["choices"]
    ]
    assert "".join(words) == "one two three"
    assert reply.events[-1] == "[DONE]"


@pytest.mark.parametrize("door", [ROUTES, GATEWAY])
def test_a_signal_drains(door: str, programs: dict[str, Program]) -> None:
    """What runs is finished, what comes is refused, and the end is a good one. The last test: its doors are closed."""
    program, replies = programs[door], []
    kept = threading.Thread(target=lambda: replies.append(ask(programs, door, "200-slow", stream=True)))
    kept.start()
    time.sleep(0.7)
    program.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    late = ask(programs, door, "200-slow")
    assert (late.status, late.error["code"]) == (503, "draining")
    kept.join(30)
    [reply] = replies
    assert reply.events[-1] == "[DONE]"
    assert len(reply.events) >= 4
    assert program.process.wait(20) == 0
