"""Replicas that do what a test tells them, and a gateway in front, all on real sockets of one event loop."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import parse_configuration
from weighbridge.server.app import create_app
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService

STEP_COST = {
    "overhead": 0.001,
    "memory": 0.004,
    "per_token": 1e-4,
    "per_context_token": 1e-7,
    "per_sequence": 1e-5,
}


class Quiet(uvicorn.Server):
    """uvicorn on the test's own loop: it must not take the signals."""

    def install_signal_handlers(self) -> None: ...

    async def main_loop(self) -> None:
        """uvicorn's own looks ten times a second whether it should end, which is long for a test."""
        ticks = 0
        while not await self.on_tick(ticks):
            await asyncio.sleep(0.01)
            ticks = (ticks + 1) % 1000

    @asynccontextmanager
    async def running(self, listener: socket.socket) -> AsyncIterator[None]:
        task = asyncio.create_task(self._serve([listener]))
        await until(lambda: self.started)
        try:
            yield
        finally:
            self.should_exit = True
            await asyncio.wait({task}, timeout=5)


async def until(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    """Wait until `condition` holds; fail when it does not in `timeout` seconds, which only bounds a failure."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        await asyncio.sleep(0.005)


def listening() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


@asynccontextmanager
async def serving(app: Any, lifespan: str = "off", http: Any = "auto") -> AsyncIterator[str]:
    """The URL of an ASGI application while the block runs."""
    listener = listening()
    config = uvicorn.Config(
        app, http=http, log_level="critical", lifespan=lifespan, access_log=False, timeout_graceful_shutdown=1
    )
    server = Quiet(config)
    async with server.running(listener):
        yield "http://{}:{}".format(*listener.getsockname())


@dataclass
class Backend:
    """An OpenAI-like server. Fields say how it behaves; `calls` and counters say what happened to it.

    Where a test needs a request to be under way, `gate` holds it there: behind `hold_after` tokens it waits until
    the gate opens, however quick or slow the machine is. Calls with `"passes": true` do not wait.
    """

    name: str = "backend"
    dialect: str = "weighbridge"  # what the gateway takes it for
    tokens: int = 5  # of each answer
    first_delay: float = 0.0
    gap: float = 0.0
    turns: asyncio.Lock | None = None  # held while an answer is computed: one at a time
    gate: asyncio.Event | None = None
    hold_after: int = 0  # tokens, then it waits for the gate
    timeouts: str = ""  # the gateway's patience with this one alone, as YAML
    break_after: int | None = None  # tokens, then the connection is cut
    stall_after: int | None = None  # tokens, then nothing more
    end_early_after: int | None = None  # tokens, then a proper end of the body without finish or [DONE]
    endless: bool = False
    usage: dict[str, Any] = field(default_factory=dict)  # what it tells beyond the counts
    linger: float = 0.0  # seconds the body stays open behind [DONE]
    comments_only: bool = False
    statuses: list[int] = field(default_factory=list)  # of the next answers; empty: 200
    retry_after: str | None = None
    error_in_stream: bool = False
    key: str | None = None
    load: dict[str, Any] = field(default_factory=dict)
    load_status: int = 200
    page: bytes | None = None  # what /metrics answers
    pages: dict[str, Any] = field(default_factory=dict)  # further pages by path: JSON, or a status and JSON
    refuses: Callable[[str, dict[str, Any]], tuple[int, Any] | None] | None = None  # by path and body
    answer_headers: dict[str, str] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # of `pages`
    probes: int = 0
    running: int = 0
    peak: int = 0
    cancelled: int = 0
    finished: int = 0
    raw: list[bytes] = field(default_factory=list)
    url: str = ""

    def let_go(self) -> None:
        """Open the gate."""
        assert self.gate is not None
        self.gate.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path in self.pages:
            self.asked.append(path)
            page = self.pages[path]
            status, value = page if isinstance(page, tuple) else (200, page)
            await (self._bytes if isinstance(value, bytes) else self._json)(send, status, value)
        elif path == "/v1/load":
            self.probes += 1
            await self._json(send, self.load_status, self.report())
        elif path == "/metrics":
            self.probes += 1
            await self._bytes(send, 200 if self.page is not None else 404, self.page or b"")
        elif path in ("/health", "/v1/models", "/api/ps"):
            await self._json(send, self.load_status, {"data": []})
        else:
            await self._generate(scope, receive, send)

    def report(self) -> dict[str, Any]:
        return {
            "queued_requests": 0,
            "running_requests": self.running,
            "queued_tokens": 0,
            "running_tokens": 0,
            "kv_blocks_total": 10_000,
            "kv_blocks_used": 0,
            "block_size": 16,
            "draining": False,
            "step_cost": STEP_COST,
            **self.load,
        }

    async def _generate(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        call = json.loads(body)
        self.raw.append(body)
        self.calls.append(call)
        self.paths.append(scope["path"])
        self.headers.append({n.decode(): v.decode() for n, v in scope["headers"]})
        if self.key is not None and self.headers[-1].get("authorization") != f"Bearer {self.key}":
            await self._json(send, 401, {"error": {"message": "the key expired", "code": "invalid_api_key"}})
            return
        refused = self.refuses(scope["path"], call) if self.refuses is not None else None
        if refused is not None:
            await self._json(send, *refused)
            return
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            await self._json(send, status, {"error": {"message": f"a {status} from {self.name}"}})
            return
        self.running += 1
        self.peak = max(self.peak, self.running)
        gone = asyncio.create_task(self._gone(receive))
        work = asyncio.create_task(self._work(scope, call, send))
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        self.running -= 1
        if not work.done():
            self.cancelled += 1
            work.cancel()
        else:
            self.finished += 1
        gone.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await work

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def _work(self, scope: Any, call: dict[str, Any], send: Any) -> None:
        async with self.turns or nullcontext():
            await self._answer(scope, call, send)

    async def _answer(self, scope: Any, call: dict[str, Any], send: Any) -> None:
        chat = "/chat/" in scope["path"]
        await asyncio.sleep(self.first_delay)
        gate = None if call.get("passes") else self.gate
        if gate is not None and not (call.get("stream") and self.hold_after):
            await gate.wait()
        usage = {"prompt_tokens": 11, "completion_tokens": self.tokens, "total_tokens": 11 + self.tokens}
        usage |= self.usage
        if not call.get("stream"):
            await asyncio.sleep(self.gap * self.tokens)
            text = "".join(f" t{i}" for i in range(self.tokens))
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            await self._json(send, 200, {"id": "x", "choices": [choice], "usage": usage})
            return
        headers = [(b"content-type", b"text/event-stream"), (b"x-own", b"kept"), *self._more_headers()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.error_in_stream:
            await self._event(send, {"error": {"message": "out of memory", "code": 503}})
            return
        while self.comments_only:
            await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})
            await asyncio.sleep(0.02)
        sent = 0
        while sent < self.tokens or self.endless:
            if sent == self.break_after:
                scope["extensions"]["cut"]() if "cut" in scope.get("extensions", {}) else None
                raise ConnectionAbortedError("cut by the test")
            if sent == self.end_early_after:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if sent == self.stall_after:
                await asyncio.sleep(3600)
            await self._event(send, self._chunk(chat, f" t{sent}", None))
            sent += 1
            if gate is not None and sent == self.hold_after:
                await gate.wait()
            await asyncio.sleep(self.gap)
        await self._event(send, self._chunk(chat, "", "stop"))
        if (call.get("stream_options") or {}).get("include_usage"):
            await self._event(send, {"id": "x", "object": "chunk", "choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await asyncio.sleep(self.linger)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _chunk(self, chat: bool, text: str, finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"delta": {"content": text}} if chat else {"text": text}
        kind = "chat.completion.chunk" if chat else "text_completion"
        return {"id": f"from-{self.name}", "object": kind, "created": 1, "model": "m", "choices": [choice]}

    async def _event(self, send: Any, value: Any) -> None:
        body = b"data: " + json.dumps(value).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _json(self, send: Any, status: int, value: Any) -> None:
        await self._bytes(send, status, json.dumps(value).encode())

    def _more_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode()) for name, value in self.answer_headers.items()]

    async def _bytes(self, send: Any, status: int, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += self._more_headers()
        if status >= 400 and self.retry_after is not None:
            headers.append((b"retry-after", self.retry_after.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def clients() -> aiohttp.ClientSession:
    """A session for as many requests at once as a test likes."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


@dataclass
class Front:
    """A gateway on a socket, and a client for it."""

    url: str
    gateway: Gateway
    client: aiohttp.ClientSession

    def post(self, path: str = "/v1/chat/completions", /, headers: Any = None, **fields: Any) -> Any:
        return self.client.post(self.url + path, json=body(path, **fields), headers=headers)

    async def get(self, path: str, headers: Any = None) -> Any:
        async with self.client.get(self.url + path, headers=headers) as answer:
            return await answer.json(content_type=None)

    async def stream(self, path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
        """The events of a streamed answer, decoded; `[DONE]` stays text."""
        async with self.post(path, stream=True, **fields) as answer:
            assert answer.status == 200, await answer.text()
            return events(await answer.read())

    async def idle(self, timeout: float = 60.0) -> None:
        """Wait until nothing is in flight, then check that every counter is back at zero."""
        await until(lambda: not self.gateway.open_journeys, timeout)
        check_drained(self.gateway)


def check_drained(gateway: Gateway) -> None:
    assert gateway.open_journeys == 0
    gateway.limiter.check_integrity()
    for pool in gateway.pools.values():
        assert len(pool.dispatcher.queue) == 0
        pool.dispatcher.queue.check_integrity()
        for member in pool.members.values():
            state = member.state
            assert (state.requests, state.sequences, state.kv_tokens, state.context_tokens) == (0, 0, 0, 0)
            assert state.outstanding_tokens == 0.0
            state.check_integrity()


def body(path: str, **fields: Any) -> dict[str, Any]:
    if "/chat/" in path:
        fields.setdefault("messages", [{"role": "user", "content": "What does it weigh?"}])
    elif "embed" in path:
        fields.setdefault("input", "What does it weigh?")
    else:
        fields.setdefault("prompt", "It weighs")
    return {"model": "m", **fields}


def events(data: bytes) -> list[Any]:
    found: list[Any] = []
    for event in data.decode().replace("\r\n", "\n").split("\n\n"):
        if event.startswith("data: "):
            text = event.removeprefix("data: ")
            found.append(text if text == "[DONE]" else json.loads(text))
    return found


def text_of(stream: list[Any]) -> str:
    choices = [choice for one in stream if isinstance(one, dict) for choice in one.get("choices", [])]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def _patience(backend: Backend) -> str:
    return f", timeouts: {{{backend.timeouts}}}" if backend.timeouts else ""


def config_of(backends: list[Backend], model: str = "", top: str = "", replica: str = "") -> str:
    """A configuration with these replicas; the texts are further YAML for the model, the file, each replica."""
    entries = "\n".join(
        f"      - {{name: {one.name}, url: '{one.url}', dialect: {one.dialect}{replica}{_patience(one)}}}"
        for one in backends
    )
    return (
        f"{top}\nhealth: {{interval: 0.05, slow_start: 0}}\n"
        f"models:\n  m:\n    aliases: [other]\n{model}\n    replicas:\n{entries}\n"
    )


@asynccontextmanager
async def fleet(
    *backends: Backend,
    model: str = "",
    top: str = "",
    replica: str = "",
    config: str | None = None,
    tokenizers: Any = None,
    wait: bool = True,
) -> AsyncIterator[Front]:
    """Backends and a gateway over them; every counter must be at zero when the block ends."""
    async with all_served(backends):
        text = config if config is not None else config_of(list(backends), model, top, replica)
        read = parse_configuration(text, "weighbridge.yaml", Path("."))
        gateway = Gateway(read.fleet, build_replica, tokenizers, seed=1)
        usage = add_routes(gateway, read.routes)
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway), usage))
        async with serving(app, "on") as url, clients() as client:
            front = Front(url, gateway, client)
            if wait:
                await until(lambda: gateway.ready and _all_asked(gateway))
            yield front
            await front.idle()


def _all_asked(gateway: Gateway) -> bool:
    """Whether each replica has answered a probe or failed one: on a busy machine they come up one after another."""
    members = [member for pool in gateway.pools.values() for member in pool.members.values()]
    return all(member.heard or member.failed_probes for member in members)


@asynccontextmanager
async def all_served(backends: tuple[Backend, ...]) -> AsyncIterator[None]:
    """Serve these, each at its `url`."""
    servers = [serving(backend) for backend in backends]
    urls = await asyncio.gather(*(one.__aenter__() for one in servers))
    for backend, url in zip(backends, urls, strict=True):
        backend.url = url
    try:
        yield
    finally:
        await asyncio.gather(*(one.__aexit__(None, None, None) for one in servers))
