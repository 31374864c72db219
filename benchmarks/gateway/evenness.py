"""How evenly a core runs when nobody asks anything of it: the floor of every 99th percentile measured there.

    python benchmarks/gateway/evenness.py [CORE] [SECONDS]

A virtual machine's core may stand still or crawl for tens of milliseconds at a time, and neither its load nor its
CPU times say so: the guest is charged for what it was not given. So the same small piece of work is done over and over,
and each repetition is compared with the median one. A tail that is shorter than the longest of these says nothing about
a program; two trees compared on such a machine are compared by CPU time or by instructions.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time

ADDITIONS = 20_000  # about a millisecond


def quanta(seconds: float) -> list[int]:
    """Nanoseconds of each repetition."""
    taken = []
    until = time.monotonic_ns() + int(seconds * 1e9)
    ended = time.monotonic_ns()
    while ended < until:
        began, total = ended, 0
        for number in range(ADDITIONS):
            total += number
        ended = time.monotonic_ns()
        taken.append(ended - began)
    return taken


def main(core: int = 0, seconds: float = 5.0) -> None:
    os.sched_setaffinity(0, {core})
    taken = quanta(seconds)
    usual = statistics.median(taken)
    late = [one for one in taken if one > 2 * usual]
    print(
        json.dumps(
            {
                "usual_ms": round(usual / 1e6, 2),
                "longest_ms": round(max(taken) / 1e6, 1),
                "share_of_time_at_half_speed_or_less": round(sum(late) / sum(taken), 3),
            }
        )
    )


if __name__ == "__main__":
    main(*(cast(value) for cast, value in zip((int, float), sys.argv[1:], strict=False)))
