"""Work that a page asks for and that is not serving: done by a process of its own, one at a time, within bounds."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

import msgspec

from weighbridge.wire.answer import CLIENT_GONE
from weighbridge.wire.body import Receive, until_gone
from weighbridge.wire.errors import ApiError

#: Seconds on the clock that an answer may take with its wait. The process bounds what it uses of a processor and of
#: memory by itself, and stands behind everybody: on a machine with much to do its few seconds come late.
PATIENCE = 300.0
#: Questions that wait for the one that is being answered.
MOST_WAITING = 4
#: Bytes of an answer.
LARGEST_ANSWER = 8 << 20
#: What the process has to know of where it is; no key of this server is among it.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


class Aside:
    """Asks `python -m weighbridge.aside`. A server that is busy with one question lets few others wait."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def ask_for(self, client: Receive, kind: str, question: bytes) -> dict[str, Any]:
        """The answer for a client whose body was read. When it leaves, the process ends and the next has its turn."""
        asked = asyncio.ensure_future(self.ask(kind, question))
        gone = asyncio.create_task(until_gone(client))
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ApiError(CLIENT_GONE, "nobody waits for the answer any more")
            return asked.result()
        finally:
            asked.cancel()
            gone.cancel()
            await asyncio.gather(asked, gone, return_exceptions=True)

    async def ask(self, kind: str, question: bytes) -> dict[str, Any]:
        """The answer. Raises ApiError: 400 with the process's own words, 503 where it is busy or takes too long."""
        if self._waiting >= MOST_WAITING:
            message = "others are being answered; try again in a moment"
            raise ApiError(503, message, kind="server_error", code="busy", retry_after=5.0)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience), self._turn:
                return await self._ask(kind, question)
        except TimeoutError:
            message = (
                f"this machine has so much to do that the answer did not come within {self._patience:g} s; "
                "try again when it has less"
            )
            raise ApiError(503, message, kind="server_error", code="machine_busy", retry_after=60.0) from None
        finally:
            self._waiting -= 1

    async def _ask(self, kind: str, question: bytes) -> dict[str, Any]:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "weighbridge.aside", kind),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            told, _ = await process.communicate(question)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode not in (0, 2) or len(told) > LARGEST_ANSWER:
            raise _too_much()
        answer: dict[str, Any] = msgspec.json.decode(told)
        if process.returncode:
            raise ApiError(400, str(answer.get("problem")), code="cannot_be_answered")
        return answer


def _too_much() -> ApiError:
    message = "this takes more time or memory than a server has for it; ask for less, or use the command line"
    return ApiError(503, message, kind="server_error", code="too_much")
