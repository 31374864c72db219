"""Becomes another program, bound to some cores, that is told to end when its parent is gone.

    python -m weighbridge.fleet.replicas.child PARENT_PID CORES -- COMMAND...

`CORES` is a comma-separated list, or `-` for all. Binding before the program starts makes all its threads
inherit the cores; the kernel's parent-death signal makes sure that a gateway killed with -9 leaves nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, cores, command = int(arguments[0]), arguments[1], arguments[3:]
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before we asked
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
