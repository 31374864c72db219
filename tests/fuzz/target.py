"""What a fuzz target is: a parser fed with any bytes, the errors it may raise, and what it may take."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: What one input may take: seconds of the thread's own CPU time, and growth of the process.
MAX_CPU_S, MAX_GROWTH_BYTES = 10.0, 512 << 20


class PlantedBug(Exception):
    """The bug that a target has when it is asked for one: it shows that the fuzzer would find a real one."""


class Unbounded(Exception):
    """An input took more time or memory than any may."""


@dataclass(frozen=True, slots=True)
class Target:
    """`parse` reads an input and returns a text or bytes that a well-formed one has in its depth, or None.

    `errors`: what `parse` may raise, as documented. `seeds`: the corpus to begin with. `words`: what the format is
    written in.
    """

    name: str
    parse: Callable[[bytes], str | bytes | None]
    errors: tuple[type[BaseException], ...]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes] = ()

    def run(self, data: bytes, *, planted: bool = False) -> None:
        """Raise what an input must not lead to: an undocumented error, or too much time or memory.

        `planted`: with a bug behind six characters in the depth of a well-formed input.
        """
        began, held = time.thread_time(), _peak_bytes()
        try:
            found = self.parse(data)
        except self.errors:
            found = None
        took, grown = time.thread_time() - began, _peak_bytes() - held
        if took > MAX_CPU_S or grown > MAX_GROWTH_BYTES:
            raise Unbounded(f"{took:.1f} s, {grown >> 20} MiB more")
        if planted and found is not None:
            _planted(found.encode("utf-8", "replace") if isinstance(found, str) else found)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _planted(found: bytes) -> None:
    """Fail behind two branches, the second of which is seen only by who has passed the first."""
    for at in range(min(len(found), 32)):
        if found[at : at + 3] == b"~!~":  # noqa: SIM102 (a branch of its own, for the fuzzer to see)
            if found[at + 3 : at + 6] == b"bug":
                raise PlantedBug(found[:40])
