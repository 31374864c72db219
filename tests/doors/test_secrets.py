"""No key, password or account of a gateway's configuration is ever shown: in no answer, ticket, log line, page,
metric, error, nor by the commands that read the configuration, also where it is wrong or its backends are down."""

from __future__ import annotations

import asyncio
import json
import re
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.doors.client import NoReply, Reply, exchange, request
from tests.doors.doors import Loop, logged
from tests.fleet.backends import serving
from tests.server.running import free_port
from weighbridge.cli.app import app
from weighbridge.errors import BadInput
from weighbridge.routes.config import load_configuration, parse_configuration
from weighbridge.secret import Secret
from weighbridge.wire.client import HttpClient
from weighbridge.wire.headers import bearer_of, headers_of
from weighbridge.wire.keys import ApiKey, Keys

#: In every secret below; nothing else has it.
CANARY = "cAnArY"
ALICE, ADMIN = f"alice-{CANARY}-key", f"admin-{CANARY}-key"

CONFIG = f"""\
admin_key: {ADMIN}
health: {{interval: 0.1, slow_start: 0}}
retry: {{attempts: 2, longest_wait: 0.2}}
tickets: TICKETS
shared_limits: {{redis: 'redis://user:redis-{CANARY}@127.0.0.1:9/0?password=also-{CANARY}', timeout: 0.05}}
limits: {{tokens_per_minute: 1000000}}
tenants:
  alice: {{keys: [{{key: {ALICE}}}, {{key: old-{CANARY}, expires: 2001-01-01}}]}}
  bob: {{key: bob-{CANARY}}}
models:
  down:
    replicas:
      - {{url: 'http://user:down-{CANARY}@127.0.0.1:9', key: key-{CANARY}, probe: false,
          headers: {{api-key: header-{CANARY}, X-Tag: tag-{CANARY}}}}}
  account:
    replicas: [{{url: 'ECHO_WITH_ACCOUNT/400', probe: false}}]
  echo400:
    replicas: [{{url: 'ECHO/400', key: key-{CANARY}, headers: {{api-key: header-{CANARY}}}, probe: false}}]
  echo401:
    replicas: [{{url: 'ECHO/401', key: key-{CANARY}, probe: false}}]
  echo500:
    replicas: [{{url: 'ECHO/500', key: key-{CANARY}, probe: false}}]
  stream200:
    replicas: [{{url: 'ECHO/200', key: key-{CANARY}, headers: {{api-key: header-{CANARY}}}, probe: false}}]
  unsendable:
    replicas: [{{url: 'http://127.0.0.1:9', headers: {{X-Euro: '€-{CANARY}'}}, probe: false}}]
routes:
  auto:
    edge: {{model: down}}
    cloud: {{url: 'http://user:cloud-{CANARY}@127.0.0.1:9/v1', model: big, key: cloud-key-{CANARY}}}
"""
MODELS = (
    "down",
    "account",
    "echo400",
    "echo401",
    "echo500",
    "stream200",
    "unsendable",
    "auto",
    f"model-{CANARY[:3]}",
)


