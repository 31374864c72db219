"""The ticket: one record per request of what it weighed, what was decided, and why; and where tickets are kept."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any


@dataclass(slots=True)
class Ticket:
    """Written as the request goes. Times are seconds since the epoch; prompts are never stored, a hash is."""

    id: str
    tenant: str
    model: str
    prompt_hash: str
    prompt_tokens: int
    max_tokens: int
    priority: int = 0
    choices: int = 1
    predicted_output_tokens: float | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    kv_bytes: int = 0
    arrived: float = 0.0
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    batch_sizes: dict[int, int] = field(default_factory=dict)  # sequences in the step -> steps seen
    steps: int = 0
    experts_touched: int | None = None  # (layer, expert) pairs, added up over its steps; None: a dense model
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    replica: str = "local"
    placement: str = "edge"
    rule: str | None = None  # the residency rule that applied
    score: float | None = None  # difficulty before answering, in [0, 1]
    threshold: float | None = None  # score from which the cloud was to answer
    confidence: float | None = None  # that the local answer is right, as judged before the first byte left
    degraded: bool = False  # answered by a side that was not the one wanted
    cost_usd: float = 0.0  # all attempts together
    cost_estimated: bool = False  # a side did not say what it used, so it was counted
    counterfactual_usd: float | None = None  # what the other side would have cost
    left_machine: list[str] = field(default_factory=list)  # to whom, how much, what was redacted
    decisions: list[str] = field(default_factory=list)  # what was decided and why, in order
    route: str = ""
    weighed_tokens: int | None = None  # prompt tokens as weighed at the door; `prompt_tokens`: as settled
    exact: bool = True  # the prompt was counted with the model's tokenizer
    attempts: int = 0  # replicas it was sent to, one after the other
    hedged: bool = False  # a second copy was sent
    resumed: int = 0  # times its stream went on at another replica
    scores: dict[str, float] = field(default_factory=dict)  # of the candidates at the last choice; lower wins
    score_unit: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; durations derived from the times are added in milliseconds."""
        record = asdict(self)
        record["batch_sizes"] = {str(size): steps for size, steps in self.batch_sizes.items()}
        if self.first_token is not None:
            record["ttft_ms"] = round((self.first_token - self.arrived) * 1e3, 3)
        if self.finished is not None:
            record["e2e_ms"] = round((self.finished - self.arrived) * 1e3, 3)
        return record


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
