"""The same honest load in turns at two sites: beside the adversary, and beside burners of as much CPU time.

As much as the adversary's programs took, as nice as they are, and as much as the servers took for it beyond what they
take for the honest alone, at the servers' own niceness: where a machine is in use there is no core to spare for either.

Turns are short, so that whatever else a machine does meets both alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.adversary import honest
from tests.adversary.measure import (
    Machine,
    MemoryWatch,
    cpu_seconds,
    grown_mib,
    longest_stall,
    open_files,
    stalls,
    wait_until_idle,
    waited_seconds,
)
from tests.adversary.programs import GRACE, Program, Task, added, started
from tests.adversary.site import GATEWAY, SINGLE, Ports, Server, open_site

#: The adversary's programs beside its backends.
ATTACKERS = ("malformed", "slow", "heavy", "files")
LIARS = "liars"
#: Of what a server can answer one by one, the honest ask for so much at most: they are to wait for the adversary, and
#: not for each other where a machine is in use.
OF_CAPACITY = 0.5
#: Prompts of some thousand tokens that fill a KV pool of `site.OPTIONS`.
FILLERS = 10
#: Seconds of honest load one by one and at its rate before anything is measured, without any, and until everything is
#: at rest again.
WARM_UP, REHEARSAL, IDLE, REST = 10.0, 20.0, 5.0, 90.0
#: Seconds of one turn.
TURN = 60.0


@dataclass(slots=True)
class Run:
    """What was seen in all turns at one site. CPU in seconds, by process; `did` is what the adversary says it did."""

    seconds: float = 0.0
    rate: float = 1.0  # of the usual rate of the honest
    turns: list[list[honest.Sample]] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)
    waited: dict[str, float] = field(
        default_factory=dict
    )  # for a core, where one was wanted: servers and honest
    machine: Machine = field(default_factory=Machine)  # what it did meanwhile, in CPU seconds
    did: dict[str, dict[str, int]] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    alive: dict[str, bool] = field(default_factory=dict)
    grown_mib: dict[str, float] = field(default_factory=dict)
    rss_mib: dict[str, tuple[float, float]] = field(default_factory=dict)  # at the beginning and at the end
    files: dict[str, tuple[int, int]] = field(default_factory=dict)  # before and after
    stalls: dict[str, float] = field(default_factory=dict)  # the longest, by server and thread
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> list[honest.Sample]:
        return [sample for turn in self.turns for sample in turn]

    @property
    def failures(self) -> list[str]:
        return [f"{sample.door}: {sample.failure}" for sample in self.samples if sample.failure]

    @property
    def others(self) -> float:
        """CPU seconds of the machine that were none of ours."""
        return self.machine.busy_s - sum(self.cpu.values())


class Site:
    """Servers, their liars, and what is seen there."""

    def __init__(self, servers: list[Server], liars: Program, load: Program) -> None:
        self.run = Run()
        self.servers = servers
        self.liars = liars
        self._load = load
        self._ports = Ports(*(server.port for server in servers if server.name in (SINGLE, GATEWAY)))
        self._before = {server.name: open_files(server.process.pid) for server in servers}
        self._rss: dict[str, list[float]] = {}

    def task(self, seconds: float, seed: int, share: float) -> Task:
        return Task(self._ports, time.monotonic() + seconds, seed, share)

    def warm(self, seconds: float) -> float:
        """The honest one by one; returns how many a second were answered."""
        began = time.monotonic()
        self._load.begin(self.task(seconds, 1, 0.0))
        return len(honest.read(self._load.says(seconds + GRACE))) / (time.monotonic() - began)

    def fill(self) -> None:
        """Touch the KV pools of both engines, which is not to be seen as growth later."""
        for name in (SINGLE, GATEWAY):
            for number in range(FILLERS):
                self._server(name).chat(f"{number} " + "weigh it again " * 300)

    def _server(self, name: str) -> Server:
        return next(server for server in self.servers if server.name == name)

    def idle(self, seconds: float) -> float:
        """Nothing; returns how many cores the liars take for being looked after."""
        used = cpu_seconds(self.liars.process.pid)
        time.sleep(seconds)
        return (cpu_seconds(self.liars.process.pid) - used) / seconds

    def rehearse(self, seconds: float) -> dict[str, float]:
        """Honest load alone; returns how many cores each server takes for it."""
        used, began = self._servers_cpu(), time.monotonic()
        self._load.begin(self.task(seconds, 1, self.run.rate))
        self._load.says(seconds + GRACE)
        took = time.monotonic() - began
        return {name: (now - used[name]) / took for name, now in self._servers_cpu().items()}

    def _servers_cpu(self) -> dict[str, float]:
        return {server.name: cpu_seconds(server.process.pid) for server in self.servers}

    def turn(self, task: Task, beside: Mapping[str, Program]) -> None:
        """Honest load, measured; what is `beside` it works at the same time."""
        pids = {name: program.process.pid for name, program in beside.items()}
        pids |= {server.name: server.process.pid for server in self.servers}
        pids |= {"honest": self._load.process.pid}
        machine, began = Machine.now(), time.monotonic()
        used = {name: (cpu_seconds(pid), waited_seconds(pid)) for name, pid in pids.items()}
        memory = MemoryWatch(pids)
        self._load.begin(task)
        said = self._load.says(task.left + GRACE)
        memory.close()
        run = self.run
        run.turns.append(honest.read(said))
        run.seconds += time.monotonic() - began
        run.machine = run.machine + (Machine.now() - machine)
        for name, pid in pids.items():
            run.cpu[name] = run.cpu.get(name, 0.0) + cpu_seconds(pid) - used[name][0]
            run.waited[name] = run.waited.get(name, 0.0) + max(waited_seconds(pid) - used[name][1], 0.0)
            self._rss.setdefault(name, []).extend(memory.readings[name])

    def rest(self) -> None:
        """Wait until nothing is held; what is after all, is noted."""
        self.run.held |= wait_until_idle(self.servers, REST)

    def look_back(self) -> None:
        """What is left when all is over."""
        run = self.run
        run.grown_mib = {name: grown_mib(values) for name, values in self._rss.items()}
        run.rss_mib = {server.name: _ends(self._rss[server.name]) for server in self.servers}
        for server in self.servers:
            before = self._before[server.name]
            run.files[server.name] = (before, files_at_rest(server, before))
            for thread, by_bound in stalls(server).items():
                run.stalls[f"{server.name} {thread}"] = longest_stall(by_bound)
        run.alive = {server.name: server.process.poll() is None for server in self.servers}


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return values[0], values[-1]


def files_at_rest(server: Server, before: int, patience: float = 30.0) -> int:
    """Open files once no more of them are closed; lines that are kept open for a next request take their time."""
    deadline = time.monotonic() + patience
    while (now := open_files(server.process.pid)) > before and time.monotonic() < deadline:
        time.sleep(0.5)
    return now


class Stage:
    """Where it is played: a folder for what is written, the model, and the seconds of honest load at each site."""

    def __init__(self, folder: Path, model: Path, seconds: float) -> None:
        self._folder = folder
        self._model = model
        self._turns = max(round(seconds / TURN), 1)
        self._turn_s = seconds / self._turns
        self._did: dict[str, list[dict[str, Any]]] = {name: [] for name in ATTACKERS}

    def played(self) -> tuple[Run, Run]:
        """What was seen beside the adversary, and beside burners."""
        with ExitStack() as stack:
            attacked, quiet = (stack.enter_context(self._site(name)) for name in ("attacked", "quiet"))
            attackers = {name: self._program(stack, name) for name in ATTACKERS}
            burners = {name: self._program(stack, "burner") for name in (*ATTACKERS, LIARS)}
            burners |= {server.name: self._program(stack, "burner", nice=0) for server in quiet.servers}
            for site in (attacked, quiet):
                site.fill()
            answered = [site.warm(min(WARM_UP, self._turn_s)) for site in (attacked, quiet)]
            rate = min(OF_CAPACITY * min(answered) / honest.RATES[SINGLE], 1.0)
            attacked.run.rate = quiet.run.rate = rate
            idle = {LIARS: attacked.idle(IDLE), **quiet.rehearse(min(REHEARSAL, self._turn_s))}
            for number in range(self._turns):
                burnt = self._attack(attacked, attackers, number)
                burnt = {name: max(cores - idle.get(name, 0.0), 0.0) for name, cores in burnt.items()}
                self._burn(quiet, burners, burnt, number)
            for site in (attacked, quiet):
                site.look_back()
            told = attacked.liars.end(GRACE)
            attacked.run.did = {name: added(done) for name, done in (*self._did.items(), (LIARS, [told]))}
        return attacked.run, quiet.run

    def _attack(self, site: Site, attackers: Mapping[str, Program], number: int) -> dict[str, float]:
        """One turn of the adversary; returns the cores that each of its programs and each server took."""
        task, beside = site.task(self._turn_s, 2 + number, site.run.rate), {**attackers, LIARS: site.liars}
        pids = {name: program.process.pid for name, program in beside.items()}
        pids |= {server.name: server.process.pid for server in site.servers}
        used, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
        for program in attackers.values():
            program.begin(task)
        site.turn(task, beside)
        seconds = time.monotonic() - began
        cores = {name: (cpu_seconds(pid) - used[name]) / seconds for name, pid in pids.items()}
        for name, program in attackers.items():
            self._did[name].append(program.says(GRACE))
        site.rest()
        return cores

    def _burn(
        self, site: Site, burners: Mapping[str, Program], cores: Mapping[str, float], number: int
    ) -> None:
        """One turn beside as much CPU time."""
        for name, program in burners.items():
            program.begin(site.task(self._turn_s, 0, cores[name]))
        task = site.task(self._turn_s, 2 + number, site.run.rate)
        site.turn(task, {f"as {name}": program for name, program in burners.items()} | {LIARS: site.liars})
        for program in burners.values():
            program.says(GRACE)
        site.rest()

    @contextmanager
    def _site(self, name: str) -> Iterator[Site]:
        """New servers and liars; afterwards what the servers wrote is in the run."""
        with ExitStack() as stack:
            liars = self._program(stack, LIARS, name)
            with open_site(self._folder / name, self._model, liars.said) as servers:
                site = Site(servers, liars, self._program(stack, "honest", name, nice=0))
                yield site
            site.run.logs = {server.name: server.log.read_text(errors="replace") for server in servers}

    def _program(self, stack: ExitStack, name: str, of: str = "", nice: int = 19) -> Program:
        number = len(list(self._folder.glob("*.log")))
        return stack.enter_context(started(name, self._folder / f"{number}-{name}{of}.log", nice))


@contextmanager
def before_others() -> Iterator[None]:
    """Have all of it come ADVERSARY_FIRST steps of niceness before what else runs on the machine, which takes root.

    Linux shares a machine among sessions first and by niceness only within each, so that it is the niceness of the
    session that counts; the adversary stays as nice beside the servers and the honest.
    """
    first, session = int(os.environ.get("ADVERSARY_FIRST", "0")), Path("/proc/self/autogroup")
    if not first:
        yield
        return
    before = session.read_text().split()[-1]
    session.write_text(str(-first))
    try:
        yield
    finally:
        session.write_text(before)


def duration() -> float:
    """Seconds of honest load at each site: five minutes, or ADVERSARY_SECONDS."""
    return float(os.environ.get("ADVERSARY_SECONDS", "300"))
