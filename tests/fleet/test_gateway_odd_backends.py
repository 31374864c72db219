"""Backends that do what no server should: nothing hangs, grows, lies or leaks because of one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.backends import STEP_COST, Backend, Front, fleet, until
from weighbridge.fleet import attempt
from weighbridge.fleet.meter import Meter

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_backend(answer: Talk, extra: str = "") -> AsyncIterator[Front]:
    """A gateway over a server that writes bytes as `answer` says; its probes are answered well."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                if head.startswith(b"get"):
                    page = json.dumps(Backend().report()).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))
                    continue
                size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
                await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    config = (
        "health: {interval: 0.05, slow_start: 0}\nretry: {attempts: 1}\n"
        f"models:\n  m:\n    replicas:\n"
        f"      - {{name: a, url: 'http://{host}:{port}', dialect: weighbridge{extra}}}\n"
    )
    async with server, fleet(config=config) as front:
        yield front


def whole(text: str, cut: int = 0) -> bytes:
    answer = {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]
    }
    body = json.dumps(answer, ensure_ascii=False).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body) - cut,
        body,
    )


async def test_bytes_behind_the_announced_length_delay_nobody() -> None:
    """A server that counts characters instead of bytes: what it announced is delivered, at once, every time."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole("weighs", cut=1))

    async with raw_backend(talk) as front:
        for _ in range(5):
            async with asyncio.timeout(20), front.post() as answer:
                assert answer.status in (200, 502)
                await answer.read()
        await front.idle()


async def test_an_answer_that_never_ends_is_cut_off_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "LARGEST_ANSWER", 1 << 20)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while not writer.is_closing():
            writer.write(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
            await writer.drain()

    async with raw_backend(talk) as front, front.post() as answer:
        assert answer.status == 502
        assert "does not end" in await answer.text()


async def test_an_answer_that_trickles_for_ever_is_cut_off_in_time() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while not writer.is_closing():
            writer.write(b"1\r\n \r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with raw_backend(talk, ", timeouts: {answer: 0.5}") as front, front.post() as answer:
        assert answer.status == 504
        assert "took over 0.5 s" in await answer.text()


async def test_an_event_that_trickles_for_ever_is_cut_off_in_time() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while not writer.is_closing():
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    extra = ", timeouts: {first_byte: 0.5, idle: 0.5}"
    async with raw_backend(talk, extra) as front, asyncio.timeout(20), front.post(stream=True) as answer:
        assert answer.status == 504
        assert "no whole event for 0.5 s" in await answer.text()


async def test_lines_behind_an_answer_do_not_fill_the_memory() -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\n{}\r\n0\r\nX: "
        )
        while not writer.is_closing() and sent < 64 << 20:
            writer.write(b"a" * 65536)
            sent += 65536
            await writer.drain()

    async with raw_backend(talk) as front, asyncio.timeout(20), front.post() as answer:
        assert answer.status == 502
        await answer.read()
    assert sent < 64 << 20


_ENORMOUS: dict[str, Any] = {"kv_blocks_total": 1 << 62, "kv_blocks_used": 1 << 62, "running_requests": 9}


@pytest.mark.parametrize(
    "lie",
    [
        {**_ENORMOUS, "block_size": 1 << 62},
        {**_ENORMOUS, "block_size": 1e308},
        {"step_cost": {**STEP_COST, "per_token": 1e308}},
        {"step_cost": {**STEP_COST, "per_token": 1e-320, "per_prompt_pair": 1.0}},
    ],
    ids=lambda lie: str(lie)[-40:],
)
async def test_what_one_replica_says_of_its_load_keeps_nobody_out(lie: dict[str, Any]) -> None:
    """It was reckoned with for all replicas: too large for a float, each request failed, and so did /v1/load."""
    honest, liar = Backend(name="honest"), Backend(name="liar", load=lie)
    async with fleet(honest, liar, model="    policy: weigh") as front:
        for page in ("/v1/load", "/metrics"):
            async with front.client.get(front.url + page) as answer:
                assert answer.status == 200, page
        for _ in range(20):
            async with front.post() as answer:
                assert answer.status == 200, await answer.text()
        watched = liar.probes
        await until(lambda: liar.probes > watched)


@pytest.mark.parametrize("status", [999, 600, 199])
async def test_a_status_that_http_does_not_have_is_a_bad_gateway(status: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % status)
        writer.close()

    async with raw_backend(talk) as front, front.post() as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "replicas_failed"


async def test_an_answer_may_speak_of_the_end_of_streams() -> None:
    """The text `data: [DONE]` inside a delta is text; only an event that is [DONE] ends a stream."""
    told = 'write `data: [DONE]` at the end\ndata: [DONE]\n\n and `data: {"error"` for errors'

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": told}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {"content": " and more"}, "finish_reason": None}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        body = (
            b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
            + b"data: [DONE]\n\n"
        )
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        for start in range(0, len(body), 60):
            writer.write(body[start : start + 60])
            await writer.drain()
            await asyncio.sleep(0.002)

    async with raw_backend(talk) as front:
        events = await front.stream()
        text = "".join(
            event["choices"][0]["delta"].get("content", "") for event in events if event != "[DONE]"
        )
        assert text == told + " and more"
        assert events[-1] == "[DONE]"


def test_the_meter_sees_an_end_only_in_a_line_of_its_own() -> None:
    meter = Meter(hide_usage=False)
    meter.count(b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n')
    assert not meter.done
    meter.count(b'data: {"choices":[]}\n\ndata: [DONE]\n\n')
    assert meter.done
    broken = Meter(hide_usage=False)
    broken.count(b'data: {"choices":[]}\n\ndata: {"error": {"message": "gone"}}\n\n')
    assert broken.failed


async def test_a_password_in_a_url_is_shown_to_nobody() -> None:
    config = (
        "health: {interval: 0.05, slow_start: 0}\n"
        "models:\n  m:\n    replicas:\n"
        "      - {name: a, url: 'http://user:s3cret@127.0.0.1:9', probe: false}\n"
    )
    async with fleet(config=config, wait=False) as front:
        async with front.post() as answer:
            assert answer.status >= 500
            assert "s3cret" not in await answer.text()
        assert "s3cret" not in json.dumps([await front.get("/v1/tickets"), await front.get("/v1/load")])


async def test_a_replica_that_is_well_again_makes_the_gateway_ready_without_a_request() -> None:
    backend = Backend("a", statuses=[500] * 3)
    top = "breaker: {failures: 3, cool_off: 0.2}\nretry: {attempts: 1}"
    async with fleet(backend, top=top) as front:
        for _ in range(3):
            async with front.post() as answer:
                assert answer.status >= 500
        await until(lambda: front.gateway.ready)
        async with front.client.get(front.url + "/health") as answer:
            assert answer.status == 200


#: JSON that no reader goes to the end of, wherever it may stand.
DEEP = "[" * 20_000 + "]" * 20_000
NESTED = {
    "all of it": DEEP,
    "usage": '{"choices": [{"index": 0, "delta": {"content": "a"}, "message": {"content": "a"}}], "usage": {"a": @}}',
    "content": '{"choices": [{"index": 0, "delta": {"content": @}, "message": {"content": @}}]}',
    "calls": '{"choices": [{"index": 0, "delta": {"tool_calls": @}, "message": {"tool_calls": @}}]}',
    "a choice": '{"choices": [@]}',
    "an error": '{"error": @}',
    "what nobody reads": '{"choices": [{"index": 0, "delta": {"content": "a"}, "message": {"content": "a"}}], "x": @}',
}


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_nested_without_end_breaks_no_reader(
    streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    deep_note = DEEP[:8_000]  # of a header, too

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = NESTED[said[-1]].replace("@", DEEP).encode()
        kind, body = (
            (b"text/event-stream", b"data: %b\n\n" % body) if streams else (b"application/json", body)
        )
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nx-weighbridge-prefix: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (kind, deep_note.encode(), len(body), body)
        )

    async with raw_backend(talk) as front:
        for name in NESTED:
            said.append(name)
            async with asyncio.timeout(20), front.post(stream=streams) as answer:
                # A stream that begins with an error is answered with its code, which these have not.
                assert answer.status in ((200, 500, 502) if name == "an error" else (200, 502)), name
                await answer.read()
        await front.idle()
    assert not [one for one in caplog.records if one.exc_info]
