"""Nothing long on a loop or on the engine's thread: CPU time of single turns, for the inputs that made them long.

Engine, gateway and route are in this process, each on a loop of its own, and everything is asked over sockets.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.doors.client import Reply, connect, exchange, request
from tests.doors.doors import Loop
from tests.doors.model import make_model
from tests.fleet.backends import Backend, serving
from tests.server.turns import Turns
from weighbridge.cli.serve.model import assemble
from weighbridge.engine.build import build_replica
from weighbridge.engine.settings import EngineSettings
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas import build as fleet_build
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import parse_configuration
from weighbridge.server.app import create_app
from weighbridge.server.connections import BoundedHttp
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.lifecycle import settle_collector
from weighbridge.server.settings import ServerSettings
from weighbridge.ticket import Ticket, TicketStore

#: Seconds of CPU time that one turn may take; in a step of the engine, beside computing the model.
LONGEST = 0.05
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MEGABYTES = 7_500_000


@dataclass
class House:
    """Three doors and what their threads take."""

    ports: dict[str, int]
    turns: Turns
    unfilled: list[tuple[TicketStore, Callable[[Ticket], None]]]

    def ask(self, door: str, path: str, body: bytes | None, method: str = "POST") -> Reply:
        port = self.ports[door]
        headers: list[Any] = [("Content-Type", "application/json")] if body is not None else []
        return exchange(port, request(method, path, headers, body, f"127.0.0.1:{port}"), patience=120.0)

    def hold(self, work: Callable[[], None]) -> None:
        """Fail for a long turn of `work`, three times in a row: beside a busy neighbour on the same core CPU time runs
        on for what is waited for.

        What the tests before have left in memory is not of its turns: a collection that came to walk through it would
        be charged to whoever runs just then.
        """
        for _ in range(3):
            gc.freeze()
            self.turns.clear()
            work()
            late = {name: turn for name, turn in self.turns.longest.items() if turn[0] > LONGEST}
            if not late:
                return
        assert not late

    def wait(self, there: Callable[[dict[str, Any]], bool]) -> None:
        """Until the engine's load is so; fails after a minute."""
        deadline = time.monotonic() + 60.0
        while not there(self.ask("engine", "/v1/load", None, "GET").json):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def fill(self) -> None:
        """Ten thousand finished tickets, once."""
        while self.unfilled:
            store, finished = self.unfilled.pop()
            for index in range(10_000):
                scores = {f"replica-{i}": float(i) for i in range(16)}
                ticket = Ticket(
                    f"{index:032x}", f"tenant-{index}", "tiny", "", 5, 5, replica="near", scores=scores
                )
                ticket.finished, ticket.finish_reason = time.time(), "stop"
                store.add(ticket)
                finished(ticket)


