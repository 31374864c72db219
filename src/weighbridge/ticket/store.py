"""Recent tickets in memory, and all of them in a JSONL file where one is wanted."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import IO

from weighbridge.ticket.record import Ticket


class TicketStore:
    """The last `capacity` tickets by id; `path`: a file that every finished ticket is appended to."""

    def __init__(self, capacity: int = 10_000, path: Path | None = None) -> None:
        self._capacity = capacity
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def add(self, ticket: Ticket) -> None:
        """Remember a ticket from its first moment on; the oldest make room."""
        self._tickets[ticket.id] = ticket
        while len(self._tickets) > self._capacity:
            self._tickets.popitem(last=False)

    def finish(self, ticket: Ticket) -> None:
        """Write a finished ticket to the file. One short line: the operating system buffers it."""
        if self._file is not None:
            self._file.write(json.dumps(ticket.as_dict(), ensure_ascii=False) + "\n")

    def get(self, ticket_id: str) -> Ticket | None:
        return self._tickets.get(ticket_id)

    def recent(self, limit: int = 100) -> list[Ticket]:
        """The newest first."""
        newest = reversed(self._tickets.values())
        return [ticket for ticket, _ in zip(newest, range(limit), strict=False)]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
