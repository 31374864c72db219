"""Asks every replica how it is, and draws conclusions: up, down, or merely too busy to answer a probe."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from weighbridge.errors import Inside, words_of
from weighbridge.fleet.config.spec import HealthSpec
from weighbridge.fleet.member import Member
from weighbridge.fleet.replica import ReplicaError

log = logging.getLogger("weighbridge.fleet")

#: Probe failures after which a replica that is down is asked less and less often, at most every so many seconds.
SLOWEST = 5.0
#: Probes a second that replicas get together where nothing happens: with more of them each is asked less often, at
#: least every so many seconds.
QUIET_RATE, QUIETEST = 100.0, 15.0
#: How many times as long as makes a replica down it may be without a sign of life, until those who wait for a first
#: byte from it are tried elsewhere.
GONE = 5.0


def quiet_pause(interval: float, replicas: int) -> float:
    """Seconds between two probes of a replica at which nothing happens, one of so many."""
    return max(interval, min(replicas / QUIET_RATE, QUIETEST))


class Watch:
    """One task per replica. `heard` is called after every probe; `changed` whenever a replica came up or went down;
    `gone` after each that failed once a replica has long been without a sign of life."""

    def __init__(
        self,
        spec: HealthSpec,
        clock: Callable[[], float],
        heard: Callable[[Member], None],
        changed: Callable[[Member], None],
        gone: Callable[[Member], None] = lambda member: None,
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._heard = heard
        self._changed = changed
        self._gone = gone
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, member: Member) -> None:
        """Begin to probe; a replica that must not be probed is believed in until a call fails."""
        if not member.spec.probe:
            member.alive(self._clock(), 0.0)
            return
        self._tasks[member.name] = asyncio.create_task(self._watch(member))

    async def stop(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def drop(self, name: str) -> None:
        """Probe a replica no more, without waiting for a probe that is under way: what it says counts for nobody."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def stop_all(self) -> None:
        for name in list(self._tasks):
            await self.stop(name)

    async def _watch(self, member: Member) -> None:
        while True:
            await self.probe(member)
            # Several gateways must not ask in step.
            await asyncio.sleep(self._pause(member) * (0.9 + 0.2 * random.random()))

    def _pause(self, member: Member) -> float:
        """Seconds until it is asked again."""
        pause = self._spec.interval
        if not member.heard:
            return min(pause, 0.2)  # it is starting: the first answer is waited for
        if not member.state.healthy:
            return min(pause * max(member.failed_probes / 4, 1.0), max(SLOWEST, pause))
        return quiet_pause(pause, len(self._tasks)) if member.is_quiet else pause

    async def probe(self, member: Member) -> None:
        """Ask once and take in the answer, or the lack of one."""
        before = member.usable(self._clock()) and member.state.healthy
        try:
            report = await member.replica.probe()
        except ReplicaError as error:
            self._failed(member, words_of(error))
        except Exception as error:  # an adapter's bug must not end the watch
            log.exception("probing %s failed", member.name)
            self._failed(member, Inside(f"probing failed: {error!r}", "probing failed"))
        else:
            member.alive(self._clock(), self._spec.slow_start)
            member.learn(report)
        self._heard(member)
        after = member.usable(self._clock()) and member.state.healthy
        if before != after:
            log.info(
                "replica %s is %s%s", member.name, "up" if after else "down", self._because(member, after)
            )
            self._changed(member)

    def _because(self, member: Member, up: bool) -> str:
        return "" if up else f": {member.last_error}"

    def _failed(self, member: Member, why: str) -> None:
        """Count a failure, and after so many in a row the replica is down; but whoever sends chunks is alive."""
        member.last_error = why
        member.failed_probes += 1
        silent, patience = self._clock() - member.alive_at, self._spec.interval * self._spec.failures
        if member.failed_probes >= self._spec.failures and silent >= patience:
            member.state.healthy = False
            if silent >= GONE * patience:
                self._gone(member)
