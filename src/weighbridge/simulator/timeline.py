"""Timelines of a run: what each iteration computed, who waited, how full the cache was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from weighbridge.simulator.replica import SimulatedReplica

#: Points kept of each replica; beyond, every second one goes and the next are twice as far apart.
MOST_POINTS = 4000


@dataclass(frozen=True, slots=True)
class Point:
    """One iteration, or a stride of equal ones."""

    at: float
    lasted: float
    decodes: int
    prompt_tokens: int
    waiting: int  # in the replica's own queue
    running: int
    kv_share: float  # blocks that requests hold


@dataclass(slots=True)
class _Track:
    points: list[Point] = field(default_factory=list)
    every: int = 1
    seen: int = 0


class Timeline:
    """A `Watcher`. `replica` finds a replica by name; `gateway_queue` says how many wait at the gateway."""

    def __init__(self, replica: Callable[[str], SimulatedReplica], gateway_queue: Callable[[], int]) -> None:
        self._replica = replica
        self._gateway_queue = gateway_queue
        self._tracks: dict[str, _Track] = {}
        self.gateway: list[tuple[float, int]] = []
        self._gateway_every = 0.0

    def iteration(
        self, replica: str, begin: float, end: float, decodes: int, prompt_tokens: int, count: int
    ) -> None:
        track = self._tracks.setdefault(replica, _Track())
        track.seen += 1
        if track.seen % track.every == 0:
            load = self._replica(replica).scheduler.load()
            track.points.append(
                Point(
                    begin,
                    (end - begin) / count,
                    decodes,
                    prompt_tokens,
                    load.queued_requests,
                    load.running_requests,
                    load.kv_blocks_used / load.kv_blocks_total,
                )
            )
            if len(track.points) > MOST_POINTS:
                track.points = track.points[::2]
                track.every *= 2
        if not self.gateway or end >= self.gateway[-1][0] + self._gateway_every:
            self.gateway.append((end, self._gateway_queue()))
            if len(self.gateway) > MOST_POINTS:
                self.gateway = self.gateway[::2]
                self._gateway_every = 2 * (self.gateway[-1][0] - self.gateway[0][0]) / MOST_POINTS

    @property
    def replicas(self) -> dict[str, list[Point]]:
        return {name: track.points for name, track in self._tracks.items()}
