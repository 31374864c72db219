"""What a source of replicas finds, and how a pool follows it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

from weighbridge.errors import BadInput
from weighbridge.fleet.config.spec import DiscoverySpec, ReplicaSpec
from weighbridge.fleet.pool import Pool
from weighbridge.wire.identity.access import in_url

log = logging.getLogger("weighbridge.fleet")

#: Replicas that one source may name.
MOST_FOUND = 4096
#: Seconds that requests have to end at a replica that is named no more, and between two looks at those.
LAST_WORK, LOOK_S = 600.0, 1.0
#: Seconds until a source that failed is asked again, at first and at most.
RETRY_S, LONGEST_RETRY_S = 1.0, 30.0


class FoundServer(NamedTuple):
    """One server. `rests`: it finishes what it has, and is to get nothing more."""

    address: str
    port: int
    rests: bool = False


Tell = Callable[[frozenset[FoundServer]], None]


class SourceFailed(Exception):
    """A source could not be asked; what it named before stays."""


class ReplicaSource(Protocol):
    """Names servers."""

    where: str

    async def watch(self, tell: Tell) -> None:
        """Tell all servers, and again whenever they change; until cancelled. Raises SourceFailed."""
        ...


class Follower:
    """Has the replicas that a source names in a pool. What it stops naming drains and goes."""

    def __init__(self, pool: Pool, spec: DiscoverySpec, source: ReplicaSource) -> None:
        self._pool, self._spec, self._source = pool, spec, source
        self._mine: dict[str, FoundServer] = {}
        self._absent: dict[str, float] = {}  # when they were named no more
        self._rested: set[str] = set()  # who was drained because the source said so
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._part())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        pause, failing = RETRY_S, False
        while True:
            began = self._pool.clock()
            try:
                await self._source.watch(self._take)
            except SourceFailed as error:
                if not failing:
                    log.warning("%s: %s; its %d replicas stay", self._source.where, error, len(self._mine))
                failing = True
            except Exception:
                log.exception("following %s failed; its replicas stay", self._source.where)
            if self._pool.clock() - began > LONGEST_RETRY_S:
                pause, failing = RETRY_S, False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_RETRY_S)

    def _take(self, found: frozenset[FoundServer]) -> None:
        """Have these and no others. Nobody at all is more likely a fault of the source's than true: they stay."""
        if not found and self._mine:
            log.warning("%s names no replica; those that it named stay until they fail", self._source.where)
            return
        named = {self._name(one): one for one in sorted(found)[:MOST_FOUND]}
        for name in self._mine.keys() - named.keys():
            if name not in self._absent and name in self._pool.members:
                log.info("replica %s is named by %s no more", name, self._source.where)
                self._absent[name] = self._pool.clock()
                self._pool.drain(name)
        for name, one in named.items():
            self._have(name, one)

    def _have(self, name: str, one: FoundServer) -> None:
        back = self._absent.pop(name, None) is not None
        if name not in self._pool.members:
            try:
                self._pool.add(self._of(name, one))
            except BadInput as error:
                log.warning("%s names a replica that cannot be added: %s", self._source.where, error)
                return
            log.info("replica %s was found by %s", name, self._source.where)
        elif name not in self._mine:
            return  # the configuration's own, or an operator's
        self._mine[name] = one
        if one.rests and not self._pool.members[name].draining:
            self._rested.add(name)
            self._pool.drain(name)
        elif not one.rests and (back or name in self._rested):
            self._rested.discard(name)
            self._pool.undrain(name)

    async def _part(self) -> None:
        """Take out who is named no more, once nothing runs there."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._pool.clock()
            for name, since in list(self._absent.items()):
                member = self._pool.members.get(name)
                if member is None or not member.state.requests or now >= since + LAST_WORK:
                    self._absent.pop(name, None)
                    self._mine.pop(name, None)
                    self._rested.discard(name)
                    if member is not None:
                        await self._pool.remove(name, 0.0)

    def _name(self, one: FoundServer) -> str:
        return f"{self._spec.name}-{in_url(one.address)}:{one.port}"

    def _of(self, name: str, one: FoundServer) -> ReplicaSpec:
        target = f"{self._spec.scheme}://{in_url(one.address)}:{one.port}"
        return replace(self._spec.template, name=name, target=target)
