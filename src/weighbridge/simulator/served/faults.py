"""Faults of a simulated replica, by rate or on command: what a gateway has to survive, on demand."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import msgspec

from weighbridge.errors import BadInput
from weighbridge.wire.body import read_body
from weighbridge.wire.errors import ApiError, error_body
from weighbridge.wire.headers import headers_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

#: Seconds between the repeated parts of a stream without end.
ENDLESS_PAUSE = 0.1

#: Bytes of a body that changes faults.
LARGEST_BODY = 1 << 16

GENERATING = ("/v1/completions", "/v1/chat/completions")


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates are shares of the requests that generate, 0 to 1; each request meets at most one of the first five."""

    error_rate: float = 0.0  # answered with `error_status` at once
    slow_rate: float = 0.0  # the first byte comes `slow_seconds` late
    stall_rate: float = 0.0  # the stream pauses for `stall_seconds` somewhere on its way
    disconnect_rate: float = 0.0  # the connection breaks somewhere on its way
    endless_rate: float = 0.0  # the last part is never sent; a stream repeats the one before it for ever
    error_status: int = 503
    retry_after: float | None = None  # seconds, in the header of such errors
    slow_seconds: float = 5.0
    stall_seconds: float = 5.0
    unhealthy: bool = False  # /health answers 503
    load_factor: float = 1.0  # /v1/load reports its token counts multiplied by this: 0 claims to be idle

    def __post_init__(self) -> None:
        rates = {field.name: getattr(self, field.name) for field in fields(self) if "_rate" in field.name}
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise BadInput(f"{name} is {rate}, but a share is from 0 to 1", param=name)
        if sum(rates.values()) > 1.0 + 1e-9:
            raise BadInput(f"the rates of faults add up to {sum(rates.values()):g}, but 1 is all requests")
        if not 400 <= self.error_status <= 599:
            raise BadInput(f"error_status is {self.error_status}, but must be from 400 to 599")
        for name in ("slow_seconds", "stall_seconds", "load_factor"):
            if not getattr(self, name) >= 0.0:
                raise BadInput(f"{name} is {getattr(self, name)}, but must not be negative", param=name)

    @staticmethod
    def parse(text: str) -> Faults:
        """Read `error_rate=0.05,stall_seconds=2`. Raises BadInput otherwise."""
        values: dict[str, int | float] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            name, _, value = part.partition("=")
            try:
                values[name] = int(value) if name == "error_status" else float(value)
            except ValueError:
                raise BadInput(
                    f"--faults {part!r}: write for example error_rate=0.05", param="faults"
                ) from None
        return Faults().changed(values)

    def changed(self, values: object) -> Faults:
        """Return these faults with some fields replaced. Raises BadInput for fields or types that there are not."""
        if not isinstance(values, dict):
            raise BadInput("faults are a JSON object of rates and seconds")
        known = {field.name for field in fields(self)}
        for name, value in values.items():
            if name not in known:
                raise BadInput(f"no fault is called {name!r}; there are {', '.join(sorted(known))}")
            if not isinstance(value, int | float) and not (name == "retry_after" and value is None):
                raise BadInput(f"{name} must be a number, not {value!r}", param=name)
        return replace(self, **values)


class _Broken(ConnectionAbortedError):
    """The connection ends here, on purpose."""


