"""What processes and servers behind a gateway say of their failures is for its operator: where they are, their files.

Tenants are told that it failed and under which ticket the operator finds the rest, in each protocol and in streams.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doors.client import Reply
from tests.doors.doors import Loop, logged
from tests.doors.test_secrets import get, post, until_it_answers
from tests.fleet.backends import serving
from tests.server.running import free_port

ALICE, ADMIN = "alice-key", "admin-key"
#: Words of a backend, none of which may reach a tenant.
INSIDE = "/opt/models/inside/weights.bin"
OWN = "temperature must be at most 2"
KEYS = f"admin_key: {ADMIN}\ntenants: {{alice: {{key: {ALICE}}}}}\n"
CONFIG = """\
health: {interval: 0.1, slow_start: 0}
retry: {attempts: 2, longest_wait: 0.1}
breaker: {failures: 10000, minimum: 10000}
queue: {max_wait: 0.5}
models:
  down: {replicas: [{url: 'http://127.0.0.1:9', probe: false}]}
  probed: {replicas: [{url: 'http://127.0.0.1:9'}]}
  fails400: {replicas: [{url: 'BACK/400', probe: false}]}
  fails429: {replicas: [{url: 'BACK/429', probe: false}]}
  fails500: {replicas: [{url: 'BACK/500', probe: false}]}
  fails503: {replicas: [{url: 'BACK/503', probe: false}]}
  moved: {replicas: [{url: 'BACK/307', probe: false}]}
  breaks: {replicas: [{url: 'BACK/200', probe: false}]}
routes:
  auto:
    edge: {model: fails500}
    cloud: {url: 'BACK/500/v1', model: big, key: k, price: {input_usd_per_million: 1, output_usd_per_million: 1}}
"""
FAILING = ("down", "probed", "fails429", "fails500", "fails503", "moved", "breaks", "auto")


class Talkative:
    """Answers with the status that its path names, and says where its files are; with 200 it does so in a stream."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = int(scope["path"].split("/")[1])
        message = OWN if status == 400 else f"cannot read {INSIDE}"
        body = json.dumps({"error": {"message": message, "code": "internal", "type": INSIDE}}).encode()
        headers = [(b"content-type", b"application/json"), (b"location", f"http://{INSIDE}".encode())]
        if status == 200:
            headers = [(b"content-type", b"text/event-stream")]
            first = b'data: {"choices": [{"index": 0, "delta": {"content": "echo"}}]}\n\n'
            body = first + b"data: " + body + b"\n\n"
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def back() -> Iterator[str]:
    with Loop(serving(Talkative())) as url:
        yield url


def asked(port: int, model: str, key: str | None) -> list[Reply]:
    """What a model answers in every protocol, streamed and whole."""
    turns = [{"role": "user", "content": "hi"}]
    replies = []
    for more in ({"stream": False}, {"stream": True}):
        replies += [
            post(port, "/v1/chat/completions", {"model": model, "messages": turns, **more}, key),
            post(port, "/v1/messages", {"model": model, "messages": turns, "max_tokens": 2, **more}, key),
            post(port, "/v1/responses", {"model": model, "input": "hi", **more}, key),
            post(port, "/api/chat", {"model": model, "messages": turns, **more}, key),
        ]
    return replies


def test_tenants_hear_that_it_failed_and_the_operator_why(tmp_path: Path, back: str) -> None:
    config, port, log = tmp_path / "weighbridge.yaml", free_port(), tmp_path / "log"
    config.write_text(KEYS + CONFIG.replace("BACK", back))
    with logged(["serve", "--config", str(config), "--port", str(port)], log) as process:
        until_it_answers(port, process)
        for model in FAILING:
            replies = asked(port, model, ALICE)
            replies += [get(port, page, ALICE) for page in ("/v1/models", "/v1/tickets?limit=1000")]
            for reply in replies:
                told = str(reply.headers).encode() + reply.body
                assert INSIDE.encode() not in told, (model, told)
                assert back.removeprefix("http://").encode() not in told, (model, told)
                assert b"127.0.0.1:9" not in told, (model, told)
            assert not [reply for reply in replies[:8:4] if reply.status == 200 and model != "breaks"], model
        for reply in asked(port, "fails400", ALICE):
            assert OWN.encode() in reply.body, "what is wrong with the request is told as it was said"
        seen = get(port, "/v1/tickets?limit=1000", ADMIN).body.decode()
        assert INSIDE in seen
        assert "127.0.0.1:9" in seen
        failed = asked(port, "fails500", ALICE)[0]
        message = failed.json["error"]["message"]
        assert failed.header("x-weighbridge-ticket") in message
        assert (failed.status, failed.json["error"]["code"]) == (500, "internal")


def test_where_nobody_has_to_be_known_everybody_runs_the_server(tmp_path: Path, back: str) -> None:
    config, port, log = tmp_path / "weighbridge.yaml", free_port(), tmp_path / "log"
    config.write_text(CONFIG.replace("BACK", back))
    with logged(["serve", "--config", str(config), "--port", str(port)], log) as process:
        until_it_answers(port, process)
        assert INSIDE.encode() in asked(port, "fails500", None)[0].body
        assert b"127.0.0.1:9" in asked(port, "down", None)[0].body


def test_where_files_of_the_server_are_is_for_its_operator(tmp_path: Path, back: str) -> None:
    """Files of batches and responses that are damaged while they are in use."""
    config, port, log = tmp_path / "weighbridge.yaml", free_port(), tmp_path / "log"
    folder = tmp_path / "state-of-the-operator"
    files = f"batches_file: {folder}/batches\nresponses_on_disk: always\nresponses_file: {folder}/responses\n"
    config.write_text(KEYS + files + CONFIG.replace("BACK", back))
    with logged(["serve", "--config", str(config), "--port", str(port)], log) as process:
        until_it_answers(port, process)
        assert get(port, "/v1/files", ALICE).status == 200
        assert get(port, "/v1/responses/resp_of_nobody", ALICE).status == 404
        for file in folder.iterdir():
            if file.suffix != ".lock":
                file.write_bytes(b"\xff" * max(file.stat().st_size, 1 << 16))
        for page in (
            "/v1/files",
            "/v1/batches",
            "/v1/responses/resp_of_nobody",
            "/v1/files/file-none/content",
        ):
            reply = get(port, page, ALICE)
            assert reply.status == 503, (page, reply.body)
            assert folder.name.encode() not in reply.body
            assert b"in its log" in reply.body
    assert folder.name in log.read_text()
