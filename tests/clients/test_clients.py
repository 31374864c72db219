"""Clients that nobody here wrote, pinned and in an environment each, at all four doors."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clients.lane.environments import python_of
from tests.clients.lane.table import PROGRAMS
from tests.doors.doors import DOORS, KEYS, SINGLE, Door, all_doors, logged
from tests.fleet.anthropic_server import CALLS, TEXT, AnthropicServer, events, message
from tests.fleet.backends import fleet, serving
from tests.server.running import free_port, wait_until_ready

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]

CLIENTS = ("anthropic_sdk", "ollama_sdk", "openai_decisions")
HERE = Path(__file__).parent / "programs"

CLIENT_EVENTS = {"message_start", "content_block_start", "content_block_delta", "text", "content_block_stop"}


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Door]]:
    with all_doors(tmp_path_factory.mktemp("doors"), [True]) as found:
        yield found[True]


@pytest.fixture(scope="module")
def pythons() -> dict[str, Path]:
    """The interpreter of each client's environment."""
    return {name: python_of(PROGRAMS[name]) for name in CLIENTS}


def ran(python: Path, program: str, *words: str) -> dict[str, Any]:
    """What a client's program says of a server; it has no home and nothing in its environment."""
    with_nothing = {"HOME": str(python.parent), "PATH": os.defpath, "NO_PROXY": "*"}
    command = [str(python), "-I", str(HERE / f"{program}.py"), *words]
    done = subprocess.run(command, env=with_nothing, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", DOORS)
def test_anthropics_own_client(name: str, doors: dict[str, Door], pythons: dict[str, Path]) -> None:
    door = doors[name]
    found = ran(pythons["anthropic_sdk"], "anthropic_sdk", door.url, door.model, KEYS["alice"])
    assert found["chat"]["output"] == 4
    assert found["listed"] == {"listed": True, "shown": True}
    assert found["counted"] == {"exact": True}
    assert set(found["streamed"]["kinds"]) <= CLIENT_EVENTS | {"message_delta", "message_stop"}
    assert (found["streamed"]["stop"], found["streamed"]["output"]) == ("max_tokens", 4)
    assert found["tools"] == {"inputs": [True, True], "stop": "tool_use", "after": True}
    assert found["structured"] == {"unit": True}
    assert found["errors"] == {
        "400": ["BadRequestError", "invalid_request_error"],
        "401": ["AuthenticationError", "authentication_error"],
        "404": ["NotFoundError", "not_found_error"],
    }
    ticket = door.ticket(found["cancelled"]["id"].removeprefix("msg_"), KEYS["alice"])
    assert ticket["finish_reason"] in ("abort", "stop")
    assert ticket["output_tokens"] < 900
    at_rest(door)


@pytest.mark.parametrize("name", DOORS)
def test_ollamas_own_client(name: str, doors: dict[str, Door], pythons: dict[str, Path]) -> None:
    door = doors[name]
    found = ran(pythons["ollama_sdk"], "ollama_sdk", door.url, door.model, KEYS["alice"])
    assert found["chat"] == {"done": "length", "output": 4, "times": True}
    assert found["streamed"]["output"] == 4
    assert found["streamed"]["done"][-1] is True
    assert found["generated"]["loaded"] == "load"
    assert all(0 < output <= 4 for output in found["generated"]["output"])
    assert [found["listed"][name] for name in ("listed", "loaded")] == [True, True]
    assert [found["listed"][name] for name in ("pulled", "progress")] == ["success", "success"]
    assert found["structured"] == {"heavy": True}
    assert found["tools"] == {"after": True}
    assert found["errors"] == {"400": [400, True], "401": [401, True], "404": [404, True]}
    at_rest(door)


@pytest.mark.parametrize("name", DOORS)
def test_openais_own_client_asks_for_decisions(
    name: str, doors: dict[str, Door], pythons: dict[str, Path]
) -> None:
    door = doors[name]
    found = ran(pythons["openai_decisions"], "openai_decisions", door.url, door.model, KEYS["alice"])
    kinds = ["Predicate", "Choice", "Score"]
    assert found == {
        "types": [f"AnswerAnswerResource{kind}" for kind in kinds],
        "names": ["late", None, None],
        "masses": [True] * 3,
        "choice": True,
        "output": 0,
        "refused": "questions",
    }
    at_rest(door)


LIMITED = """\
models: {{tiny: {{replicas: [{{url: '{single}', dialect: weighbridge, key: {key}}}]}}}}
tenants: {{alice: {{key: {key}, limits: {{requests_per_minute: 1}}}}}}
"""
ONCE_TOO_OFTEN = {
    "anthropic_sdk": """
import sys, anthropic
client = anthropic.Anthropic(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)
for _ in range(2):
    try:
        client.messages.create(model="tiny", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    except anthropic.RateLimitError as error:
        print(error.body["error"]["type"], int(error.response.headers["retry-after"]) > 0)
""",
    "ollama_sdk": """
import sys, ollama
client = ollama.Client(host=sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
for _ in range(2):
    try:
        client.generate(model="tiny", prompt="x", options={"num_predict": 1})
    except ollama.ResponseError as error:
        print(error.status_code, bool(error.error))
""",
}


@pytest.mark.parametrize(
    ("name", "wanted"), [("anthropic_sdk", "rate_limit_error True"), ("ollama_sdk", "429 True")]
)
def test_who_asks_too_often_is_told_so(
    name: str, wanted: str, doors: dict[str, Door], pythons: dict[str, Path], tmp_path: Path
) -> None:
    port, file = free_port(), tmp_path / "limited.yaml"
    file.write_text(LIMITED.format(single=doors[SINGLE].url, key=KEYS["alice"]), encoding="utf-8")
    with ExitStack() as stack:
        words = ["serve", "--config", str(file), "--port", str(port)]
        process = stack.enter_context(logged(words, tmp_path / "log"))
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, 60.0)
        command = [str(pythons[name]), "-I", "-c", ONCE_TOO_OFTEN[name], url, KEYS["alice"]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == wanted, sys.version


def at_rest(door: Door) -> None:
    deadline = time.monotonic() + 10.0
    while held := door.holds():
        assert time.monotonic() < deadline, held
        time.sleep(0.05)


def test_an_anthropic_server_behind_is_asked_and_answers_in_its_own_types(pythons: dict[str, Path]) -> None:
    server = AnthropicServer(CALLS, "tool_use")
    asyncio.run(_asked_in_every_way(server))
    told = {
        "asked": server.asked,
        "events": [
            *events(TEXT, "end_turn"),
            *events(CALLS, "tool_use"),
            *events(TEXT, "stop_sequence", "x"),
        ],
        "messages": [message(TEXT, "end_turn"), message(CALLS, "tool_use"), message([], "refusal")],
    }
    command = [str(pythons["anthropic_sdk"]), "-I", str(HERE / "anthropic_types.py")]
    done = subprocess.run(
        command, input=json.dumps(told), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found == {"kept": [True] * 3, "events": len(told["events"]), "messages": 3}


async def _asked_in_every_way(server: AnthropicServer) -> None:
    """A chat with all it can have, whole and streamed, and a Messages request, at a gateway in front of the server."""
    call = {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": '{"thing": "a"}'}}
    function = {"name": "weigh", "parameters": {"type": "object"}, "description": "Weighs.", "strict": True}
    chat = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}],
            },
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "12 g"},
        ],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "high",
        "stop": ["END"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}},
        },
    }
    async with serving(server) as url:
        replica = f"{{name: claude, url: '{url}', dialect: anthropic, model: claude-x, key: k-ant}}"
        config = f"health: {{interval: 0.05}}\nmodels:\n  m:\n    replicas: [{replica}]\n"
        async with fleet(config=config) as front:
            for stream in (False, True):
                async with front.post(**chat, stream=stream) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
            asked = {
                "model": "m",
                "max_tokens": 9,
                "messages": [{"role": "user", "content": "a"}],
                "stream": True,
            }
            async with front.client.post(front.url + "/v1/messages", json=asked) as answer:
                assert b"message_stop" in await answer.read()
