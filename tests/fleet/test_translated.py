"""Replicas speak OpenAI's chat, clients another protocol: what goes wrong behind a gateway is told in the client's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fleet.backends import Backend, Front, fleet, until
from weighbridge.wire import answer as wire_answer

TURNS = [{"role": "user", "content": "x"}]
ASKED = {
    "/v1/messages": {"model": "m", "max_tokens": 9, "messages": TURNS},
    "/api/chat": {"model": "m", "messages": TURNS},
}


async def asked(front: Front, path: str, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    async with front.client.post(front.url + path, json={**ASKED[path], **fields}) as answer:
        return (
            answer.status,
            {name.lower(): value for name, value in answer.headers.items()},
            await answer.read(),
        )


def told(path: str, body: bytes) -> tuple[str, str]:
    """The kind and the words of an error; Ollama's have no kind."""
    error = json.loads(body.strip().splitlines()[-1].removeprefix(b"data: "))["error"]
    return (error["type"], error["message"]) if path == "/v1/messages" else ("", error)


def lines_of(path: str, body: bytes) -> list[dict[str, Any]]:
    lines = body.splitlines()
    if path == "/v1/messages":
        lines = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines]


KINDS = {
    400: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    529: "overloaded_error",
}


@pytest.mark.parametrize(
    ("status", "stream"), [(400, False), (413, True), (422, False), (429, True), (500, False), (503, True)]
)
async def test_a_replicas_refusal_is_told_in_the_clients_protocol(status: int, stream: bool) -> None:
    backend = Backend("a", statuses=[status] * 9)
    async with fleet(backend, top="retry: {attempts: 1}") as front:
        for path in ASKED:
            found, headers, body = await asked(front, path, stream=stream)
            kind, words = told(path, body)
            assert headers["content-type"] == "application/json"
            assert headers["x-request-id"]
            assert words
            if status in (400, 413, 422):
                assert (found, words) == (status, f"a {status} from a")
            if path == "/v1/messages":
                assert json.loads(body)["type"] == "error"
                assert kind == KINDS[found]
            else:
                assert 400 <= found < 529


@pytest.mark.parametrize("path", ASKED)
async def test_a_stream_that_breaks_off_ends_with_an_error(path: str) -> None:
    async with fleet(Backend("a", tokens=5, break_after=2)) as front:
        status, _, body = await asked(front, path, stream=True)
    assert status == 200
    assert "a" in told(path, body)[1]
    kinds = [one.get("type") for one in lines_of(path, body)]
    assert kinds[-1] == ("error" if path == "/v1/messages" else None)
    assert "message_stop" not in kinds
    assert not any(one.get("done") for one in lines_of(path, body))


async def test_an_answer_in_one_piece_that_breaks_off_is_an_error_and_no_half_answer() -> None:
    async with fleet(Backend("a", tokens=5, break_after=2)) as front:
        status, _, body = await asked(front, "/api/chat", stream=False)
    assert status == 500
    assert list(json.loads(body)) == ["error"]


async def test_who_leaves_before_an_answer_in_one_piece_is_here_ends_it_behind_too() -> None:
    backend = Backend("a", tokens=500, gap=0.01)
    async with fleet(backend) as front:
        task = asyncio.create_task(asked(front, "/api/chat", stream=False))
        await until(lambda: backend.running)
        task.cancel()
        await until(lambda: backend.cancelled)
        await front.idle()


async def test_a_message_that_waits_is_kept_open_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_answer, "KEEP_ALIVE_SECONDS", 0.1)
    backend = Backend("a", gate=asyncio.Event(), tokens=2)
    async with fleet(backend) as front:
        body = {**ASKED["/v1/messages"], "stream": True}
        async with front.client.post(front.url + "/v1/messages", json=body) as answer:
            data = await answer.content.readany()
            backend.let_go()
            data += await answer.read()
    kinds = [one["type"] for one in lines_of("/v1/messages", data)]
    assert kinds[0] == "ping"
    assert [kind for kind in kinds if kind != "ping"][:2] == ["message_start", "content_block_start"]
    assert kinds[-1] == "message_stop"


async def test_replicas_are_asked_for_a_chat_and_not_told_who_the_client_works_for() -> None:
    backend = Backend("a", tokens=2)
    async with fleet(backend) as front:
        await asked(front, "/v1/messages", metadata={"user_id": "jane"}, stream=True)
        await asked(front, "/api/chat", keep_alive="5m")
    assert backend.paths == ["/v1/chat/completions"] * 2
    assert all("jane" not in raw.decode() and b"keep_alive" not in raw for raw in backend.raw)
    assert [call["stream_options"] for call in backend.calls] == [{"include_usage": True}] * 2
