"""What a fuzz target is: a parser fed with any bytes, the errors it may raise, and what it may take."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

#: What one input may take: seconds of the thread's own CPU time, and growth of the process.
MAX_CPU_S, MAX_GROWTH_BYTES = 10.0, 512 << 20


class Unbounded(Exception):
    """An input took more time or memory than any may."""


@dataclass(frozen=True, slots=True)
class Target:
    """`parse` reads an input, and asserts what is promised of whatever it accepts.

    `errors`: what `parse` may raise, as documented. `seeds`: the corpus to begin with. `words`: what the format is
    written in. `change`: returns an input that is the format still, or nearly so, with something in it changed; None
    where it cannot.
    """

    name: str
    parse: Callable[[bytes], None]
    errors: tuple[type[BaseException], ...]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes] = ()
    change: Callable[[bytes, Random], bytes | None] | None = None
    max_cpu_s: float = MAX_CPU_S
    max_growth_bytes: int = MAX_GROWTH_BYTES

    def run(self, data: bytes) -> bool:
        """Return whether the input is accepted. Raise what it must not lead to: an undocumented error, a broken
        promise, or too much time or memory."""
        began, held = time.thread_time(), _peak_bytes()
        accepted = True
        try:
            self.parse(data)
        except self.errors:
            accepted = False
        took, grown = time.thread_time() - began, _peak_bytes() - held
        if took > self.max_cpu_s or grown > self.max_growth_bytes:
            raise Unbounded(f"{took:.1f} s, {grown >> 20} MiB more")
        return accepted


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
