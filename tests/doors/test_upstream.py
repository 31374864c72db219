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
#: Bodies of errors that are not in OpenAI's shape, each with the words in it.
SHAPES = {
    "page": b"<html>out of order</html>",
    "words": b'{"error": "out of order"}',
    "bytes": b'{"error": {"message": "out of order"}}\xff',
    "list": b'["out of order"]',
}
#: Usage that no server means, and the cached tokens that may be believed. Three words come.
ABSURD: dict[str, tuple[Any, int]] = {
    "words": ("many", 0),
    "list": ([5, 2], 0),
    "truth": ({"prompt_tokens": True, "completion_tokens": True}, 0),
    "text": ({"prompt_tokens": "5", "completion_tokens": "2"}, 0),
    "endless": ({"prompt_tokens": 5, "completion_tokens": 1e300}, 0),
    "huge": ({"prompt_tokens": 5, "completion_tokens": 1 << 40}, 0),
    "negative": ({"prompt_tokens": 5, "completion_tokens": -7}, 0),
    "cached": (
        {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 900}},
        5,
    ),
}
CASES = [
    *(f"{status}-none-{form}" for status in STATUSES for form in ("whole", "stream")),
    *(f"{status}-{wait}" for status in (429, 503) for wait in WAITS),
    *("200-first", "200-later", "200-slow", "200-whole", "500-late", "200-event", "200-head", "200-open"),
    *(f"500-{shape}" for shape in SHAPES),
    *(f"200-usage-{kind}" for kind in ABSURD),
]

#: Seconds of silence, long for a door that keeps lines open after half a second.
LONG = 1.8

behind = pytest.mark.parametrize("door", [GATEWAY, ROUTE, ROUTES])


async def behaving(scope: Any, receive: Any, send: Any) -> None:
    """`/STATUS-HOW/v1/...` answers with that status, in that way."""
    if scope["method"] != "POST":
        await answer(200, b"{}", send)
        return
    word, how, *more = scope["path"].split("/")[1].split("-")
    streams = json.loads((await receive())["body"]).get("stream")
    usage = ABSURD[more[0]][0] if how == "usage" else None
    if how in ("late", "whole") and not streams:
        await asyncio.sleep(LONG)
    if how == "event":  # it never ends
        await begin(send, (b"content-type", b"text/event-stream"))
        for _ in range(20):
            await send(
                {"type": "http.response.body", "body": b"data: " + b"x" * (1 << 20), "more_body": True}
            )
        await send({"type": "http.response.body", "body": b""})
    elif how == "head":
        await answer(200, whole(usage), send, (b"x-odd", b"y" * (1 << 20)))
    elif int(word) != 200:
        await asyncio.sleep(LONG if how == "late" else 0.0)
        await refuse(int(word), how, send)
    elif streams:
        await stream(how, usage, send)
    else:
        await answer(200, whole(usage), send)


async def refuse(status: int, how: str, send: Any) -> None:
    """An error: with a Retry-After of that kind, or a body of that shape."""
    fields = {"message": f"a {status} of its own", "type": "odd", "code": "odd", "param": "odd"}
    body = SHAPES.get(how, json.dumps({"error": fields}).encode())
    waits = {**NONSENSE, "seconds": "40", "date": formatdate(time.time() + 40, usegmt=True)}
    await answer(status, body, send, *([(b"retry-after", waits[how].encode())] if how in waits else []))


async def begin(send: Any, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})


async def answer(status: int, body: bytes, send: Any, *headers: tuple[bytes, bytes]) -> None:
    usual = (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())
    await begin(send, *usual, *headers, status=status)
    await send({"type": "http.response.body", "body": body})


