"""Keeps what was used without holding anybody up: counted in memory, and written to the ledger once a second."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from weighbridge.cost.price import NANO
from weighbridge.cost.usage import Charge, Usage
from weighbridge.errors import BadInput
from weighbridge.fleet.limits.periods import Day
from weighbridge.routes.ledger.usage import OTHERS, UsageQuery, UsageRow, Used
from weighbridge.state.database import sentence
from weighbridge.ticket import Ticket

log = logging.getLogger("weighbridge.routes")

#: Seconds that what was used waits to be written; a process that is killed loses no more than that.
FLUSH_SECONDS = 1.0
#: Rows that wait while the disk fails; whoever comes later counts under `OTHERS`.
MAX_WAITING = 10_000
#: Of one row, so many requests that are not summed up yet.
MOST_APART = 64


class Book(Protocol):
    """What the ledger is to its keeper."""

    where: str

    @property
    def zone(self) -> str: ...
    def today(self) -> Day: ...
    def note(self, used: Iterable[tuple[str, Used]]) -> None: ...
    def usage(self, query: UsageQuery) -> tuple[list[UsageRow], str]: ...


class UsageKeeper:
    """Any thread may call it; `add` waits for no disk. What routes pay for is not its own: that is written with the
    money, by the ledger."""

    def __init__(self, ledger: Book) -> None:
        self.ledger = ledger
        self.failures = 0
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._waiting: dict[tuple[str, str, str, str], list[Used]] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, used: Used) -> None:
        """Count what a request used, on the day that it is now."""
        day = self.ledger.today().name
        key = (day, used.tenant, used.model, used.route)
        with self._lock:
            if key not in self._waiting and len(self._waiting) >= MAX_WAITING:
                key = (day, OTHERS, used.model, used.route)
            self._wait(key, used)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="weighbridge-usage", daemon=True)
                self._thread.start()

    def charged(self, ticket: Ticket, charge: Charge) -> None:
        """Count a request for a model of a gateway, which has been settled."""
        if ticket.attempts:
            nano = round(ticket.cost_usd * NANO)
            hidden = charge.hidden_tokens
            self.add(
                Used(ticket.tenant, ticket.model, usage=charge.usage, nano_usd=nano, hidden_tokens=hidden)
            )

    def finished(self, ticket: Ticket) -> None:
        """Count a request that an engine has worked on."""
        if ticket.scheduled is not None:
            cached = min(ticket.cached_tokens, ticket.prompt_tokens)
            usage = Usage(ticket.prompt_tokens, ticket.output_tokens, cached)
            self.add(Used(ticket.tenant, ticket.model, usage=usage))

    def rows(self, query: UsageQuery) -> tuple[list[UsageRow], str]:
        """The rows of a query, and the first day of which anything is known. Blocks. Raises what the ledger does."""
        self.flush()
        return self.ledger.usage(query)

    def flush(self) -> None:
        """Write what waits. A disk that fails loses nothing: it is tried again."""
        with self._flushing:
            with self._lock:
                waiting, self._waiting = self._waiting, {}
            if not waiting:
                return
            try:
                self.ledger.note([(key[0], _total(used, key[1])) for key, used in waiting.items()])
            except (sqlite3.Error, BadInput) as error:
                self._failed(error)
                with self._lock:
                    for key, used in waiting.items():
                        self._wait(key, _total(used, key[1]))

    def _wait(self, key: tuple[str, str, str, str], used: Used) -> None:
        """Let it wait; summed up now and then, so that many requests take no more room than few."""
        waiting = self._waiting.setdefault(key, [])
        waiting.append(used)
        if len(waiting) >= MOST_APART:
            waiting[:] = [_total(waiting, key[1])]

    def close(self) -> None:
        """Write what is left and let the thread go."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self.flush()

    def _failed(self, error: Exception) -> None:
        if not self.failures:
            log.error("what was used waits to be written: %s", sentence(error, "ledger", self.ledger.where))
        self.failures += 1


def _total(used: Sequence[Used], tenant: str) -> Used:
    """What was used of one model by one route, added up."""
    usage = [one.usage for one in used]
    return Used(
        tenant,
        used[0].model,
        used[0].route,
        Usage(
            sum([one.prompt_tokens for one in usage]),
            sum([one.output_tokens for one in usage]),
            sum([one.cached_tokens for one in usage]),
            sum([one.written_tokens for one in usage]),
            sum([one.reasoning_tokens for one in usage]),
        ),
        sum([one.nano_usd for one in used]),
        sum([one.requests for one in used]),
        sum([one.hidden_tokens for one in used]),
    )
