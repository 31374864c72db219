"""Runs a program and all that it starts, and ends both when whoever started this one is gone.

    python keeper.py CORES SECONDS -- COMMAND...

It is told by its standard input, a pipe: that ends when the other side does, however it ended. Then, and on SIGTERM,
the program's whole group gets SIGTERM, and SIGKILL after so many seconds. `CORES` is a list with commas, or `-` for
all. The text of this file goes to machines where nothing of ours is installed, so it needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

#: Seconds between two looks at a program, where the system cannot say when it ends.
LOOK_EVERY = 0.2
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Return the program's exit code, as a shell has it."""
    cores, grace, command = arguments[0], float(arguments[1]), arguments[3:]
    if cores != "-" and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    told, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda number, frame: os.write(tell, b"x"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_us
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    watched = [told, sys.stdin.fileno()]
    exits = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
    while process.poll() is None:
        listening = watched if exits is None else [*watched, exits]
        ready, _, _ = select.select(listening, [], [], LOOK_EVERY if exits is None else None)
        if told in ready or (sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 1024)):
            end(process, grace)
            break
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what it left behind
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    return 128 - code if code < 0 else code


def _end_with_us() -> None:
    """Have the program told to end when this one is killed before it can tell it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end(process: subprocess.Popen[bytes], grace: float) -> None:
    """End a program's group: SIGTERM, time to finish, then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    until = time.monotonic() + grace
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
