"""A process that answers each question in a fork of itself, which may take so much time and memory and no more.

For work that nothing interrupts inside our own process: compilers of constraints, regular expressions of a model's
file. What takes long to prepare, such as a vocabulary, the process prepares once, and its forks share it.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

#: Seconds after which the process itself is given up: a fork ends long before, unless the machine stands still.
PATIENCE = 60.0

_LENGTH = struct.Struct("!I")
#: In front of a question: the CPU seconds and bytes that its fork may take.
_BOUNDS = struct.Struct("!dQ")
_ANSWERED, _OUT_OF_TIME, _OUT_OF_MEMORY = b"a", b"t", b"m"
#: Of a fork that was given its bounds in CPU seconds, how many times as many by the clock on a busy machine.
_BUSY = 20.0

Answer = Callable[[bytes], bytes]


class OutOfTime(Exception):
    """The answer takes more CPU seconds than it may."""


class OutOfMemory(Exception):
    """The answer takes more bytes than it may, or its fork died otherwise."""


@dataclass(slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    asked: IO[bytes]
    told: IO[bytes]


class ForkingProcess:
    """The parent's end, which asks one question at a time. The process starts with the first one."""

    def __init__(self, module: str, given: Callable[[], bytes], *, patience: float = PATIENCE) -> None:
        """`module`: what the process runs, which calls `serve`; `given`: what it prepares itself from."""
        self._module = module
        self._given = given
        self._patience = patience
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def ask(self, question: bytes, *, cpu_seconds: float, max_bytes: int) -> bytes:
        """Return the answer. Raises OutOfTime and OutOfMemory; and OSError, EOFError or TimeoutError where the process
        itself fails: then it is ended, and the next question starts another one."""
        with self._lock:
            try:
                process = self._process or self._start()
                _write(process.asked, _BOUNDS.pack(cpu_seconds, max_bytes) + question)
                told = _read(process.told, self._patience + _BUSY * cpu_seconds)
            except (OSError, EOFError, TimeoutError):
                self._end()
                raise
        if told[:1] == _OUT_OF_TIME:
            raise OutOfTime
        if told[:1] == _OUT_OF_MEMORY:
            raise OutOfMemory
        return told[1:]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _start(self) -> _Process:
        popen = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is the server's; and what it forks ends with it
        )
        assert popen.stdin is not None
        assert popen.stdout is not None
        process = self._process = _Process(popen, popen.stdin, popen.stdout)
        _write(process.asked, self._given())
        _read(process.told, self._patience)
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        for pipe in (process.asked, process.told):
            with suppress(OSError):
                pipe.close()
        process.popen.wait()


# -- the process itself -------------------------------------------------------------------------------------


def serve(prepare: Callable[[bytes], Answer]) -> None:
    """Prepare what is given, then answer what is asked until the other end goes away."""
    asked, told = sys.stdin.buffer, sys.stdout.buffer
    answer = prepare(_read(asked))
    _write(told, b"ready")
    while True:
        try:
            question = _read(asked)
        except EOFError:
            return
        seconds, most = _BOUNDS.unpack_from(question)
        _write(told, _in_a_fork(answer, question[_BOUNDS.size :], seconds, most))


def _in_a_fork(answer: Answer, question: bytes, cpu_seconds: float, max_bytes: int) -> bytes:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            _bound(cpu_seconds, max_bytes)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(_ANSWERED + answer(question))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return _OUT_OF_TIME if os.WTERMSIG(status) == signal.SIGPROF else _OUT_OF_MEMORY
    return told or _OUT_OF_MEMORY


def _bound(cpu_seconds: float, max_bytes: int) -> None:
    """End this process by a signal once it has used its time, and let it allocate no more than it may."""
    import resource  # not on Windows

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # an allocator that gives up says so
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes + data_bytes(),) * 2)


def data_bytes() -> int:
    """Bytes of private memory that this process has mapped; 0 where the system does not tell."""
    import resource  # not on Windows

    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


# -- frames -------------------------------------------------------------------------------------------------


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes], patience: float | None = None) -> bytes:
    """Return the next frame. Raises EOFError at the end, TimeoutError after `patience` seconds."""
    until = None if patience is None else time.monotonic() + patience
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size, until))
    return _exactly(pipe, length, until)


def _exactly(pipe: IO[bytes], count: int, until: float | None) -> bytes:
    parts: list[bytes] = []
    while count:
        if until is not None:
            poll = select.poll()  # `select.select` knows no file above 1,023
            poll.register(pipe, select.POLLIN)
            if not poll.poll(max(until - time.monotonic(), 0.0) * 1e3):
                raise TimeoutError("no answer came in time")
        part = os.read(pipe.fileno(), count)
        if not part:
            raise EOFError("the process ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
