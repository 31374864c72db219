"""Two runs of the same honest load on new servers: beside the adversary, and beside burners of as much CPU time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.adversary import honest
from tests.adversary.measure import Sampler, longest_stall, open_files, stalls, wait_until_idle
from tests.adversary.programs import GRACE, Program, Task, started
from tests.adversary.site import GATEWAY, SINGLE, Ports, Server, open_site

#: The adversary's programs beside its backends.
ATTACKERS = ("malformed", "slow", "heavy", "files")
#: Seconds of honest load alone before anything is measured, and until everything is at rest again.
WARM_UP, REST = 10.0, 90.0


@dataclass(slots=True)
class Run:
    """What was seen in one run. CPU is in seconds, by process; `did` is what the adversary's programs say they did."""

    seconds: float
    samples: list[honest.Sample] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)
    did: dict[str, Any] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    alive: dict[str, bool] = field(default_factory=dict)
    grown_mib: dict[str, float] = field(default_factory=dict)
    rss_mib: dict[str, tuple[float, float]] = field(default_factory=dict)  # at the beginning and at the end
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # before and after
    stalls: dict[str, float] = field(default_factory=dict)  # the longest, by server and thread
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        return [f"{sample.door}: {sample.failure}" for sample in self.samples if sample.failure]


class Stage:
    """Where runs are made: a folder for what is written, the model, and how long one lasts."""

    def __init__(self, folder: Path, model: Path, seconds: float) -> None:
        self.folder = folder
        self.model = model
        self.seconds = seconds
        self._liars: list[str] = []  # where they are, or were

    def attacked(self) -> Run:
        """Honest load beside everything that the adversary has."""
        with self._program("liars", ["7"]) as backends:
            self._liars = backends.first_line()
            with self._site("attacked") as (servers, task, run), ExitStack() as stack:
                programs = {"liars": backends}
                for name in ATTACKERS:
                    programs[name] = stack.enter_context(self._program(name, task.words()))
                self._measure(run, servers, task, programs)
                run.did = {name: programs[name].result(GRACE) for name in (*ATTACKERS, "liars")}
                self._afterwards(run, servers)
        return run

    def quiet(self, burnt: Mapping[str, float], seconds: float) -> Run:
        """The same honest load beside processes that burn these CPU seconds in as many. Nobody asks the liars."""
        with ExitStack() as stack:
            self._liars = stack.enter_context(self._program("liars", ["7"])).first_line()
            servers, task, run = stack.enter_context(self._site("quiet"))
            programs = {}
            for name, used in burnt.items():
                words = [str(self.seconds), str(used / seconds)]
                log = self.folder / f"burner-{name}.log"
                programs[f"as {name}"] = stack.enter_context(started("burner", words, log))
            self._measure(run, servers, task, programs)
            self._afterwards(run, servers)
        return run

    def _program(self, name: str, words: list[str]) -> Any:
        return started(name, words, self.folder / f"{name}.log")

    @contextmanager
    def _site(self, name: str) -> Iterator[tuple[list[Server], Task, Run]]:
        """New servers, warm; afterwards what they wrote is in the run."""
        run = Run(self.seconds)
        with open_site(self.folder / name, self.model, self._liars) as servers:
            ports = Ports(*(server.port for server in servers if server.name in (SINGLE, GATEWAY)))
            self._honest(Task(ports, min(WARM_UP, self.seconds / 2), 1))
            yield servers, Task(ports, self.seconds, 2), run
            run.alive = {server.name: server.process.poll() is None for server in servers}
        run.logs = {server.name: server.log.read_text(errors="replace") for server in servers}

    def _honest(self, task: Task) -> list[honest.Sample]:
        with started("honest", task.words(), self.folder / "honest.log", 0) as program:
            return honest.read(program.result(task.seconds + GRACE))

    def _measure(self, run: Run, servers: list[Server], task: Task, programs: Mapping[str, Program]) -> None:
        before = {server.name: open_files(server.process.pid) for server in servers}
        began = time.monotonic()
        with started("honest", task.words(), self.folder / "honest.log", 0) as load:
            pids = {name: program.process.pid for name, program in programs.items()}
            pids |= {"honest": load.process.pid, **{server.name: server.process.pid for server in servers}}
            sampler = Sampler(pids)
            run.samples = honest.read(load.result(task.seconds + GRACE))
            sampler.close()
        run.seconds = time.monotonic() - began
        run.cpu = {name: sampler.cpu(name) for name in pids}
        run.grown_mib = {name: sampler.grown_mib(name) for name in pids}
        for server in servers:
            readings = sampler.readings[server.name]
            run.rss_mib[server.name] = (readings[0].rss_mib, readings[-1].rss_mib)
            run.files[server.name] = (before[server.name], max(reading.files for reading in readings))

    def _afterwards(self, run: Run, servers: list[Server]) -> None:
        """Wait until all is at rest; look at what is left."""
        run.held = wait_until_idle(servers, REST)
        for server in servers:
            before, _ = run.files[server.name]
            run.files[server.name] = (before, self._files_at_rest(server, before))
            for thread, by_bound in stalls(server).items():
                run.stalls[f"{server.name} {thread}"] = longest_stall(by_bound)

    @staticmethod
    def _files_at_rest(server: Server, before: int, patience: float = 30.0) -> int:
        """Open files once no more of them are closed; lines that are kept open for a next request take their time."""
        deadline = time.monotonic() + patience
        while (now := open_files(server.process.pid)) > before and time.monotonic() < deadline:
            time.sleep(0.5)
        return now


def duration() -> float:
    """Seconds of a run: five minutes, or ADVERSARY_SECONDS."""
    return float(os.environ.get("ADVERSARY_SECONDS", "300"))
