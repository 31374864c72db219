"""What became of every request, in columns: a million of them fit in memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

NEVER = float("nan")

_COLUMNS = (
    *("arrived", "dispatched", "first", "finished"),
    *("prompt_tokens", "output_tokens", "cached_tokens"),
)


@dataclass(slots=True)
class Outcome:
    """What becomes of a request while it lasts. Times are seconds of the simulation; NaN: it never happened."""

    id: str
    tenant: str
    arrived: float
    prompt_tokens: int
    dispatched: float = NEVER
    first: float = NEVER
    finished: float = NEVER
    output_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    retries: int = 0
    replica: str = ""
    error: str = ""


@dataclass(slots=True)
class Outcomes:
    """All requests that ended, in the order in which they did."""

    arrived: array[float] = field(default_factory=lambda: array("d"))
    dispatched: array[float] = field(default_factory=lambda: array("d"))
    first: array[float] = field(default_factory=lambda: array("d"))
    finished: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    cached_tokens: array[int] = field(default_factory=lambda: array("q"))
    preemptions: int = 0
    retries: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)  # output tokens
    replicas: dict[str, int] = field(default_factory=dict)  # requests that ended well

    def add(self, outcome: Outcome) -> None:
        """Keep what counts of a request that ended, well or not."""
        self.preemptions += outcome.preemptions
        self.retries += outcome.retries
        self.tenants[outcome.tenant] = self.tenants.get(outcome.tenant, 0) + outcome.output_tokens
        if outcome.error:
            self.errors[outcome.error] = self.errors.get(outcome.error, 0) + 1
            return
        self.replicas[outcome.replica] = self.replicas.get(outcome.replica, 0) + 1
        self.arrived.append(outcome.arrived)
        self.dispatched.append(outcome.dispatched)
        self.first.append(outcome.first)
        self.finished.append(outcome.finished)
        self.prompt_tokens.append(outcome.prompt_tokens)
        self.output_tokens.append(outcome.output_tokens)
        self.cached_tokens.append(outcome.cached_tokens)

    def arrived_from(self, time: float) -> Outcomes:
        """Return only the requests that arrived at `time` or later; counts that have no time stay whole."""
        keep = [index for index, at in enumerate(self.arrived) if at >= time]
        kept = replace(self)
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(kept, name, array(column.typecode, [column[index] for index in keep]))
        return kept

    def __len__(self) -> int:
        return len(self.arrived)

    @property
    def ttft(self) -> NDArray[np.float64]:
        """Seconds from arrival at the gateway to the first token."""
        return _floats(self.first) - _floats(self.arrived)

    @property
    def e2e(self) -> NDArray[np.float64]:
        return _floats(self.finished) - _floats(self.arrived)

    @property
    def tpot(self) -> NDArray[np.float64]:
        """Mean seconds per token after the first; 0 where there was only a first."""
        more = _floats(self.output_tokens) - 1.0
        lasted = _floats(self.finished) - _floats(self.first)
        return np.where(more > 0.0, lasted / np.maximum(more, 1.0), 0.0)


def _floats(column: array[float] | array[int]) -> NDArray[np.float64]:
    return np.array(column, np.float64)
