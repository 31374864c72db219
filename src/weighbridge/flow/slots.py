"""How many executions of a resource run at once: committed executions first, bets in what is left."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol


class SlotHolder(Protocol):
    """What wants a slot: an execution."""

    committed: bool
    preempted: bool
    on_commit: list[Callable[[], None]]

    def preempt(self) -> None: ...


class Slots:
    """`size` slots. A committed execution that finds none free takes that of a speculative one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._holders: dict[SlotHolder, None] = {}
        self._waiting: deque[tuple[SlotHolder, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._holders)

    async def acquire(self, execution: SlotHolder) -> None:
        """Wait for a slot. Cancelling the wait leaves nothing behind."""
        if len(self._holders) < self.size and not self._waiting:
            self._holders[execution] = None
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (execution, granted)
        self._waiting.append(entry)
        if execution.committed:
            self._make_room()
        else:
            execution.on_commit.append(self._make_room)
        self._hand_out()
        try:
            await granted
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            self._holders.pop(execution, None)
            self._hand_out()
            raise

    def release(self, execution: SlotHolder) -> None:
        """Give the slot back."""
        if execution in self._holders:
            del self._holders[execution]
            self._hand_out()

    def _make_room(self) -> None:
        """Stop as many bets as committed executions wait, the youngest first."""
        needed = sum(1 for execution, _ in self._waiting if execution.committed)
        leaving = sum(1 for holder in self._holders if holder.preempted)
        for holder in reversed(list(self._holders)):
            if leaving >= needed:
                return
            if not holder.committed and not holder.preempted:
                holder.preempt()
                leaving += 1

    def _hand_out(self) -> None:
        while self._waiting and len(self._holders) < self.size:
            entry = next((waiting for waiting in self._waiting if waiting[0].committed), self._waiting[0])
            self._waiting.remove(entry)
            self._holders[entry[0]] = None
            if not entry[1].done():
                entry[1].set_result(None)
