"""A replica in a process of its own on this machine: started, watched, started again, ended with us."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from weighbridge.fleet.api import Answer, Call, Report
from weighbridge.fleet.config.command import all_filled, filled
from weighbridge.fleet.replica import Failure, ReplicaError
from weighbridge.fleet.replicas import keeper
from weighbridge.fleet.replicas.http import HttpEndpoint, HttpReplica

log = logging.getLogger("weighbridge.fleet")

#: A process that lived so long had started well; its next start is not delayed.
STARTED_WELL = 60.0
LONGEST_PAUSE = 30.0
#: Where the keys of our own clients and operator may stand.
OUR_KEYS = ("WEIGHBRIDGE_API_KEYS", "WEIGHBRIDGE_ADMIN_KEY")
#: Seconds that a keeper may need beyond what the program has.
KEEPER_NEEDS = 5.0
#: Exit code of bad input: starting again would not help.
BAD_INPUT = 2
#: What our own commands write in front of the reason for which they end, and how much of it is told.
_REASON, _LONGEST_REASON = "error: ", 300
#: Bytes of its output in which the reason is looked for, and seconds in which the rest of it comes once it has ended.
_TAIL, _REST_WITHIN = 4096, 1.0


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, with places for where it is to listen; the cores it may use, seconds it has to finish when ended,
    and whether it is started again when it ends by itself; otherwise what it says on its end is told with its end.

    `is_ours`: it ends as it should when it is told to; of any other program, whatever it started is ended too.
    """

    command: tuple[str, ...]
    cores: frozenset[int] | None = None
    drain: float = 30.0
    again: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    is_ours: bool = True


class ProcessReplica:
    """Runs a program and speaks to it over loopback; `endpoint` makes the address for a port."""

    def __init__(
        self,
        name: str,
        program: Program,
        endpoint: Callable[[str], HttpEndpoint],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._program = program
        self._endpoint = endpoint
        self._clock = clock
        self._http: HttpReplica | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ended = ""  # why it does not run now
        self._output: asyncio.Task[str] | None = None  # reads what it says, and returns why it ended
        self._over = asyncio.Event()  # it has ended by itself, and is not started again
        self.starts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def open(self, call: Call) -> Answer:
        return await self._running().open(call)

    async def probe(self) -> Report:
        """Ask for its health; the first time, start the process."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        return await self._running().probe()

    async def ended(self) -> str:
        """Wait until it has ended by itself for good, and say why."""
        await self._over.wait()
        return self._ended

    async def close(self) -> None:
        """End the process: SIGTERM, time to drain, then SIGKILL."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            beyond = 0.0 if self._program.is_ours else KEEPER_NEEDS
            try:
                async with asyncio.timeout(self._program.drain + beyond):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._output is not None:
            await asyncio.wait((self._output,), timeout=_REST_WITHIN)
            self._output.cancel()
        if self._http is not None:
            await self._http.close()

    def _running(self) -> HttpReplica:
        if self._http is None or self.pid is None:
            why = self._ended or "its process is starting"
            raise ReplicaError(self.name, Failure.CONNECT, why)
        return self._http

    async def _keep(self) -> None:
        """Start it again whenever it ends, after a pause that doubles while it keeps ending early."""
        pause = 0.0
        while True:
            began = self._clock()
            code = await self._run()
            lived = self._clock() - began
            if code is not None and not self._program.again:
                self._ended += await self._reason()
                self._over.set()
                return
            if code == BAD_INPUT:
                log.error(
                    "replica %s: %s; its output says why; it is not started again", self.name, self._ended
                )
                self._over.set()
                return
            pause = 0.5 if lived > STARTED_WELL else min(max(2 * pause, 0.5), LONGEST_PAUSE)
            log.warning("replica %s: %s; starting it again in %.1f s", self.name, self._ended, pause)
            await asyncio.sleep(pause)

    async def _run(self) -> int | None:
        """Run it to its end, and return its code; None where it cannot be started now."""
        began = self._clock()
        try:
            await self._start()
        # Too many processes or files, too little memory, or words that none can be told.
        except (OSError, ValueError) as error:
            self._ended = f"its process cannot be started: {error}"
            return None
        assert self._process is not None
        code = await self._process.wait()
        self._ended = f"its process {_how_it_ended(code)} after {self._clock() - began:.1f} s"
        return code

    async def _reason(self) -> str:
        """What it said of its end, behind a colon; nothing where it said nothing."""
        if self._output is None:
            return ""
        done, _ = await asyncio.wait((self._output,), timeout=_REST_WITHIN)
        said = self._output.result() if done else ""
        return f": {said}" if said else ""

    async def _start(self) -> None:
        program, port = self._program, free_port()
        values = {"host": "127.0.0.1", "port": str(port), "python": sys.executable}
        cores = ",".join(map(str, sorted(program.cores))) if program.cores else "-"
        if program.is_ours:
            around = ["-m", "weighbridge.fleet.replicas.child", str(os.getpid()), cores, "--"]
        else:
            around = [keeper.__file__, cores, str(program.drain), "--"]
        command = [sys.executable, *around, *all_filled(program.command, values)]
        env = {name: filled(value, values) for name, value in program.env.items()}
        if self._http is not None:
            await self._http.close()
        self._http = HttpReplica(self.name, self._endpoint(f"http://127.0.0.1:{port}"), self._clock)
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL if program.is_ours else asyncio.subprocess.PIPE,
            stderr=None if program.again else asyncio.subprocess.PIPE,
            env={**own_environment(), **env},
            start_new_session=True,  # Ctrl-C is for the gateway; it ends its replicas after draining
        )
        if self._process.stderr is not None:
            self._output = asyncio.create_task(_passed_on(self._process.stderr))
        self.starts += 1


async def _passed_on(output: asyncio.StreamReader) -> str:
    """Write what a process says to our own error output, to its end; return the reason that it gave last."""
    tail = b""
    while chunk := await output.read(1 << 16):
        with contextlib.suppress(OSError):  # ours may be closed
            os.write(2, chunk)
        tail = (tail + chunk)[-_TAIL:]
    lines = tail.decode(errors="replace").splitlines()
    said = next((one for one in reversed(lines) if one.startswith(_REASON)), "")
    return said.removeprefix(_REASON).strip()[:_LONGEST_REASON]


def share_cores(replicas: int, cores: Sequence[int]) -> list[frozenset[int]]:
    """Neighbouring cores for each replica, as even as can be; with more replicas than cores they take turns."""
    if replicas >= len(cores):
        return [frozenset({cores[index % len(cores)]}) for index in range(replicas)]
    each, more = divmod(len(cores), replicas)
    shares, start = [], 0
    for index in range(replicas):
        size = each + (index < more)
        shares.append(frozenset(cores[start : start + size]))
        start += size
    return shares


def own_cores() -> list[int]:
    """The cores this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def own_environment() -> dict[str, str]:
    """Return our environment without the keys of our clients and operator: a replica listens on loopback and is asked
    by us alone."""
    return {name: value for name, value in os.environ.items() if name not in OUR_KEYS}


def free_port() -> int:
    """A port nobody listens on now. Another program may take it first; then the start is repeated."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _how_it_ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
