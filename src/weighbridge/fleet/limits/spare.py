"""What of a fleet nobody else needs now: how many requests of the last class may be under way. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpareRoom:
    """Requests that get only what is spare: so many may be under way for another to begin, and so many may stay."""

    for_new: int = 0
    for_old: int = 0

    def __add__(self, other: SpareRoom) -> SpareRoom:
        return SpareRoom(self.for_new + other.for_new, self.for_old + other.for_old)


@dataclass(frozen=True, slots=True)
class SpareSeat:
    """One replica. `is_busy`: it has requests of better classes; `stands_aside`: it lets them pass by itself."""

    seats: int
    is_busy: bool
    stands_aside: bool


def spare_room(replicas: Iterable[SpareSeat], each: int, waiting: bool) -> SpareRoom:
    """`each`: of one replica at most, and never more than half of its seats; `waiting`: requests wait for a replica.

    A replica that lets better classes pass keeps what it has; any other one gives up what it has for them.
    """
    room = SpareRoom()
    for one in replicas:
        most = min(each, max(one.seats // 2, 1))
        if not one.is_busy:
            room += SpareRoom(most, most)
        elif one.stands_aside:
            room += SpareRoom(0, most)
    return SpareRoom(0, room.for_old) if waiting else room