class Echo:
    """A server that answers with the status its path names, and repeats the headers it got in the message."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = int(scope["path"].split("/")[1])
        said = " ".join(f"{name.decode()}: {value.decode()}" for name, value in scope["headers"])
        body = json.dumps({"error": {"message": said, "code": "echo"}}).encode()
        headers = [(b"content-type", b"application/json")]
        if status == 200:  # an error behind a first piece of the answer
            headers = [(b"content-type", b"text/event-stream")]
            first = b'data: {"choices": [{"index": 0, "delta": {"content": "echo"}}]}\n\n'
            body = first + b"data: " + body + b"\n\n"
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def post(port: int, path: str, body: Any, key: str | None) -> Reply:
    headers: list[Any] = [("Content-Type", "application/json")]
    headers += [("Authorization", f"Bearer {key}")] if key else []
    return exchange(port, request("POST", path, headers, json.dumps(body).encode(), f"127.0.0.1:{port}"))


def get(port: int, path: str, key: str | None) -> Reply:
    headers: list[Any] = [("Authorization", f"Bearer {key}")] if key else []
    return exchange(port, request("GET", path, headers, None, f"127.0.0.1:{port}"))


def until_it_answers(port: int, process: Any) -> None:
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            get(port, "/health", None)
        except (OSError, NoReply):
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the gateway does not answer")


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with Loop(serving(Echo())) as url:
        yield url


def written(folder: Path, echo: str) -> Path:
    file = folder / "weighbridge.yaml"
    account = echo.replace("http://", f"http://user:account-{CANARY}@")
    text = CONFIG.replace("ECHO_WITH_ACCOUNT", account).replace("ECHO", echo)
    file.write_text(text.replace("TICKETS", str(folder / "tickets.jsonl")), encoding="utf-8")
    return file


@pytest.mark.parametrize("json_logs", [False, True])
def test_a_gateway_with_everything_wrong_shows_no_secret(tmp_path: Path, echo: str, json_logs: bool) -> None:
    config, port, log = written(tmp_path, echo), free_port(), tmp_path / "log"
    command = ["serve", "--config", str(config), "--port", str(port), *["--json-logs"][: int(json_logs)]]
    replies: list[Reply] = []
    with logged(command, log) as process:
        until_it_answers(port, process)
        for model in MODELS:
            for more in ({}, {"stream": True}):
                chat = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
                replies.append(post(port, "/v1/chat/completions", chat, ALICE))
        replies += [post(port, "/v1/chat/completions", {}, key) for key in (None, "no", f"old-{CANARY}")]
        for entry in (
            {"url": f"http://u:{CANARY}/x@127.0.0.1:9", "for": "down"},
            {"url": f"http://u:{CANARY}@", "for": "down"},
            {"url": "http://127.0.0.1:9", "key": {CANARY: CANARY}, "for": "down"},
            {"url": f"http://u:{CANARY}@127.0.0.1:9", "key": f"k-{CANARY}", "name": "new", "for": "down"},
        ):
            replies.append(post(port, "/admin/replicas", entry, ADMIN))
        assert [reply.status for reply in replies[-4:]] == [400, 400, 400, 201]
        tickets = get(port, "/v1/tickets", ALICE)
        pages = ["/", "/health", "/metrics", "/v1/load", "/v1/models", "/admin/replicas", "/none"]
        pages += [f"/v1/tickets/{one['id']}" for one in tickets.json["data"]]
        replies += [tickets, *(get(port, page, key) for page in pages for key in (ALICE, ADMIN, None))]
    told = b"\n".join(str(reply.headers).encode() + reply.body for reply in replies)
    assert b"is out of reach" in told  # the backends that are down were asked
    assert b"refuses the key" in told
    assert b"echo" in told
    assert len(tickets.json["data"]) >= len(MODELS) - 1
    account = b64encode(f"user:account-{CANARY}".encode())
    for text in (told, log.read_bytes(), (tmp_path / "tickets.jsonl").read_bytes()):
        for secret in (CANARY.encode(), account):
            assert secret not in text, _around(text, secret)


def _around(text: bytes, secret: bytes) -> str:
    place = text.index(secret)
    return text[max(place - 300, 0) : place + 100].decode(errors="replace")


@pytest.mark.parametrize("command", ["show", "show --json", "check", "check --json"])
def test_commands_that_read_it_show_none(tmp_path: Path, echo: str, command: str) -> None:
    words = ["config", *command.split(" ")]
    shown = CliRunner().invoke(app, [*words[:2], str(written(tmp_path, echo)), *words[2:]])
    assert shown.exit_code == 0, shown.output
    assert CANARY not in shown.output


def test_a_migration_shows_none(tmp_path: Path, echo: str) -> None:
    """The lines that change, and those around them."""
    file = tmp_path / "weighbridge.yaml"
    cloud = (
        f"url: 'http://user:%41-{CANARY}@127.0.0.1:9/v1', model: big, key: key-{CANARY}, price: {{input: 1}}"
    )
    file.write_text(f"""\