CONFIG = """\
health: {{interval: 1, slow_start: 0}}
models:
  tiny:
    tokenizer: {model}
    replicas: [{{name: near, url: '{single}', dialect: weighbridge}}]
  big:
    replicas: [{{name: far, url: '{cloud}', dialect: weighbridge}}]
routes:
  auto:
    edge: {{model: tiny}}
    cloud: {{model: big}}
    cascade: {{enabled: false}}
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    model = make_model(tmp_path_factory.mktemp("turns") / "tiny")
    turns, settings = Turns(), ServerSettings(max_body=8 << 20)
    replica = build_replica(
        model,
        "tiny",
        EngineSettings(
            dtype="float32", threads=1, kv_cache_memory=8 << 20, max_queue_requests=8192, max_sequences=32
        ),
    )
    with turns.of_loops(), ExitStack() as stack:
        stack.callback(gc.set_threshold, *gc.get_threshold())
        stack.callback(gc.unfreeze)
        settle_collector()
        turns.of_engine(replica)
        stack.callback(replica.guides.close)
        stack.callback(replica.engine.stop)

        def door(name: str, app: Any) -> str:
            loop = Loop(serving(app, "on", BoundedHttp))
            url = stack.enter_context(loop)
            assert loop._thread.ident is not None
            turns.names[loop._thread.ident] = name
            return url

        cloud = Loop(serving(Backend("cloud", tokens=3)))
        urls = {"engine": door("engine", assemble(replica, settings))}
        metrics = next(one for one in replica.engine.observers if isinstance(one, EngineMetrics))
        text = CONFIG.format(model=model, single=urls["engine"], cloud=stack.enter_context(cloud))
        read = parse_configuration(text, "turns.yaml", Path("."))
        gateway = Gateway(read.fleet, fleet_build.build_replica, fleet_build.load_tokenizers(read.fleet))
        usage = add_routes(gateway, read.routes)
        urls["gateway"] = door("gateway", create_app(GatewayService(gateway, GatewayMetrics(gateway), usage)))
        ports = {name: int(url.rpartition(":")[2]) for name, url in urls.items()}
        stores = [(metrics.tickets, metrics.on_finished), (gateway.tickets, gateway.tell)]
        yield House(ports | {"route": ports["gateway"]}, turns, stores)


Body = dict[str, Any] | bytes


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


def with_json(name: str, value: str) -> bytes:
    """A chat with one more field, whose value no encoder would write."""
    return json.dumps(user("x")).replace("{", f'{{"{name}": {value}, "model": "MODEL", ', 1).encode()


def schema(count: int) -> dict[str, Any]:
    kinds = ("string", "integer")
    properties = {f"property_{i}": {"type": kinds[i % 2]} for i in range(count)}
    return {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": properties}}}


def tools(count: int, size: int) -> list[dict[str, Any]]:
    described = [{"name": f"tool_{i}", "description": "x " * size} for i in range(count)]
    return [{"type": "function", "function": function} for function in described]


def calls(count: int) -> dict[str, Any]:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {"messages": [{"role": "assistant", "content": None, "tool_calls": [call] * count}]}


def lark(words: list[str]) -> dict[str, Any]:
    return {"prompt": "x", "max_tokens": 8, "structured_outputs": {"grammar": "\n".join(words)}}


PROSE = "The weighbridge weighs each request once, in tokens, and decides by that weight. "
LONG_TEXTS = {
    "prose": PROSE * (MEGABYTES // len(PROSE)),
    "one word": "a" * MEGABYTES,
    "angles": "<" * MEGABYTES,
    "control tokens": "<|im_end|>" * (MEGABYTES // 10),
    "spaces": " " * MEGABYTES,
    "Han": "\u6771" * (MEGABYTES // 6),
    "composed": "e\u0301" * (MEGABYTES // 7),
    "quotes": '"' * (MEGABYTES // 2),
}
#: What is asked: a path, and the body.
INPUTS: dict[str, tuple[str, Callable[[], Body]]] = {
    **{f"a chat of 8 MB: {name}": (CHAT, partial(user, text)) for name, text in LONG_TEXTS.items()},
    "a prompt of 8 MB": (TEXT, lambda: {"prompt": LONG_TEXTS["prose"]}),
    "an unbroken prompt of 8 MB": (TEXT, lambda: {"prompt": LONG_TEXTS["one word"]}),
    "/tokenize of 8 MB": ("/tokenize", lambda: {"prompt": LONG_TEXTS["prose"]}),
    "/tokenize of 8 MB, unbroken": ("/tokenize", lambda: {"prompt": LONG_TEXTS["one word"]}),
    "/tokenize of a chat of 8 MB": ("/tokenize", lambda: {"messages": user(LONG_TEXTS["prose"])["messages"]}),
    "/detokenize of 8 MB": ("/detokenize", lambda: {"tokens": [7] * (MEGABYTES // 3)}),
    "a prompt of ids": (TEXT, lambda: {"prompt": [7] * (MEGABYTES // 3), "max_tokens": 2}),
    "prompts": (TEXT, lambda: {"prompt": ["weigh it"] * 2048, "max_tokens": 1}),
    "prompts, streamed": (TEXT, lambda: {"prompt": ["weigh it"] * 2048, "max_tokens": 1, "stream": True}),
    "long prompts": (TEXT, lambda: {"prompt": ["weigh it " * 100] * 2048, "max_tokens": 1}),
    "prompts of ids": (TEXT, lambda: {"prompt": [[7] * 200] * 2048, "max_tokens": 1}),
    "too many prompts": (TEXT, lambda: {"prompt": ["x"] * 800_000}),
    "too many prompts of ids": (TEXT, lambda: {"prompt": [[1]] * 800_000}),
    "messages": (CHAT, lambda: {"messages": [{"role": "user", "content": "x"}] * 100_000}),
    "parts": (CHAT, lambda: user([{"type": "text", "text": "x"}] * 100_000)),
    "tool calls": (CHAT, lambda: calls(50_000)),
    "nested arrays": (CHAT, lambda: with_json("metadata", "[" * 100_000 + "]" * 100_000)),
    "nested objects": (CHAT, lambda: with_json("metadata", '{"a":' * 400 + "1" + "}" * 400)),
    "many fields": (CHAT, lambda: user("x") | {f"field_{i}": i for i in range(300_000)}),
    "wide tools": (CHAT, lambda: user("x", tools=tools(50_000, 10))),
    "large tools": (CHAT, lambda: user("x", tools=tools(100, 30_000))),
    "forced tools": (CHAT, lambda: user("x", tools=tools(20_000, 10), tool_choice="required")),
    "template variables": (
        CHAT,
        lambda: user("x", chat_template_kwargs={f"v{i}": "x" for i in range(200_000)}),
    ),
    "a schema": (CHAT, lambda: user("x", response_format=schema(1800), n=16)),
    "a huge schema": (CHAT, lambda: user("x", response_format=schema(100_000))),
    "alternatives": (TEXT, lambda: lark(["start: " + " | ".join(f'"w{i}"' for i in range(50_000))])),
    "rules": (
        TEXT,
        lambda: lark(
            [f'r{i}: "w{i}" start' for i in range(3000)]
            + ["start: " + " | ".join(f"r{i}" for i in range(3000))]
        ),
    ),
    "stops": (CHAT, lambda: user("x", stop=["x" * 1000] * 1000)),
    "long stops": (CHAT, lambda: user("x", stop=["x" * 1024] * 16, max_tokens=64, n=16)),
    "a huge stop": (CHAT, lambda: user("x", stop="x" * MEGABYTES)),
    "stop ids": (
        CHAT,
        lambda: user("x", stop_token_ids=list(range(512)) * 2, min_tokens=20, max_tokens=30, n=16),
    ),
    "many stop ids": (CHAT, lambda: user("x", stop_token_ids=[5] * 2_000_000)),
    "a bias": (CHAT, lambda: user("x", logit_bias={str(i): 1.0 for i in range(512)}, n=16, max_tokens=30)),
    "a huge bias": (CHAT, lambda: user("x", logit_bias={str(i): 1.0 for i in range(500_000)})),
    "penalties": (
        CHAT,
        lambda: user("x " * 500, repetition_penalty=1.2, frequency_penalty=1.0, n=16, max_tokens=60),
    ),
    "log-probabilities": (CHAT, lambda: user("x", logprobs=True, top_logprobs=20, n=16, max_tokens=60)),
    "texts to embed": (EMBED, lambda: {"input": ["weigh it"] * 2048}),
    "too many texts to embed": (EMBED, lambda: {"input": ["x"] * 800_000}),
    "labels": (CHAT, lambda: user("x", weighbridge={"labels": ["x"] * 500_000})),
    "escapes": (CHAT, lambda: with_json("user", '"' + "\\u00e9" * (MEGABYTES // 6) + '"')),
    "numbers": (CHAT, lambda: user("x", other=[1.5] * 1_000_000)),
}


#: What the other doors do not look at, or do just the same with.
ONLY_AT_THE_ENGINE = {
    "alternatives",
    "rules",
    "a schema",
    "/detokenize of 8 MB",
    "/tokenize of 8 MB, unbroken",
} | {f"a chat of 8 MB: {name}" for name in ("angles", "spaces", "Han", "composed", "quotes")}


def asked() -> Iterator[tuple[str, str]]:
    """Every input with the doors that it is for; routes answer chats alone."""
    for name, (path, _) in INPUTS.items():
        yield "engine", name
        if name not in ONLY_AT_THE_ENGINE:
            yield "gateway", name
            if path == CHAT:
                yield "route", name


@pytest.mark.parametrize(("door", "name"), list(asked()))
def test_no_turn_is_long(house: House, door: str, name: str) -> None:
    path, make = INPUTS[name]
    body, model = make(), "auto" if door == "route" else "tiny"
    if isinstance(body, bytes):
        body = body.replace(b"MODEL", model.encode())
    else:
        body = json.dumps(body | {"model": model}).encode()

    def ask() -> None:
        reply = house.ask(door, path, body)
        assert reply.status < 500, reply.body

    house.hold(ask)


@pytest.mark.parametrize(
    "path", ["/v1/tickets?limit=1000", "/metrics", "/v1/load", "/console/api/now", "/v1/models"]
)
@pytest.mark.parametrize("door", ["engine", "gateway"])
def test_no_page_is_long(house: House, door: str, path: str) -> None:
    """With ten thousand tickets of ten thousand tenants, each weighed at as many replicas as a ticket names."""
    house.fill()

    def ask() -> None:
        assert house.ask(door, path, None, "GET").status == 200

    house.hold(ask)


def test_clients_that_leave_two_thousand_prompts_cost_no_long_turn(house: House) -> None:
    port = house.ports["engine"]
    body = json.dumps(
        {"model": "tiny", "prompt": ["weigh it"] * 2048, "max_tokens": 400, "ignore_eos": True}
    ).encode()

    def leave() -> None:
        with connect(port) as connection:
            connection.sendall(
                request("POST", TEXT, [("Content-Type", "application/json")], body, "127.0.0.1")
            )
            house.wait(lambda load: load["running_requests"] > 0)
        house.wait(lambda load: not load["running_requests"] + load["queued_requests"])

    house.hold(leave)
