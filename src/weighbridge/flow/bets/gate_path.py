"""What a guess would take off the critical path: durations and edges in, seconds out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """One call: how long it ran, and the positions of the nodes it waited for (all before it)."""

    seconds: float
    after: tuple[int, ...] = ()
    writes: bool = False
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Saving:
    """What betting on one node's result would bring, and what the bet would start."""

    seconds: float  # drop of the longest path
    usd: float  # price of what would start before the result is known
    work_seconds: float  # and its running time


def finish_times(nodes: Sequence[Node]) -> list[float]:
    """When each node ends if all of them start as soon as they can."""
    ends: list[float] = []
    for node in nodes:
        ends.append(max((ends[i] for i in node.after), default=0.0) + node.seconds)
    return ends


def makespan(nodes: Sequence[Node]) -> float:
    """The longest path, in seconds."""
    return max(finish_times(nodes), default=0.0)


def critical_path(nodes: Sequence[Node]) -> list[int]:
    """Positions of the nodes on the longest path, first to last."""
    if not nodes:
        return []
    ends = finish_times(nodes)
    position = max(range(len(nodes)), key=lambda i: ends[i])
    path = [position]
    while nodes[position].after:
        position = max(nodes[position].after, key=lambda i: ends[i])
        path.append(position)
    return path[::-1]


def saving(nodes: Sequence[Node], guessed: int) -> Saving:
    """ΔL and C of a right guess of node `guessed`, placed when that node starts.

    What depends on it starts then instead of when it ends, except writes, which wait for it as before,
    and with them what depends on them.
    """
    ends = finish_times(nodes)
    known = ends[guessed]
    placed = known - nodes[guessed].seconds
    early: list[float] = []  # when a node ends with the guess; `behind`: it depends on the guess
    behind = [False] * len(nodes)
    usd = work = 0.0
    for position, node in enumerate(nodes):
        starts = 0.0
        for dep in node.after:
            starts = max(starts, placed if dep == guessed else early[dep])
            behind[position] = behind[position] or dep == guessed or behind[dep]
        if behind[position] and node.writes:
            starts = max(starts, known)
        elif behind[position] and starts < known:
            usd += node.usd
            work += min(node.seconds, known - starts)
        early.append(starts + node.seconds)
    total = max(max(early, default=0.0), known)
    return Saving(max(max(ends, default=0.0) - total, 0.0), usd, work)


def graham_bound(work: float, longest_path: float, machines: int) -> float:
    """Any list schedule ends by W/m + (1 − 1/m)·L (Graham 1969)."""
    return work / machines + (1.0 - 1.0 / machines) * longest_path