class FaultInjection:
    """ASGI middleware. `GET` and `POST /faults` show and change them while the replica runs.

    `POST /faults` takes any fields of `Faults`, and `freeze_seconds`, which stops the engine itself. Once
    `stopping` says so, streams without end do end.
    """

    def __init__(
        self,
        app: AsgiApp,
        faults: Faults,
        rng: random.Random,
        freeze: Callable[[float], None],
        stopping: Callable[[], bool],
        check: Callable[[Mapping[str, str]], None] = lambda headers: None,
    ) -> None:
        """`check` raises ApiError for a caller by whose headers it may not see or change faults."""
        self._app = app
        self.faults = faults
        self._rng = rng
        self._freeze = freeze
        self._stopping = stopping
        self._check = check

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path == "/faults":
            await self._control(scope, receive, send)
        elif path == "/health" and self.faults.unhealthy:
            await _answer(send, 503, {"status": "unhealthy"})
        elif path == "/v1/load" and self.faults.load_factor != 1.0:
            await self._app(scope, receive, _lying(send, self.faults.load_factor))
        elif path in GENERATING:
            await self._generate(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _generate(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        fate = self._fate()
        if fate == "error":
            await self._refuse(receive, send)
            return
        if fate == "slow":
            await asyncio.sleep(self.faults.slow_seconds)
        gone = asyncio.Event()

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                gone.set()
            return message

        injected = send
        if fate in ("stall", "disconnect"):
            injected = self._broken_off(send, fate)
        elif fate == "endless":
            injected = self._endless(send, gone)
        # After a break nothing more is sent, which makes the server close the connection: it looks like a crash.
        with suppress(_Broken):
            await self._app(scope, watched, injected)

    def _fate(self) -> str | None:
        draw = self._rng.random()
        for name in ("error", "slow", "stall", "disconnect", "endless"):
            draw -= getattr(self.faults, f"{name}_rate")
            if draw < 0.0:
                return name
        return None

    def _broken_off(self, send: Send, fate: str) -> Send:
        """Let some parts of the body through, then pause or break; at the last part at the latest."""
        left = self._rng.randrange(1, 8)
        seconds = self.faults.stall_seconds

        async def through(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.body" and left > 0:
                left = left - 1 if message.get("more_body", False) else 0
                if left == 0 and fate == "disconnect":
                    raise _Broken
                if left == 0:
                    await asyncio.sleep(seconds)
            await send(message)

        return through

    def _endless(self, send: Send, gone: asyncio.Event) -> Send:
        """Withhold the last part until the client has gone."""
        latest = b""

        async def through(message: Message) -> None:
            nonlocal latest
            if message["type"] != "http.response.body" or message.get("more_body", False):
                latest = message.get("body", latest)
                await send(message)
                return
            while not gone.is_set() and not self._stopping():
                await asyncio.sleep(ENDLESS_PAUSE)
                if latest:
                    await send({"type": "http.response.body", "body": latest, "more_body": True})
            raise _Broken

        return through

    async def _refuse(self, receive: Receive, send: Send) -> None:
        faults = self.faults
        error = {"message": "injected fault", "type": "server_error", "code": "injected"}
        headers = [] if faults.retry_after is None else [(b"retry-after", f"{faults.retry_after:g}".encode())]
        await _body(receive)
        await _answer(send, faults.error_status, {"error": error}, headers)

    async def _control(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = headers_of(scope["headers"])
        try:
            self._check(headers)
            body = await read_body(receive, headers, LARGEST_BODY)
        except ApiError as error:
            await _answer(send, error.status, msgspec.json.decode(error_body(error)))
            return
        if scope["method"] == "POST":
            try:
                values = json.loads(body or b"{}")
                seconds = values.pop("freeze_seconds", None) if isinstance(values, dict) else None
                if seconds is not None and not 0.0 <= float(seconds) <= 3600.0:
                    raise BadInput("freeze_seconds must be from 0 to 3600", param="freeze_seconds")
                self.faults = self.faults.changed(values)
            except (BadInput, ValueError, TypeError) as error:
                await _answer(send, 400, {"error": {"message": str(error), "type": "invalid_request_error"}})
                return
            if seconds is not None:
                self._freeze(float(seconds))
        await _answer(send, 200, asdict(self.faults))


def _lying(send: Send, factor: float) -> Send:
    """Multiply what the body says of requests, tokens and used blocks."""
    parts: list[bytes] = []
    start: Message = {}

    async def through(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        load = json.loads(b"".join(parts))
        for name, value in load.items():
            if name.endswith(("_requests", "_tokens", "_used")):
                load[name] = round(value * factor)
        await _answer(send, start["status"], load)

    return through


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _answer(
    send: Send, status: int, value: object, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps(value).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fixed + (headers or [])})
    await send({"type": "http.response.body", "body": body})
