"""Constraints are compiled once where that may fail: in a process that can be ended.

Some schemas, patterns and grammars of a kilobyte compile for hours or take all memory (an intersection of forty
patterns, four hundred `patternProperties`), and nothing interrupts a compiler inside our own process. So each is tried
in a fork of a process that holds the vocabulary, bounded in CPU seconds and bytes. What comes through costs the server
itself no more than it did there.
"""

from __future__ import annotations

import os
import resource
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

import msgspec
from llguidance import LLMatcher, LLTokenizer

from weighbridge.engine.guidance.grammar import LIMITS, grammar_of, unusable
from weighbridge.engine.request import Guide
from weighbridge.errors import BadInput, Refused

#: CPU seconds that one constraint may take to compile.
CPU_SECONDS = 2.0
#: Bytes that a compiler may allocate beyond the vocabulary.
MAX_BYTES = 512 << 20
#: Seconds after which the process itself is given up: what it tries ends long before, unless the machine stands still.
PATIENCE = 60.0

_LENGTH = struct.Struct("!I")


class Vocabulary(msgspec.Struct, frozen=True):
    """What a tokenizer for constraints is made of."""

    tokenizer: str  # the JSON of a `tokenizers.Tokenizer`
    size: int
    eos_token_ids: list[int]

    def load(self) -> LLTokenizer:
        """Return the prepared vocabulary; takes about 10 us a token, and holds the interpreter meanwhile."""
        return LLTokenizer(self.tokenizer, n_vocab=self.size, eos_token=self.eos_token_ids)


class Tried(msgspec.Struct, frozen=True):
    """What a trial told: an error, or the bytes that the constraint takes once it is compiled."""

    error: str = ""
    size: int = 0


@dataclass(slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    asked: IO[bytes]
    told: IO[bytes]


class Trial:
    """The parent's end. `run` tries one constraint at a time; the process starts with the first one."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], *, cpu_seconds: float = CPU_SECONDS) -> None:
        self._vocabulary = vocabulary
        self._cpu_seconds = cpu_seconds
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def run(self, guide: Guide) -> Tried:
        """Return what compiling `guide` takes. Raises BadInput for what cannot be used or takes too much."""
        with self._lock:
            try:
                process = self._process or self._start()
                _write(process.asked, msgspec.json.encode((guide.kind, guide.source, self._cpu_seconds)))
                tried = msgspec.json.decode(_read(process.told, PATIENCE), type=Tried)
            except (OSError, EOFError, TimeoutError) as error:
                self._end()
                message = f"constraints cannot be tried at the moment ({error}); try again"
                raise Refused(message, retry_after=1.0) from error
        if tried.error:
            raise unusable(guide, tried.error)
        return tried

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _start(self) -> _Process:
        popen = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is the server's; and what it forks ends with it
        )
        assert popen.stdin is not None
        assert popen.stdout is not None
        process = self._process = _Process(popen, popen.stdin, popen.stdout)
        _write(process.asked, msgspec.json.encode(self._vocabulary()))
        _read(process.told, PATIENCE)
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


def serve(asked: IO[bytes], told: IO[bytes]) -> None:
    """Read the vocabulary, then try what is asked until the other end goes away."""
    tokenizer = msgspec.json.decode(_read(asked), type=Vocabulary).load()
    _write(told, b"ready")
    while True:
        try:
            kind, source, cpu_seconds = msgspec.json.decode(_read(asked), type=tuple[str, str, float])
        except EOFError:
            return
        _write(told, msgspec.json.encode(_in_a_fork(tokenizer, Guide(kind, source), cpu_seconds)))


def _in_a_fork(tokenizer: LLTokenizer, guide: Guide, cpu_seconds: float) -> Tried:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            _bound(cpu_seconds)
            os.write(writer, msgspec.json.encode(_attempt(tokenizer, guide)))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if answer:
        return msgspec.json.decode(answer, type=Tried)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return Tried(f"compiling it takes more than {cpu_seconds:g} s; make it smaller or simpler")
    return Tried(f"compiling it takes more than {MAX_BYTES >> 20} MiB; make it smaller or simpler")


def _bound(cpu_seconds: float) -> None:
    """End this process by a signal once it has used its time, and let it allocate no more than it may."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # an allocator that gives up says so
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES + _data_bytes(),) * 2)


def _attempt(tokenizer: LLTokenizer, guide: Guide) -> Tried:
    before = _data_bytes()
    try:
        matcher = LLMatcher(tokenizer, grammar_of(guide), log_level=0, limits=LIMITS)
    except BadInput as error:
        return Tried(str(error))
    if not matcher.is_error():
        _step(matcher)
    if matcher.is_error():
        return Tried(str(matcher.get_error())[:500] or "it allows nothing")
    return Tried(size=max(_data_bytes() - before, 0))


def _step(matcher: LLMatcher) -> None:
    """Find what may come first, and go over the first such token: some grammars compile and fail then."""
    allowed = int.from_bytes(matcher.compute_bitmask(), "little")
    if allowed and not matcher.is_stopped():
        matcher.consume_token((allowed & -allowed).bit_length() - 1)


def _data_bytes() -> int:
    """Bytes of private memory that this process has mapped; 0 where the system does not tell."""
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


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