admin_key: {ADMIN}
routes:
  auto:
    edge: {{url: 'http://127.0.0.1:9/v1', model: small, context: 99}}
    cloud: {{{cloud}, headers: {{api-key: header-{CANARY}}}}}
""")
    for words in ([], ["--json"]):
        shown = CliRunner().invoke(app, ["config", "migrate", str(file), *words])
        assert shown.exit_code == 0, shown.output
        assert "input_usd_per_million" in shown.output
        assert CANARY not in shown.output


def test_settings_show_none(tmp_path: Path, echo: str) -> None:
    read = load_configuration(written(tmp_path, echo))
    shown = [repr(read), str(asdict(read.fleet)), json.dumps(asdict(read), default=str)]
    for text in shown:
        assert CANARY not in text
        assert "***" in text


#: What people write in place of a key by mistake, and YAML reads as something else.
ODD = ["*{}", "&{}", "!{} x", "!{}!x x", "@{}", "%{}", "`{}", "{{{}: 1}}", "[{}]", '"{}', "'{}", "{}: {}"]
ODD += ['"{}\\n"', '"{}\\q"', "x: *{}", "- {}", '"{}" x', "|{}", "9182736450{}", '"\\ud800{}"']


@pytest.mark.parametrize("odd", ODD)
def test_a_file_that_is_wrong_is_refused_without_showing_one(odd: str) -> None:
    """In the place of every secret of the file, one after another."""
    places = list(re.finditer(rf"(?:key|api-key|X-Tag|admin_key): ([\w-]*{CANARY}[\w-]*)", CONFIG))
    assert len(places) >= 9
    for place in places:
        text = (
            CONFIG[: place.start(1)] + odd.replace("{}", CANARY).replace("{{", "{") + CONFIG[place.end(1) :]
        )
        try:
            parse_configuration(text, "weighbridge.yaml", Path())
        except BadInput as error:
            chain: BaseException | None = error
            while chain is not None:  # a traceback tells all of them
                assert CANARY not in str(chain), odd
                chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)


def test_a_number_for_a_key_is_not_repeated() -> None:
    with pytest.raises(BadInput, match="must be text") as caught:
        parse_configuration("tenants: {a: {key: 918273645}}", "weighbridge.yaml", Path())
    assert "918273645" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "none", "--api-key", f"={CANARY}"],
        ["fleet", "list", "--url", f"http://me:{CANARY}@127.0.0.1:9"],
        ["fleet", "list", "--url", f"http://me:{CANARY}/@127.0.0.1:9"],
        ["fleet", "list", "--url", f"me:{CANARY}@127.0.0.1:9"],
        ["bench", "serve", "--url", f"me:{CANARY}@127.0.0.1:9"],
        ["bench", "serve", "--url", f"http://me:{CANARY}@127.0.0.1:9"],
        ["ticket", "0" * 32, "--url", "http://127.0.0.1:9", "--api-key", f"€{CANARY}"],
        ["ticket", "0" * 32, "--url", "http://127.0.0.1:9", "--api-key", f"{CANARY}\nX: y"],
    ],
)
def test_commands_that_fail_show_none(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    told = result.output
    error: BaseException | None = result.exception
    while error is not None:
        told += f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    assert CANARY not in told, told


async def test_a_key_outside_latin_1_arrives_as_utf_8() -> None:
    """What our client sends is what our door reads: UTF-8."""
    got: list[Any] = []

    async def door(scope: Any, receive: Any, send: Any) -> None:
        got.append(headers_of(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async with serving(door) as url, asyncio.timeout(60):
        client = HttpClient(url, 30.0)
        for key in ("plain", "schlüssel", "€uro"):
            head = client.head("GET", "/", {"Authorization": bearer_of(Secret(key))})
            response = await client.send(head)
            await response.begin(30.0)
            await response.whole(100)
            assert Keys([ApiKey("t", Secret(key))]).tenant(got[-1]) == "t"
        client.close()
