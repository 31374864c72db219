"""The desk of a live gateway: its clock, and a future for each request that waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Set

from weighbridge.errors import QueueFull, Refused
from weighbridge.fleet import desk
from weighbridge.fleet.api import Arrival
from weighbridge.fleet.desk import NOBODY, Desk, Patience
from weighbridge.fleet.load.queue import SOON, GatewayQueue
from weighbridge.fleet.member import Member
from weighbridge.fleet.policies.policy import Policy

log = logging.getLogger("weighbridge.fleet")

#: Seconds between two looks at those who wait: whether they do in vain, or somebody has room again.
TICK = 0.05

Lease = desk.Lease[Member]


class Dispatcher:
    """Places the requests of one model on its replicas. Every decision is the desk's; only waiting is asynchronous."""

    def __init__(
        self, model: str, policy: Policy, queue: GatewayQueue, patience: Patience, clock: Callable[[], float]
    ) -> None:
        self.desk: Desk[Member] = Desk(model, policy, queue, patience, freed=self._freed)
        self.queue = queue
        self._clock = clock
        self._places: dict[str, asyncio.Future[Lease]] = {}
        self._beat: asyncio.TimerHandle | None = None  # while somebody waits

    @property
    def policy(self) -> Policy:
        return self.desk.policy

    @property
    def members(self) -> Mapping[str, Member]:
        return self.desk.members

    def place_now(
        self, arrival: Arrival, avoid: Set[str] = NOBODY, *, streamed: bool = True, copy: bool = False
    ) -> Lease | None:
        """A place at once or not at all (see `Desk.place`)."""
        return self.desk.place(arrival, self._clock(), avoid, streamed=streamed, copy=copy)

    async def place(
        self, arrival: Arrival, avoid: Set[str] = NOBODY, *, streamed: bool = True, again: bool = False
    ) -> Lease:
        """A place now or when one is free (see `Desk.offer`). Raises Refused."""
        lease = self.desk.offer(arrival, self._clock(), avoid, streamed=streamed, again=again)
        if lease is not None:
            return lease
        place = self._places[arrival.id] = asyncio.get_running_loop().create_future()
        self._look_soon()
        self.pump()
        return await self._wait(arrival.id, place)

    async def _wait(self, request_id: str, place: asyncio.Future[Lease]) -> Lease:
        limit = self.desk.patience.max_wait
        try:
            async with asyncio.timeout(limit):
                return await place
        except BaseException as error:
            if place.done() and not place.cancelled() and place.exception() is None:
                place.result().release(self._clock())  # it got its place in the moment it gave up
            if not isinstance(error, TimeoutError):
                raise
            raise QueueFull(
                f"no replica had room for this request within {limit:g} s; try again later",
                retry_after=self.desk.drain_seconds(self._clock()) or SOON,
            ) from None
        finally:
            self._places.pop(request_id, None)
            self.desk.withdraw(request_id)

    def pump(self) -> None:
        """Place as many of those who wait as there is room for."""
        now = self._clock()
        for lease in self.desk.pump(now):
            place = self._places[lease.arrival.id]
            if place.done():  # cancelled in this very moment
                lease.release(now)
            else:
                place.set_result(lease)

    def _look_soon(self) -> None:
        if self._beat is None:
            self._beat = asyncio.get_running_loop().call_later(TICK, self._look)

    def _look(self) -> None:
        self._beat = None
        try:
            self.tick()
        except Exception:
            log.exception("looking after the queue of %s failed", self.desk.model)
        if self.desk.waiting:
            self._look_soon()

    def tick(self) -> None:
        """Give up those who wait in vain, and look again at who has room; called now and then, and by itself every
        `TICK` as long as somebody waits."""
        now = self._clock()
        for arrival, missed in self.desk.expire(now):
            self._refuse(arrival.id, missed)
        for arrival, error in self.desk.stranded(now):
            self.desk.withdraw(arrival.id)
            self._refuse(arrival.id, error)
        self.pump()
        doubt = self.desk.doubt(now)
        if doubt is not None:
            self.refuse_all(doubt)

    def refuse_all(self, error: Refused) -> None:
        """Tell everybody who waits `error`."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        for request_id in self.desk.waiting:
            self.desk.withdraw(request_id)
            self._refuse(request_id, error)

    def work_seconds(self, tokens: float) -> float | None:
        """Return the seconds in which the replicas that are up produce `tokens` together; None: no speed is known."""
        return self.desk.work_seconds(tokens, self._clock())

    def _freed(self, now: float) -> None:
        if len(self.queue):
            self.pump()

    def _refuse(self, request_id: str, error: Refused) -> None:
        place = self._places.pop(request_id, None)
        if place is not None and not place.done():
            place.set_exception(error)
