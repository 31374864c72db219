"""Listens to the KV events of one replica over ZeroMQ, and has missed ones sent again where the server keeps them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from weighbridge.errors import BadInput
from weighbridge.fleet.kv.events import EventBatch, UnreadableEvents, read_batch
from weighbridge.fleet.kv.following import Following, InLine
from weighbridge.fleet.kv.share import Share

log = logging.getLogger("weighbridge.fleet")

#: Batches that are held back for us while we work, and bytes of one: a step of 128k tokens is told in one.
MOST_WAITING, LARGEST = 256, 2 << 20
#: Seconds of work that the library has with one batch, which nothing measures.
RECEIVING = 5e-5
#: Seconds for which a replica that tells too much is not listened to, at most.
MOST_REST = 30.0
#: Seconds in which a server must begin to send again what was missed, and in all.
REPLAY_SILENCE, REPLAY_WITHIN = 2.0, 30.0
#: Seconds between two tries when listening fails.
PAUSE = 1.0
#: Seconds between two requests for what was missed.
BETWEEN_REPLAYS = 1.0


def zeromq() -> Any:
    """The library, which only those need who listen. Raises BadInput when it is not installed."""
    try:
        return importlib.import_module("zmq.asyncio"), importlib.import_module("zmq")
    except ImportError:
        raise BadInput("kv_events needs ZeroMQ: pip install 'weighbridge[kv-events]'") from None


#: What a generator that is through returns here.
_END = object()


class TooMuch(Exception):
    """A replica tells more than its share of a core can take in."""

    def __init__(self, rest: float) -> None:
        super().__init__(f"it tells more than can be taken in; it is heard again in {rest:.0f} s")
        self.rest = rest


class KvFeed:
    """Keeps `following` up to date until it is closed. `events` and `replay` are ZeroMQ addresses, as tcp://host:5557.

    A replica whose events take more than their share of a core is not listened to for a while: its cache is guessed.
    """

    #: Replicas of this process that are followed: they share what all may take.
    open: ClassVar[int] = 0

    def __init__(
        self, name: str, events: str, replay: str | None, following: Following, clock: Callable[[], float]
    ) -> None:
        self._asyncio, self._zmq = zeromq()
        self._name, self._events, self._replay = name, events, replay
        self._following, self._clock = following, clock
        self._replayed_at = float("-inf")
        self._turn = asyncio.Lock()
        self._share, self._spent = Share(), 0.0
        KvFeed.open += 1
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        KvFeed.open -= 1

    async def _run(self) -> None:
        while True:
            context, pause = self._asyncio.Context(), PAUSE
            try:
                await self._listen(context)
            except TooMuch as error:
                pause = error.rest
                log.warning("replica %s: its KV events are not followed: %s", self._name, error)
                self._following.account.paused += 1
                self._following.begin_anew()
            except Exception as error:  # whatever a foreign server sends, requests are served on
                log.warning("replica %s: its KV events cannot be followed: %s", self._name, error)
                self._following.account.unreadable += 1
                self._following.forget()
            finally:
                context.destroy(linger=0)
            await asyncio.sleep(pause)

    async def _listen(self, context: Any) -> None:
        zmq = self._zmq
        socket = self._socket(context, zmq.SUB)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        links = socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
        socket.connect(self._events)
        watching = asyncio.create_task(self._watch_links(context, links))
        try:
            while True:
                if watching.done():
                    watching.result()
                parts = await socket.recv_multipart()
                if len(parts) >= 2 and len(parts[-2]) == 8:
                    await self._heard(context, int.from_bytes(parts[-2], "big"), parts[-1])
                if rest := self._rest():
                    raise TooMuch(rest)
                await asyncio.sleep(0)  # what waits already is received without a turn for others
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    def _socket(self, context: Any, kind: int) -> Any:
        socket = context.socket(kind)
        socket.setsockopt(self._zmq.RCVHWM, MOST_WAITING)
        socket.setsockopt(self._zmq.MAXMSGSIZE, LARGEST)
        socket.setsockopt(self._zmq.LINGER, 0)
        return socket

    async def _watch_links(self, context: Any, links: Any) -> None:
        """What a server did while no line stood is not known; once one stands, it may tell."""
        while True:
            event = int.from_bytes((await links.recv_multipart())[0][:2], "little")
            if event == self._zmq.EVENT_DISCONNECTED:
                self._following.begin_anew()
            elif event == self._zmq.EVENT_CONNECTED:
                async with self._turn:
                    await self._ask_again(context, 0)

    async def _heard(self, context: Any, number: int, data: bytes) -> None:
        async with self._turn:
            await self._place(context, number, data)

    async def _place(self, context: Any, number: int, data: bytes) -> None:
        following, batch = self._following, self._read(data)
        place = following.place_of(number, batch)
        if place is InLine.GAP:
            await self._ask_again(context, following.next_number)
            place = following.place_of(number, batch)
        if place is InLine.GAP:
            following.skip_to(number)
        if place is not InLine.OLD:
            await self._take(number, batch)

    def _read(self, data: bytes) -> EventBatch:
        with self._working():
            return read_batch(data)

    async def _take(self, number: int, batch: EventBatch) -> None:
        turns, left = self._following.take(number, batch, self._clock()), True
        try:
            while left:
                with self._working():
                    left = next(turns, _END) is not _END
                if left:
                    await asyncio.sleep(0)
        except UnreadableEvents as error:
            log.warning("replica %s: a KV event is not readable: %s", self._name, error)
            self._following.account.unreadable += 1
            self._following.skip_to(number + 1)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Measures what is done for this replica."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._spent += time.thread_time() - began

    def _rest(self) -> float:
        """Seconds for which this replica has had more than its share; 0: it has not."""
        spent, self._spent = self._spent + RECEIVING, 0.0
        return min(self._share.worked(spent, self._clock(), KvFeed.open), MOST_REST)

    async def _ask_again(self, context: Any, number: int) -> None:
        """Have the batches from `number` on sent again, as far as the server has them still."""
        if self._replay is None:
            return
        await asyncio.sleep(self._replayed_at + BETWEEN_REPLAYS - self._clock())
        self._replayed_at = self._clock()
        socket = self._socket(context, self._zmq.DEALER)
        try:
            socket.connect(self._replay)
            await socket.send_multipart([b"", number.to_bytes(8, "big")])
            async with asyncio.timeout(REPLAY_WITHIN):
                heard = await self._hear_again(socket)
            if not heard and not number:
                self._following.nothing_yet()
        except TimeoutError:
            log.warning("replica %s: what was missed of its KV events was not sent in time", self._name)
        finally:
            socket.close()

    async def _hear_again(self, socket: Any) -> int:
        """Take in what is sent again; return how many batches there were."""
        heard = 0
        while True:
            async with asyncio.timeout(REPLAY_SILENCE):
                parts = await socket.recv_multipart()
            number = int.from_bytes(parts[-2], "big", signed=True) if len(parts) >= 2 else -1
            if number < 0:
                return heard
            heard += 1
            await asyncio.sleep(self._rest())
            batch = self._read(parts[-1])
            place = self._following.place_of(number, batch)
            if place is InLine.GAP:  # older ones are not kept any more
                self._following.skip_to(number)
            if place is not InLine.OLD:
                await self._take(number, batch)
