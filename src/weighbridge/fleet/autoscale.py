"""Starts and stops the replicas that a scaler asks for."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from weighbridge.errors import BadInput
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.load.scaling import Measured, Pulse, Scaler
from weighbridge.fleet.member import Member
from weighbridge.fleet.pool import Pool

log = logging.getLogger("weighbridge.fleet")

#: Seconds a replica that is no longer needed has to finish what runs there.
LAST_WORK = 600.0


class Autoscale:
    """One entry of the configuration whose number of replicas follows the queued token work and what clients see."""

    def __init__(self, pool: Pool, spec: ReplicaSpec) -> None:
        self._pool = pool
        self._spec = spec
        self._scaler = Scaler(spec.ray.scaling)
        self._pulse = Pulse()  # of this entry: how quickly its tokens follow
        self._started = spec.ray.scaling.least
        self._stopping: set[asyncio.Task[bool]] = set()

    def step(self) -> None:
        """Start or stop a replica where it is time to; called at regular times."""
        members = self._members()
        states = [member.state for member in members]
        now = self._pool.clock()
        queued, work = self._pool.dispatcher.desk.backlog_seconds(states, now)
        produced = sum(member.counts.output_tokens + member.state.produced for member in members)
        self._pulse.sample(sum(member.state.decoding for member in members), produced, now)
        measured = Measured(self._pool.pulse.ttft(now), self._pulse.itl())
        change = self._scaler.decide(len(members), queued, work, now, measured)
        if change > 0:
            self._start(measured)
        elif change < 0:
            self._stop(min(members, key=lambda member: member.state.outstanding_tokens))

    def _members(self) -> list[Member]:
        """Return the members of this entry that are meant to stay."""
        prefix = f"{self._spec.name}-"
        named = (
            m for name, m in self._pool.members.items() if name == self._spec.name or name.startswith(prefix)
        )
        return [member for member in named if member.spec.kind == self._spec.kind and not member.draining]

    def _start(self, measured: Measured) -> None:
        while (name := f"{self._spec.name}-{self._started}") in self._pool.members:
            self._started += 1
        self._started += 1
        log.info("%s: work is piling up%s, starting %s", self._pool.spec.name, _seen(measured), name)
        try:
            self._pool.add(replace(self._spec, name=name, count=1))
        except BadInput as error:
            log.warning("%s: %s cannot be started: %s", self._pool.spec.name, name, error)

    def _stop(self, member: Member) -> None:
        log.info("%s: little work, stopping %s", self._pool.spec.name, member.name)
        member.draining = True
        task = asyncio.create_task(self._pool.remove(member.name, LAST_WORK))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)


def _seen(measured: Measured) -> str:
    """What clients see, for the log."""
    said = [("first tokens within", measured.ttft), ("a token every", measured.itl)]
    return "".join(f", {words} {seconds:.3f} s" for words, seconds in said if seconds is not None)
