"""The order of effects: a parallel flow leaves the world as its sequential reading would."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from weighbridge.flow.step import Options


class Settling(Protocol):
    """A call that settles, well or badly."""

    @property
    def done(self) -> bool: ...


S = TypeVar("S", bound=Settling)


class EffectOrder(Generic[S]):
    """Per resource: the last write and the reads since. A step without a resource touches all of them.

    A read follows the last write of what it reads; a write follows the last write and every read since.
    Pure steps follow nothing. "Follows" means: starts after the other has settled, well or badly.
    """

    __slots__ = ("_reads", "_writes", "count")

    def __init__(self) -> None:
        self._writes: dict[str | None, tuple[int, S]] = {}
        self._reads: dict[str | None, list[S]] = {}
        self.count = 0  # writes so far

    def read(self, call: S, options: Options) -> tuple[list[S], int]:
        """Return what a new read must follow, and its fence: the number of the last of those writes."""
        follows, fence = self.peek(options)
        reads = self._reads.setdefault(options.resource, [])
        if len(reads) >= 64 and len(reads) % 64 == 0:
            reads[:] = [read for read in reads if not read.done]
        reads.append(call)
        return follows, fence

    def peek(self, options: Options) -> tuple[list[S], int]:
        """Return what a read made now would have to follow, and its fence."""
        return self._last_writes(options.resource)

    def write(self, call: S, options: Options) -> tuple[list[S], int]:
        """Return what a new write must follow; it becomes the last write."""
        resource = options.resource
        follows, fence = self._last_writes(resource)
        touched = list(self._reads) if resource is None else [resource, None]
        for name in touched:
            reads = self._reads.get(name, [])
            follows += [read for read in reads if not read.done]
            if resource is None or name is not None:
                reads.clear()
        if resource is None:
            self._writes.clear()
        self.count += 1
        self._writes[resource] = (self.count, call)
        return follows, fence

    def _last_writes(self, resource: str | None) -> tuple[list[S], int]:
        if not self._writes:
            return [], 0
        if resource is None:
            last = list(self._writes.values())
        else:
            last = [self._writes[name] for name in (resource, None) if name in self._writes]
        return [call for _, call in last if not call.done], max((count for count, _ in last), default=0)
