"""Burns as much CPU time as it is told, spread evenly.

Where the machine has no time left it falls behind and catches up, as who works does.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from tests.adversary.programs import Task, attend, report

#: Seconds of one piece of work, and of a rest.
PIECE = 0.002


def burn(seconds: float, share: float) -> None:
    """Burn `share` of the elapsed time until `seconds` are over."""
    began, used = time.monotonic(), time.process_time()
    while (elapsed := time.monotonic() - began) < seconds:
        if time.process_time() - used < share * elapsed:
            end = time.process_time() + PIECE
            while time.process_time() < end:
                sum(range(200))
        else:
            time.sleep(PIECE)


def main(task: Task) -> dict[str, Any]:
    burn(task.left, task.share)
    return report(Counter())


if __name__ == "__main__":
    attend(main)
