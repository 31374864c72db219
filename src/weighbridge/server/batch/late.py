"""Which batches are late, and when one of their lines may run beside others' requests. Pure.

A busy machine has nothing to spare, and a batch that gets only that would stand still until its window ends. In the
last part of the window, where no line has been answered for a tenth of that part, one of its lines at a time runs in a
class of its own: behind everybody who waits for an answer, but not held still. Between two such lines there is a pause
as long as the first took, so that they take half of the time at most, and lines that run on what is spare show by their
answers that there is some.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weighbridge.engine.request import SPARE_CLASS

#: Behind every class of those who wait, before what gets only what is spare.
LATE_CLASS = SPARE_CLASS - 1
#: Seconds without an answer after which a batch stands still, at the least and as a part of its last part; and the
#: shortest pause between two late lines.
STILL, STILL_SHARE, SHORTEST_PAUSE = 5.0, 0.1, 0.5


@dataclass(slots=True)
class LateLines:
    """`share`: the last part of a window that is late, in [0, 1]. Times are seconds of the caller's clock."""

    share: float
    _progress: dict[str, float] = field(default_factory=dict)  # by batch: when it last got an answer
    _began: dict[str, float] = field(default_factory=dict)  # by model: when its late line began
    _rests: dict[str, float] = field(default_factory=dict)  # by model: until when there is none

    def is_late(self, created: float, expires: float, wall: float) -> bool:
        """Whether a batch that was made at `created` is in the last part of its window. Unix seconds."""
        return wall >= expires - self.share * (expires - created)

    def may_begin(self, batch: str, model: str, clock: float, window: float = 0.0) -> bool:
        """Whether a late line of `batch`, which is late, may begin now. `window`: all of its time, in seconds."""
        since = self._progress.setdefault(batch, clock)
        if model in self._began or clock < self._rests.get(model, clock):
            return False
        return clock - since >= max(STILL, STILL_SHARE * self.share * window)

    def began(self, model: str, clock: float) -> None:
        self._began[model] = clock

    def ended(self, model: str, clock: float) -> None:
        took = clock - self._began.pop(model, clock)
        self._rests[model] = clock + max(took, SHORTEST_PAUSE)

    def under_way(self, model: str) -> int:
        """Late lines of a model that run now: one or none."""
        return int(model in self._began)

    def progressed(self, batch: str, clock: float) -> None:
        """A line of `batch` got its answer on what was spare."""
        self._progress[batch] = clock

    def forget(self, batch: str) -> None:
        """A batch is over."""
        self._progress.pop(batch, None)
