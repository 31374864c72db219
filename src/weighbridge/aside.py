"""Answers one question of a server in a process of its own: `python -m weighbridge.aside simulate|plan|catalogue`.

The question is JSON on standard input, the answer JSON on standard output. The process may use so many seconds of a
processor and so much memory, behind everybody else: a server goes on answering whatever it was asked.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from weighbridge.cost.hardware import devices
from weighbridge.errors import BadInput
from weighbridge.planner import question as plan
from weighbridge.planner.model.catalogue import catalogue
from weighbridge.simulator import whatif

#: Seconds of a processor, and bytes of memory beyond what the program itself is.
CPU_SECONDS, MEMORY_BYTES = 20, 2 << 30
#: How far the process stands behind others.
NICE = 15


def bound() -> None:
    """Let the system end this process once it has used its time, and refuse it more memory."""
    if sys.platform == "win32":  # has no such bounds; whoever asked still ends it by the clock
        return
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    os.nice(NICE)


def answered(kind: str, body: bytes) -> dict[str, Any]:
    """Raises BadInput and what msgspec does for a question that cannot be answered."""
    match kind:
        case "simulate":
            return whatif.answer(msgspec.json.decode(body, type=whatif.WhatIf))
        case "plan":
            return plan.answer(msgspec.json.decode(body, type=plan.PlanAsked))
        case "catalogue":
            return {
                "models": sorted(catalogue()),
                "devices": [
                    {"name": one.name, "memory_gib": one.memory_gib, "usd_per_hour": one.usd_per_hour}
                    for one in devices()
                ],
                "engines": list(plan.ENGINES),
            }
    raise BadInput(f"{kind!r} is no question; ask simulate, plan or catalogue")


def main() -> int:
    """Exit code 2: the question cannot be answered; `problem` in the answer says why."""
    bound()
    try:
        told = answered(sys.argv[1] if len(sys.argv) == 2 else "", sys.stdin.buffer.read())
    except (BadInput, msgspec.MsgspecError, MemoryError) as error:
        sys.stdout.buffer.write(msgspec.json.encode({"problem": str(error) or "it takes too much memory"}))
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
