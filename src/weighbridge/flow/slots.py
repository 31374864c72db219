"""How many executions of a resource run at once: the committed first, bets in what is left."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weighbridge.flow.execution import Execution


class Limiter:
    """`size` places. A committed execution that finds none free takes the place of a speculative one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._holders: dict[Execution, None] = {}
        self._waiting: deque[tuple[Execution, asyncio.Future[None]]] = deque()

    def __len__(self) -> int:
        return len(self._holders)

    async def acquire(self, execution: Execution) -> None:
        """Wait for a place. Cancelling the wait leaves nothing behind."""
        if len(self._holders) < self.size and not self._waiting:
            self._holders[execution] = None
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (execution, place)
        self._waiting.append(entry)
        if execution.committed:
            self._make_room()
        else:
            execution.on_commit.append(self._make_room)
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            self._holders.pop(execution, None)
            self._hand_out()
            raise

    def release(self, execution: Execution) -> None:
        """Give the place back."""
        if self._holders.pop(execution, self) is None:
            self._hand_out()

    def _make_room(self) -> None:
        """As many bets make way as committed executions wait, the youngest first."""
        needed = sum(1 for execution, _ in self._waiting if execution.committed)
        leaving = sum(1 for one in self._holders if one.preempted)
        for holder in reversed(list(self._holders)):
            if leaving >= needed:
                return
            if not holder.committed and not holder.preempted:
                holder.preempt()
                leaving += 1

    def _hand_out(self) -> None:
        while self._waiting and len(self._holders) < self.size:
            entry = next((one for one in self._waiting if one[0].committed), self._waiting[0])
            self._waiting.remove(entry)
            self._holders[entry[0]] = None
            if not entry[1].done():
                entry[1].set_result(None)
