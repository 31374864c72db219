"""A replica inside this process: its ASGI application is called, no socket lies between."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from weighbridge.fleet.api import Answer, Call, Report
from weighbridge.fleet.load.dialects import dialect, read_report
from weighbridge.fleet.replica import Failure, ReplicaError, Timeouts, has_content
from weighbridge.fleet.replicas.http import passed_on

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]

#: Bytes an application may be ahead of its reader before it has to wait.
HIGH_WATER = 1 << 18


class LocalReplica:
    """Speaks to `app`, which answers as a replica's server would. `start` and `stop` run what it stands on."""

    def __init__(
        self,
        name: str,
        app: App,
        *,
        start: Callable[[], None] = lambda: None,
        stop: Callable[[], None] = lambda: None,
        timeouts: Timeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._app = app
        self._start = start
        self._stop = stop
        self._started = False
        self._timeouts = timeouts or Timeouts()
        self._clock = clock
        self._dialect = dialect("weighbridge")

    async def open(self, call: Call) -> Answer:
        headers = {**call.headers, "content-type": "application/json"}
        return await self._call("POST", call.path, call.body, headers, call.stream)

    async def probe(self) -> Report:
        if not self._started:
            self._started = True
            self._start()
        answer = await self._call("GET", self._dialect.path, b"", {}, False)
        page = b"".join([chunk async for chunk in answer.chunks()])
        try:
            return read_report(self._dialect, page, self._clock())
        except ValueError as error:
            raise ReplicaError(self.name, Failure.PROBE, str(error)) from error

    async def close(self) -> None:
        if self._started:
            self._started = False
            await asyncio.to_thread(self._stop)

    async def _call(
        self, method: str, path: str, body: bytes, headers: dict[str, str], streaming: bool
    ) -> LocalAnswer:
        limits = self._timeouts
        first, idle = (limits.first_byte, limits.idle) if streaming else (limits.answer, limits.answer)
        answer = LocalAnswer(self.name, body, first, idle)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("gateway", 0),
            "server": (self.name, None),
        }
        limit = self._timeouts.first_byte if streaming else self._timeouts.answer
        answer.run(self._app(scope, answer.receive, answer.send))
        try:
            async with asyncio.timeout(limit):
                await answer.begun.wait()
        except TimeoutError as error:
            await answer.close()
            raise ReplicaError(self.name, Failure.FIRST_BYTE, f"nothing came within {limit:g} s") from error
        except asyncio.CancelledError:
            await answer.close()
            raise
        if not answer.status:
            raise ReplicaError(self.name, Failure.BROKEN, "ended without an answer")
        return answer


class LocalAnswer:
    """The other end of an application's `receive` and `send`."""

    def __init__(self, replica: str, body: bytes, first: float, idle: float) -> None:
        """`first`: seconds of silence before its first event; `idle`: behind it."""
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.begun = asyncio.Event()
        self._replica = replica
        self._request: bytes | None = body
        self._silence, self._idle = first, idle
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._ended = False  # the application sent its last piece
        self._over = False  # the application has returned
        self._gone = asyncio.Event()  # we want no more
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def run(self, application: Awaitable[None]) -> None:
        async def to_the_end() -> None:
            try:
                await application
            finally:
                self._over = True
                self.begun.set()
                self._news.set()

        self._task = asyncio.ensure_future(to_the_end())
        self._task.add_done_callback(_looked_at)

    async def receive(self) -> Message:
        if self._request is not None:
            body, self._request = self._request, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"]
            pairs = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
            self.headers = passed_on(pairs)
            self.begun.set()
            return
        piece = message.get("body", b"")
        if piece:
            self._pieces.append(piece)
            self._held += len(piece)
        self._ended = not message.get("more_body", False)
        self._news.set()
        while self._held > HIGH_WATER and not self._gone.is_set():
            self._room.clear()
            await self._room.wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            if self._pieces:
                chunk = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
                self._pieces.clear()
                self._held = 0
                self._room.set()
                if has_content(chunk):
                    self._silence = self._idle
                yield chunk
                continue
            if self._ended:
                return
            if self._over:
                raise ReplicaError(self._replica, Failure.BROKEN, "broke off in the middle of an answer")
            self._news.clear()
            try:
                async with asyncio.timeout(self._silence):
                    await self._news.wait()
            except TimeoutError as error:
                why = f"silent for {self._silence:g} s"
                raise ReplicaError(self._replica, Failure.IDLE, why) from error

    async def close(self) -> None:
        """Tell the application that its client went away; it cancels what runs."""
        self._gone.set()
        self._room.set()


def _looked_at(task: asyncio.Task[None]) -> None:
    """Tell the reader that the answer broke off; the application logs why."""
    if not task.cancelled():
        task.exception()
