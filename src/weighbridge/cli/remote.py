"""Requests of commands to a running server: one way to send them, and one to say what went wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.secret import Secret, without_account
from weighbridge.wire.client import HttpClient, Response, spoken
from weighbridge.wire.errors import error_message
from weighbridge.wire.headers import bearer_of

#: Seconds for a new connection.
CONNECT_WITHIN = 10.0
#: An answer that is longer is no answer to a question of ours.
LARGEST_ANSWER = 1 << 26
_CLIENT_ERRORS = range(400, 500)


@dataclass(frozen=True, slots=True)
class Server:
    """A server, and how to speak of it: `hint` is what to look at when nothing answers.

    `mistakes`: statuses that say that what the user asked for is wrong (exit code 2); others are failures (1).
    """

    url: str = field(repr=False)  # it may hold a password
    key: Secret | None = None
    hint: str = "is `weighbridge serve` running there?"
    mistakes: Container[int] = _CLIENT_ERRORS

    def ask(self, method: str, path: str, body: Any = None, *, patience: float = 10.0) -> Any:
        """The JSON of one answer. Raises BadInput or WeighbridgeError, with the server's own words if it has any."""
        return asyncio.run(self.answer(method, path, body, patience=patience))

    async def answer(self, method: str, path: str, body: Any = None, *, patience: float = 10.0) -> Any:
        """What `ask` does, for whoever has an event loop."""
        async with self.opened(method, path, body, patience=patience) as response:
            data = await _whole(response, patience)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise WeighbridgeError(f"{self._shown(path)} did not answer with JSON; {self.hint}") from error

    @asynccontextmanager
    async def opened(
        self, method: str, path: str, body: Any = None, *, patience: float
    ) -> AsyncIterator[Response]:
        """An answer whose status is good and whose body has yet to be read. `patience`: seconds until it begins."""
        client = HttpClient(self._base(), CONNECT_WITHIN, keep=False)
        try:
            response = await client.send(client.head(method, path, self._headers(body)), _encoded(body))
            await response.begin(patience)
            if response.status >= 300:
                self._refuse(path, response.status, await _whole(response, patience))
            yield response
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            why = spoken(error) or f"nothing came within {patience:g} s"
            raise WeighbridgeError(f"no answer from {self._shown(path)} ({why}); {self.hint}") from error
        finally:
            client.close()

    def check(self) -> None:
        """Raises BadInput where the URL is none."""
        self._base()

    def _base(self) -> str:
        """The URL. Raises BadInput for what is none."""
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not valid:
            raise BadInput(
                f"{without_account(self.url)!r} is no URL; write for example http://127.0.0.1:8080",
                param="url",
            )
        return self.url.rstrip("/")

    def _headers(self, body: Any) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.key:
            if not set(self.key.reveal()).isdisjoint("\r\n\0"):  # as of a file that Windows wrote
                raise BadInput("the key has the end of a line in it; give the key alone", param="api_key")
            headers["Authorization"] = bearer_of(self.key)
        return headers

    def _refuse(self, path: str, status: int, body: bytes) -> None:
        message = error_message(body) if body.strip() else f"{self._shown(path)} answered {status}"
        raise BadInput(message) if status in self.mistakes else WeighbridgeError(message)

    def _shown(self, path: str) -> str:
        """The address for people: without a password that the URL may hold."""
        return without_account(self.url.rstrip("/")) + path


def _encoded(body: Any) -> bytes:
    return b"" if body is None else json.dumps(body).encode()


async def _whole(response: Response, patience: float) -> bytes:
    """The body in one piece. Raises TimeoutError after `patience` seconds, ValueError if it is too long."""
    pieces, size = [], 0
    async with asyncio.timeout(patience):
        while data := await response.read():
            pieces.append(data)
            size += len(data)
            if size > LARGEST_ANSWER:
                raise ValueError(f"the answer is longer than {LARGEST_ANSWER >> 20} MiB")
    return b"".join(pieces)
