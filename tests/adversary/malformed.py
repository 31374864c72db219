"""Clients that ask wrongly: every row of the doors' table at every door, and the same bytes changed at random."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from tests.adversary.programs import Task, attend, report
from tests.adversary.site import GATEWAY, MODELS, ROUTE, SINGLE
from tests.doors.client import NoReply, exchange
from tests.doors.doors import KEYS
from tests.doors.rows import ROWS
from tests.doors.table import Row, raw_bytes
from tests.fuzz.changes import changed

WORKERS = 4
#: Seconds between two requests of one worker, and how long one waits for an answer.
PAUSE, PATIENCE = 0.04, 3.0
#: And for the whole of it: a stream to which nobody set a bound goes on for minutes where servers are busy.
WITHIN = 20.0
WORDS = (
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"]}",
    b'{"',
    b"\xff",
)


@dataclass(frozen=True, slots=True)
class Place:
    """As much of a door as a row's bytes need."""

    name: str
    port: int
    model: str


def bytes_of(row: Row, place: Place, draw: random.Random) -> list[bytes]:
    """A row as it is, with a key where it has none, or changed."""
    if row.key is None and not row.keyed and draw.random() < 0.8:
        row = replace(row, key=draw.choice(sorted(KEYS)))
    pieces = raw_bytes(row, place)  # type: ignore[arg-type]
    if draw.random() < 0.4 and sum(map(len, pieces)) < 1 << 16:
        pieces = [changed(b"".join(pieces), WORDS, draw)]
    return pieces


def work(task: Task, number: int, done: Counter[str]) -> None:
    """One worker's requests. What it counts is its own."""
    draw = random.Random(task.seed * 100 + number)
    while task.left:
        door = draw.choice((SINGLE, GATEWAY, ROUTE))
        place = Place(door, task.ports.of(door), MODELS[door])
        try:
            pieces = bytes_of(draw.choice(ROWS), place, draw)
            reply = exchange(
                place.port, *pieces, patience=PATIENCE, pause=draw.choice((0.0, 0.01)), within=WITHIN
            )
            done[f"{door} {reply.status}"] += 1
        except NoReply:
            done[f"{door} none"] += 1
        except OSError as error:
            done[f"{door} {type(error).__name__}"] += 1
        time.sleep(PAUSE)


def main(task: Task) -> dict[str, Any]:
    counts: list[Counter[str]] = [Counter() for _ in range(WORKERS)]
    threads = [threading.Thread(target=work, args=(task, number, done)) for number, done in enumerate(counts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return report(sum(counts, Counter()))


if __name__ == "__main__":
    attend(main)
