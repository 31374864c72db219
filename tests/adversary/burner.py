"""Burns as much CPU time as it is told, spread evenly: `python -m tests.adversary.burner SECONDS SHARE`.

SHARE is in cores. Where the machine has no time left it falls behind and catches up, as who works does.
"""

from __future__ import annotations

import sys
import time

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


if __name__ == "__main__":
    burn(float(sys.argv[1]), float(sys.argv[2]))
    print("{}")
