"""Where tickets are kept: the latest in memory, all of them in a file where one is wanted."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from weighbridge.state.lines import LineFile
from weighbridge.state.schema import DocumentSchema
from weighbridge.ticket.record import LEG_FIELDS, Ticket


def _with_legs(record: dict[str, Any]) -> None:
    """What one model's replicas did of a request is a leg; version 0 has the request alone."""
    record.setdefault("candidates", len(record.get("scores", ())))
    if "legs" in record:
        return
    named = {
        "place": "",
        "purpose": "answer",
        "decisions": [],
        "scores": {},
        "score_unit": "",
        "candidates": 0,
        "span_id": "",
    }
    renamed = {
        "tries": "attempts",
        "usd": "cost_usd",
        "estimated": "cost_estimated",
        "outcome": "finish_reason",
    }
    leg = {name: record.get(renamed.get(name, name)) for name in LEG_FIELDS}
    record["legs"] = [{**leg, **named}] if record.get("replica") else []


#: Characters by which a ticket is known that is not named whole.
LEAST_BEGINNING = 6

#: A ticket as a line of a file.
TICKETS = DocumentSchema("ticket", (_with_legs,))


@dataclass(frozen=True, slots=True)
class TicketFilter:
    """Which tickets are looked for; None and empty: any. `search`: how an id begins. `outcome`: as in `finish_reason`,
    or `running`. `slower_ms`: from arrival to the end, or until `now` (epoch seconds) where a request goes on."""

    tenant: str | None = None
    model: str = ""
    replica: str = ""
    outcome: str = ""
    search: str = ""
    slower_ms: float = 0.0
    now: float = 0.0

    def takes(self, ticket: Ticket) -> bool:
        if self.tenant is not None and ticket.tenant != self.tenant:
            return False
        if self.search and not ticket.id.startswith(self.search):
            return False
        if self.outcome and (ticket.finish_reason or "running") != self.outcome:
            return False
        if self.slower_ms:
            until = self.now if ticket.finished is None else ticket.finished
            if (until - ticket.arrived) * 1e3 < self.slower_ms:
                return False
        return self._is_at(ticket) and self._is_of(ticket)

    def _is_at(self, ticket: Ticket) -> bool:
        replica = self.replica
        return not replica or ticket.replica == replica or any(leg.replica == replica for leg in ticket.legs)

    def _is_of(self, ticket: Ticket) -> bool:
        model = self.model
        return not model or ticket.model == model or any(leg.model == model for leg in ticket.legs)


ANY_TICKET = TicketFilter()


class TicketStore:
    """The last `capacity` tickets by id; `path`: a file that every finished ticket is appended to.

    A file that cannot be written fails no request: `lost` counts the tickets that it lacks.
    """

    def __init__(self, capacity: int = 10_000, path: Path | None = None) -> None:
        """Raises BadInput where the file cannot be opened."""
        self._capacity = capacity
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._file = LineFile(path, TICKETS) if path is not None else None

    @property
    def lost(self) -> int:
        return 0 if self._file is None else self._file.lost

    def add(self, ticket: Ticket) -> None:
        """Remember a ticket from its first moment on; the oldest make room."""
        self._tickets[ticket.id] = ticket
        while len(self._tickets) > self._capacity:
            self._tickets.popitem(last=False)

    def finish(self, ticket: Ticket) -> None:
        """Write a finished ticket to the file, soon: one line, so that processes may share the file."""
        if self._file is not None:
            self._file.append(ticket.as_dict())

    def get(self, ticket_id: str) -> Ticket | None:
        return self._tickets.get(ticket_id)

    def beginning(self, with_: str, tenant: str | None = None) -> list[Ticket]:
        """Those of `tenant`, or of everybody, whose ids begin so: two at most; none where that is too short."""
        if len(with_) < LEAST_BEGINNING:
            return []
        return self.recent(2, TicketFilter(tenant, search=with_))

    def recent(self, limit: int = 100, wanted: TicketFilter = ANY_TICKET) -> list[Ticket]:
        """Those that are wanted, the newest first."""
        return list(islice(filter(wanted.takes, reversed(self._tickets.values())), limit))

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        if self._file is not None:
            self._file.close()
