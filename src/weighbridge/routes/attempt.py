"""One side at work on one request: read ahead, counted, judged by its signals, and paid for exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from weighbridge.routes.budget import Ledger, Reservation
from weighbridge.routes.errors import SideFailed
from weighbridge.routes.judge import Draft, SignalMeter
from weighbridge.routes.policy import Level
from weighbridge.routes.side import Chunk, Side, SideRequest, SideStream

#: Chunks read ahead of whoever consumes them; then the side waits, as it would for a slow client.
READ_AHEAD = 512


@dataclass(frozen=True, slots=True)
class Window:
    """How much of an answer is held back: until `tokens` have come, or `seconds` after the first of them.

    None: no such bound. With neither, the whole answer.
    """

    tokens: int | None = None
    seconds: float | None = None


FIRST_TOKEN = Window(tokens=1)
WHOLE = Window()


@dataclass(frozen=True, slots=True)
class Bill:
    """`estimated`: the side did not say what it used, so it was counted here."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    usd: float
    estimated: bool


class Attempt:
    """Opens, reads ahead in a task of its own, and settles its reservation when it is closed."""

    def __init__(
        self, where: Level, side: Side, request: SideRequest, ledger: Ledger, reservation: Reservation
    ) -> None:
        self.where = where
        self.side = side
        self.held: list[Chunk] = []
        self._given = 0  # of what was held
        self.signals = SignalMeter()
        self.finish_reason: str | None = None
        self.complete = False
        self._request = request
        self._ledger = ledger
        self._reservation = reservation
        self._stream: SideStream | None = None
        self._chunks: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue(READ_AHEAD)
        self._reader: asyncio.Task[None] | None = None
        self._usage: Chunk | None = None  # as the side reported it
        self._counted = 0
        self._text: list[str] = []
        self._billable = False
        self._closed = False
        self._final: Bill | None = None

    @property
    def text(self) -> str:
        """The content of the first choice so far."""
        return "".join(self._text)

    def draft(self) -> Draft:
        """What there is of the answer now, to be judged."""
        return Draft(self.text, self.complete, self.finish_reason, self.signals.read())

    @property
    def upstream_ticket(self) -> str | None:
        return self._stream.upstream_ticket if self._stream is not None else None

    async def start(self, window: Window) -> None:
        """Open the side and hold back `window` of its answer. Raises SideFailed; then it is closed already."""
        try:
            self._billable = True  # a request cut off on its way may have been worked on
            self._stream = await self.side.open(self._request)
            self._reader = asyncio.create_task(self._read(self._stream))
            await self._hold(window)
        except SideFailed as error:
            self._billable = error.billable or self._counted > 0
            await self.close()
            raise
        except BaseException:
            await self.close()
            raise

    async def _hold(self, window: Window) -> None:
        loop = asyncio.get_running_loop()
        until: float | None = None
        while window.tokens is None or self._counted < window.tokens:
            try:
                async with asyncio.timeout_at(until):
                    chunk = await self.next()
            except TimeoutError:
                return
            if chunk is None:
                return
            self.held.append(chunk)
            if until is None and window.seconds is not None and self._counted:
                until = loop.time() + window.seconds

    async def next(self) -> Chunk | None:
        """The next chunk, None after the last. Raises SideFailed where the stream breaks."""
        if self.complete:
            return None
        item = await self._chunks.get()
        if item is None:
            self.complete = True
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    async def rest(self) -> AsyncIterator[Chunk]:
        """What was held back, then the rest."""
        for held in self.held:
            self._given += 1
            yield held
        while (chunk := await self.next()) is not None:
            yield chunk

    @property
    def is_behind(self) -> bool:
        """Whether the next chunk is here already."""
        return self._given < len(self.held) or not self._chunks.empty()

    async def close(self) -> None:
        """Stop, and settle. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._reader is not None:
                self._reader.cancel()
                with suppress(asyncio.CancelledError):
                    await self._reader
            if self._stream is not None:
                await self._stream.close()
        finally:
            self._final = self.bill()
            self._ledger.settle(self._reservation, self._final.usd)

    def bill(self) -> Bill:
        """What the attempt cost as far as is known: the side's own usage, else what was counted here."""
        if self._final is not None:
            return self._final  # what was settled: estimates must not move afterwards
        usage = self._usage
        if usage is not None:
            details = usage.get("prompt_tokens_details") or {}
            prompt, output = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            cached = min(int(details.get("cached_tokens") or 0), prompt)
        elif self._billable:
            prompt, output, cached = self.side.estimate_tokens(self._request.size), self._counted, 0
        else:
            prompt = output = cached = 0
        price = self.side.price if self._stream is None else self._stream.price
        return Bill(prompt, output, cached, price.cost(prompt, output, cached), usage is None)

    async def _read(self, stream: SideStream) -> None:
        try:
            async for chunk in stream:
                self._note(chunk)
                await self._chunks.put(chunk)
            await self._chunks.put(None)
        except SideFailed as error:
            await self._chunks.put(error)
        except Exception as error:
            await self._chunks.put(SideFailed(f"{self.side.name} failed: {error!r}", billable=True))

    def _note(self, chunk: Chunk) -> None:
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            logprobs = (choice.get("logprobs") or {}).get("content") or ()
            if delta.get("content") or delta.get("tool_calls") or logprobs:
                self._counted += max(len(logprobs), 1)
            if choice.get("index", 0) == 0:
                self._text.append(delta.get("content") or "")
                self.signals.add(logprobs)
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
