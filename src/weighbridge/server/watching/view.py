"""What a console sees of a service beside its load: the line, the last ten minutes, iterations, routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from weighbridge.server.watching.history import Iterations, ServerHistory


@dataclass(frozen=True, slots=True)
class KnownFleet:
    """The replicas of a model as a simulation takes them: see `simulator.whatif`. `skipped`: those that are not up, or
    of which too little is known, with the reason."""

    model: str
    policy: str
    replicas: list[dict[str, Any]]
    skipped: dict[str, str]


class ServiceView(Protocol):
    """One service as its console sees it. All of it is asked on the event loop."""

    @property
    def history(self) -> ServerHistory: ...
    @property
    def iterations(self) -> Iterations | None:
        """The latest; None: nothing is computed here."""
        ...

    @property
    def kind(self) -> str:
        """`engine`, `gateway`, or `routes` where all that can be asked are routes."""
        ...

    @property
    def has_experts(self) -> bool:
        """Whether a mixture of experts is computed here."""
        ...

    def models(self) -> list[str]:
        """The models that have replicas, or the one that is computed here."""
        ...

    def waiting(self) -> Mapping[tuple[int, str], tuple[int, int]]:
        """What waits, by class and tenant: requests, and the tokens of their work."""
        ...

    def levels(self) -> Mapping[str, float]:
        """How busy it is now: the sums of its load."""
        ...

    def produced(self) -> int:
        """Output tokens of all requests so far, also of those under way. It may fall where a count is corrected."""
        ...

    def routes(self) -> list[dict[str, Any]]:
        """The routes, with their places and bounds; none where there are none."""
        ...

    def known(self, model: str) -> KnownFleet:
        """What a simulation has to know of the replicas of a model; an empty name is the only model's.

        Raises BadInput where there is no such model, or the speed of its replicas is not known yet.
        """
        ...

    def answered(self, path: str, status: int) -> None:
        """Hear of every answer."""
        ...