async def stream(pace: str, usage: Any, send: Any) -> None:
    """Three words: silent before the `first` one or before all `later` ones, or `slow`; then usage, if any."""
    pauses = {
        "first": (LONG, 0.0, 0.0),
        "whole": (LONG, 0.0, 0.0),
        "later": (0.0, LONG, 0.0),
        "slow": (1.0, 1.0, 1.0),
    }
    for index, word in enumerate(("one", " two", " three")):
        await asyncio.sleep(pauses.get(pace, (0.0, 0.0, 0.0))[index])
        if index == 0:
            await begin(send, (b"content-type", b"text/event-stream"))
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": "stop" if index == 2 else None}
        await send_event(send, {**CHUNK, "choices": [choice]})
    if usage is not None:
        await send_event(send, {**CHUNK, "choices": [], "usage": usage})
    await send({"type": "http.response.body", "body": b"" if pace == "open" else b"data: [DONE]\n\n"})


CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def whole(usage: Any) -> bytes:
    message = {"role": "assistant", "content": "one two three"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({**CHUNK, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


async def send_event(send: Any, chunk: dict[str, Any]) -> None:
    body = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


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
        stub = stack.enter_context(Loop(serving(behaving)))
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


def ticket_of(program: Program, reply: Reply) -> dict[str, Any]:
    """The ticket of an answer, once it is settled."""
    path, host = f"/v1/tickets/{reply.header('x-weighbridge-ticket')}", f"127.0.0.1:{program.port}"
    deadline = time.monotonic() + 10.0
    while True:
        ticket: dict[str, Any] = exchange(program.port, request("GET", path, [], None, host)).json
        if ticket.get("finished") is not None or time.monotonic() > deadline:
            return ticket
        time.sleep(0.01)


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
    assert reply.header("x-weighbridge-ticket")  # it tells who was asked
    if status in (400, 413, 422):  # the request is at fault, wherever it is asked
        assert (reply.error["type"], reply.error["param"], reply.error["code"]) == ("odd", "odd", "odd")
    elif door != GATEWAY:
        assert reply.error["code"] == "side_failed"
    elif status not in (401, 403):
        assert (reply.error["type"], reply.error["param"], reply.error["code"]) == ("odd", "odd", "odd")


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


@behind
def test_a_stream_without_its_last_event_gets_one(door: str, programs: dict[str, Program]) -> None:
    """The server behind said why it ended, and forgot to say that it did."""
    assert ask(programs, door, "200-open", stream=True).events[-1] == "[DONE]"


@behind
def test_a_slow_answer_in_one_piece_gets_no_comments(door: str, programs: dict[str, Program]) -> None:
    reply = ask(programs, door, "200-whole")
    assert reply.header("content-type") == "application/json"
    assert reply.json["choices"][0]["message"]["content"] == "one two three"


@behind
def test_an_error_behind_a_silence_is_the_end_of_the_stream(door: str, programs: dict[str, Program]) -> None:
    """The status went out with the first comment: only the stream can tell of what failed."""
    reply = ask(programs, door, "500-late", stream=True)
    assert (reply.status, reply.header("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert "a 500 of its own" in reply.error["message"]


@behind
@pytest.mark.parametrize("how", ["event", "head"])
def test_what_never_ends_is_cut_off(how: str, door: str, programs: dict[str, Program]) -> None:
    """Neither an event nor the headers of a server behind may fill our memory."""
    reply = ask(programs, door, f"200-{how}", stream=how == "event")
    assert reply.status == 502 or how == "event"  # a comment may have gone out before
    assert ("headers of more than" if how == "head" else "an event of more than") in reply.error["message"]


@behind
@pytest.mark.parametrize("shape", SHAPES)
def test_an_error_in_another_shape_is_an_error_here(
    shape: str, door: str, programs: dict[str, Program]
) -> None:
    reply = ask(programs, door, f"500-{shape}")
    assert reply.status == 500
    assert b"out of order" in reply.body


@behind
@pytest.mark.parametrize("form", ["whole", "stream"])
@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_usage_is_not_believed(kind: str, form: str, door: str, programs: dict[str, Program]) -> None:
    """Money and limits are made of it: in a stream the events are counted instead, more or less."""
    reply = ask(programs, door, f"200-usage-{kind}", stream=form == "stream")
    assert reply.status == 200
    ticket = ticket_of(programs[door], reply)
    assert (3 if form == "stream" else 0) <= ticket["output_tokens"] <= 5
    assert ticket["cached_tokens"] == ABSURD[kind][1]


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
