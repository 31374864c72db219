"""Programs of this package: each runs for some seconds in a process of its own and says at its end what it did."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.adversary.site import Ports

#: How nice the adversary is: the least of all.
NICE = 19
#: Seconds beyond its time in which a program must have ended.
GRACE = 90.0


@dataclass(frozen=True, slots=True)
class Task:
    """What a program is told: where the doors are, how long it runs, and what it draws from."""

    ports: Ports
    seconds: float
    seed: int

    @classmethod
    def told(cls) -> Task:
        """As the command line has it."""
        single, gateway, seconds, seed = sys.argv[1:5]
        return cls(Ports(int(single), int(gateway)), float(seconds), int(seed))

    def words(self) -> list[str]:
        return [str(self.ports.single), str(self.ports.gateway), str(self.seconds), str(self.seed)]

    def until(self) -> float:
        return time.monotonic() + self.seconds


def report(done: Counter[str], **more: Any) -> None:
    """The last line of a program."""
    print(json.dumps({"done": dict(done), **more}), flush=True)


class Program:
    """A running program. What it says goes to its caller, what goes wrong into a log."""

    def __init__(self, name: str, words: Sequence[str], log: Path, nice: int) -> None:
        self.name = name
        self._log = log.open("wb")
        module = f"tests.adversary.{name}"
        self.process = subprocess.Popen(
            ["nice", "-n", str(nice), sys.executable, "-m", module, *words],
            stdin=subprocess.PIPE,  # its end is what a program without a time of its own waits for
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def first_line(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def result(self, patience: float) -> dict[str, Any]:
        """What it says at its end. Fails when it ends badly or not in time."""
        output, _ = self.process.communicate(timeout=patience)
        assert self.process.returncode == 0, f"{self.name} ended with {self.process.returncode}"
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self._log.close()


@contextmanager
def started(name: str, words: Sequence[str], log: Path, nice: int = NICE) -> Iterator[Program]:
    """A program until the block ends."""
    program = Program(name, words, log, nice)
    try:
        yield program
    finally:
        program.close()
