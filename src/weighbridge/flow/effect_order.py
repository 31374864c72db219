"""The order of effects: a parallel flow leaves the world as its sequential reading would."""

from __future__ import annotations

from weighbridge.flow.promise import Promise
from weighbridge.flow.step import Options

Any_ = Promise[object]


class EffectOrder:
    """Per resource: the last write and the reads since. A step without a resource touches all of them.

    A read follows the last write of what it reads; a write follows the last write and every read since.
    Pure steps follow nothing. "Follows" means: starts after the other has settled, well or badly.
    """

    __slots__ = ("_reads", "_writes", "count")

    def __init__(self) -> None:
        self._writes: dict[str | None, tuple[int, Any_]] = {}
        self._reads: dict[str | None, list[Any_]] = {}
        self.count = 0  # writes so far

    def read(self, promise: Promise[object], options: Options) -> tuple[list[Any_], int]:
        """What a new read must follow, and its fence: the number of the last of those writes."""
        follows, fence = self.peek(options)
        reads = self._reads.setdefault(options.resource, [])
        if len(reads) >= 64 and len(reads) % 64 == 0:
            reads[:] = [one for one in reads if not one.done]
        reads.append(promise)
        return follows, fence

    def peek(self, options: Options) -> tuple[list[Any_], int]:
        """What a read made now would have to follow, and its fence."""
        return self._last_writes(options.resource)

    def write(self, promise: Promise[object], options: Options) -> tuple[list[Any_], int]:
        """What a new write must follow; it becomes the last one."""
        resource = options.resource
        follows, fence = self._last_writes(resource)
        touched = list(self._reads) if resource is None else [resource, None]
        for one in touched:
            reads = self._reads.get(one, [])
            follows += [read for read in reads if not read.done]
            if resource is None or one is not None:
                reads.clear()
        if resource is None:
            self._writes.clear()
        self.count += 1
        self._writes[resource] = (self.count, promise)
        return follows, fence

    def _last_writes(self, resource: str | None) -> tuple[list[Any_], int]:
        if not self._writes:
            return [], 0
        if resource is None:
            last = list(self._writes.values())
        else:
            last = [self._writes[one] for one in (resource, None) if one in self._writes]
        return [promise for _, promise in last if not promise.done], max((n for n, _ in last), default=0)
