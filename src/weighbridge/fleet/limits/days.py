"""Which day counts where a clock is set: none is opened again, and none lasts. Pure; days are `YYYY-MM-DD`."""

from __future__ import annotations

from dataclasses import dataclass


def current_day(today: str, latest: str, corrected: str | None) -> tuple[str, str | None]:
    """Return the day that counts, and the day on which the clock was seen to be behind it.

    A clock that goes back does not open a day again: the `latest` day goes on. A day that lies ahead because the clock
    was wrong locks nothing for long: it ends with the day on which the clock was put right (`corrected`).
    """
    if today >= latest:
        return today, None
    if corrected is not None and today > corrected:
        return today, None
    return latest, today


@dataclass(slots=True)
class DayTotal:
    """Sum of amounts of one day of a zone. `ends`: when there is room again, on the clock of who asks."""

    name: str = ""
    ends: float = 0.0
    total: float = 0.0
    corrected: str | None = None

    def turn(self, today: str, ends: float) -> None:
        """Say which day it is by the clock, and when that ends."""
        day, self.corrected = current_day(today, self.name, self.corrected)
        if day != self.name:
            self.name, self.total = day, 0.0
        self.ends = ends
