"""How much of a core the events of a replica may take. Pure."""

from __future__ import annotations

from dataclasses import dataclass

#: Of a core, for one replica and for all of a gateway together, which they share evenly.
OF_ONE, OF_ALL = 0.25, 0.5
#: Seconds of work that may come at once: what a server sends again when a line begins takes as long.
BURST = 2.0


@dataclass(slots=True)
class Share:
    """What was worked for one replica beyond its share of the time that went by."""

    beyond: float = 0.0  # seconds of work
    at: float = 0.0

    def worked(self, seconds: float, now: float, replicas: int) -> float:
        """Note work for one of so many replicas. Returns the seconds to rest until it is within its share; 0: it is."""
        of_core = min(OF_ONE, OF_ALL / max(replicas, 1))
        self.beyond = max(self.beyond - max(now - self.at, 0.0) * of_core, 0.0) + seconds
        self.at = now
        return self.beyond / of_core if self.beyond > BURST else 0.0
