"""Programs of this package, each in a process of its own: they work when they are told to, and say what they did.

A program loads what it needs first, at the niceness of the test: on a machine that others use, one that is as nice as
can be takes minutes for that. Then it is nice, says that it is ready, and works until the moment that a line names,
once for each line. Moments are of the clock that all processes share, so that who is starved ends in time all the same.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.adversary.site import Ports

#: How nice the adversary is beside the servers and the honest: by all there is.
NICE = 19
#: Seconds in which a program must be ready, and beyond its time in which it must have said what it did. Somebody who is
#: that nice may have a thousandth of a core where others work.
LOADING, GRACE = 180.0, 300.0


@dataclass(frozen=True, slots=True)
class Task:
    """What a program is told: where the doors are, when it ends (by the machine's monotonic clock), what it draws
    from, and how much of it: a burner's cores, and of the usual rate of the honest; 0: as fast as answers come."""

    ports: Ports
    until: float
    seed: int
    share: float = 0.0

    @property
    def left(self) -> float:
        return max(self.until - time.monotonic(), 0.0)


def attend(work: Callable[[Task], dict[str, Any]]) -> None:
    """Be a program: `work` at each task that comes, until there are no more."""
    os.nice(int(sys.argv[1]))
    say("ready")
    for line in sys.stdin:
        told = json.loads(line)
        say(work(Task(**{**told, "ports": Ports(**told["ports"])})))


def say(value: Any) -> None:
    """One line of a program."""
    print(json.dumps(value), flush=True)


def report(done: Counter[str], **more: Any) -> dict[str, Any]:
    """What a program says of a task."""
    return {"done": dict(done), **more}


class Program:
    """A running program. What it says goes to its caller, what goes wrong into a log."""

    def __init__(self, name: str, log: Path, nice: int) -> None:
        self.name = name
        self._log = log.open("wb")
        self._buffer = b""
        self.said: Any = None  # when it was ready
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.adversary.{name}", str(nice)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def begin(self, task: Task) -> None:
        """Have it work at a task."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
        self.process.stdin.flush()

    def says(self, patience: float) -> Any:
        """The next line that it says. Fails when it has ended, or does not come in time."""
        deadline = time.monotonic() + patience
        while b"\n" not in self._buffer:
            assert self.process.stdout is not None
            output = self.process.stdout.fileno()
            ready, _, _ = select.select([output], [], [], max(deadline - time.monotonic(), 0.0))
            assert ready, f"{self.name} said nothing for {patience:.0f} s"
            more = os.read(output, 1 << 16)
            assert more, f"{self.name} ended with {self.process.wait(5)}"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def end(self, patience: float) -> Any:
        """What it says when there are no more tasks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.says(patience)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        self._log.close()


@contextmanager
def started(name: str, log: Path, nice: int = NICE) -> Iterator[Program]:
    """A program that is ready, until the block ends."""
    program = Program(name, log, nice)
    try:
        program.said = program.says(LOADING)
        yield program
    finally:
        program.close()


def added(done: list[dict[str, Any]]) -> dict[str, int]:
    """What was done in several tasks, together."""
    return dict(sum((Counter(one["done"]) for one in done), Counter[str]()))
