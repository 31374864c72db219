"""Timelines of a run: what each iteration computed, who waited, how full the cache was."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from weighbridge.simulator.replica import SimulatedReplica
from weighbridge.workload.quantiles import Floats

#: Spans kept of each replica; beyond, every second one goes and of the further ones every second is kept.
MAX_SPANS = 100_000
#: Replicas followed: more could not be drawn.
MAX_REPLICAS = 8
#: Points kept of the gateway's queue; beyond, two neighbours become the larger one.
MAX_POINTS = 4000

_COLUMNS = ("begin", "end", "decodes", "prompt_tokens", "waiting", "running", "kv_share")


@dataclass(slots=True)
class Track:
    """A replica's spans in columns, each span an iteration or a stride of equal ones.

    Per iteration: sequences that decode, prompt tokens; as it ended: requests waiting in the replica's own queue and
    running, and the share of the KV blocks that requests hold. `every` 1: every span is there, and between two of them
    the replica was idle; else every so-manieth is, and stands for those up to the next.
    """

    columns: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in _COLUMNS})
    every: int = 1
    seen: int = 0

    def add(self, *values: float) -> None:
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        if len(self) > MAX_SPANS:
            self.columns = {name: column[::2] for name, column in self.columns.items()}
            self.every *= 2

    def __len__(self) -> int:
        return len(self.columns["begin"])

    def span(self, end: float) -> tuple[Floats, Floats]:
        """Return when each begins, and until when it holds in a run that lasts `end` seconds."""
        begins, ends = self["begin"], self["end"]
        return begins, ends if self.every == 1 else np.append(begins[1:], end)

    def __getitem__(self, name: str) -> Floats:
        return np.array(self.columns[name], np.float64)


class Timeline:
    """A `Watcher`. `replica` finds a replica by name; `gateway_queue` says how many wait at the gateway."""

    def __init__(self, replica: Callable[[str], SimulatedReplica], gateway_queue: Callable[[], int]) -> None:
        self._replica = replica
        self._gateway_queue = gateway_queue
        self.replicas: dict[str, Track] = {}
        self.left_out: set[str] = set()  # names of replicas that are not followed
        self.gateway: list[tuple[float, int]] = []
        self._gateway_every = 0.0

    def iteration(
        self, replica: str, begin: float, end: float, decodes: int, prompt_tokens: int, count: int
    ) -> None:
        track = self.replicas.get(replica)
        if track is None and len(self.replicas) < MAX_REPLICAS:
            track = self.replicas[replica] = Track()
        if track is None:
            self.left_out.add(replica)
        else:
            track.seen += 1
            if track.seen % track.every == 0:
                load = self._replica(replica).scheduler.load()
                kv = load.kv_blocks_used / load.kv_blocks_total
                track.add(begin, end, decodes, prompt_tokens, load.queued_requests, load.running_requests, kv)
        self._note_queue(end, self._gateway_queue())

    def _note_queue(self, now: float, waiting: int) -> None:
        points = self.gateway
        if not points or now >= points[-1][0] + self._gateway_every:
            points.append((now, waiting))
        elif waiting > points[-1][1]:
            points[-1] = (points[-1][0], waiting)
        if len(points) > MAX_POINTS:
            pairs = zip(points[::2], [*points[1::2], points[-1]], strict=False)
            self.gateway = [(one[0], max(one[1], other[1])) for one, other in pairs]
            self._gateway_every = 2 * (now - points[0][0]) / MAX_POINTS
