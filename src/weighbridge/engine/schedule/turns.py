"""Whose prompt is computed next: each has the turn it would have if all tenants' prompts were computed side by side.

After Demers, Keshav and Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", SIGCOMM 1989: a prompt is due
when it would end if every tenant with prompts got the same share of what is computed, and who is due first goes first.
So a short prompt passes the long ones of others, the second prompt of one tenant the first of no other that came with
it, and prompts alike are computed one after another and not in slices by turns, which would make all of them late.
"""

from __future__ import annotations

from dataclasses import dataclass

from weighbridge.engine.request import Request

#: Tenants remembered that are owed nothing and owe nothing.
MAX_IDLE_TENANTS = 4096


@dataclass(slots=True)
class _Turn:
    begins: float
    due: float
    base: int  # tokens that were there when it began


class PromptTurns:
    """Times are tokens computed, as a tenant sees them who always has a prompt."""

    def __init__(self) -> None:
        self._now = 0.0
        self._last_due: dict[str, float] = {}  # of each tenant's prompts so far
        self._turns: dict[Request, _Turn] = {}

    def would_be_due(self, tenant: str, tokens: int) -> float:
        """When a prompt of which so many `tokens` are to be computed is due if it begins now."""
        return max(self._now, self._last_due.get(tenant, 0.0)) + tokens

    def begin(self, request: Request, computed: int) -> None:
        """Give `request` its turn, of which `computed` tokens are there; one that gave way keeps its own."""
        if request in self._turns:
            return
        due = self.would_be_due(request.tenant, request.num_tokens - computed)
        self._turns[request] = _Turn(due - (request.num_tokens - computed), due, computed)
        self._last_due[request.tenant] = due
        if len(self._last_due) > MAX_IDLE_TENANTS:
            self._last_due = {tenant: due for tenant, due in self._last_due.items() if due > self._now}

    def due(self, request: Request) -> float:
        """When the prompt of a request that has begun is due."""
        return self._turns[request].due

    def advance(self, request: Request, end: int) -> None:
        """Note that the prompt of `request` is computed up to `end`."""
        turn = self._turns[request]
        self._now = max(self._now, min(turn.begins + end - turn.base, turn.due))

    def forget(self, request: Request) -> None:
        """Let the turn of a request go that has ended."""
        self._turns.pop(request, None)

    def __len__(self) -> int:
        return len(self._turns)
