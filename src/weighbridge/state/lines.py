"""Files of JSON objects, one a line, that several processes append to; they bear full disks and torn lines."""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from weighbridge.errors import BadInput
from weighbridge.state.database import reason, sentence
from weighbridge.state.schema import VERSION_KEY, DocumentSchema

log = logging.getLogger("weighbridge.state")

#: Bytes that wait for a disk; what comes beyond them is lost, and counted.
MAX_WAITING_BYTES = 16 << 20
#: Bytes of a file; then it is called `NAME.1`, and the one that was called so before goes.
MAX_FILE_BYTES = 1 << 30
#: Seconds and bytes for which lines are gathered before they are written: a thread that wakes for each takes turns with
#: the one that appends.
GATHER_SECONDS, GATHER_BYTES = 0.05, 1 << 20
#: Seconds that closing waits for a disk.
CLOSE_SECONDS = 5.0


class LineFile:
    """Appends objects on a thread of its own. A disk that fails costs lines and nothing else; `lost` counts them."""

    def __init__(self, path: Path, schema: DocumentSchema, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Raises BadInput where the file cannot be opened."""
        self.lost = 0
        self._path = path
        self._schema = schema
        self._max_bytes = max_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._closing = self._idle = False  # `idle`: the thread waits for a line
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise BadInput(sentence(error, f"{schema.name} file", path)) from error
        self._torn = _ends_torn(path)
        self._thread = threading.Thread(target=self._run, name=f"weighbridge-{schema.name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def append(self, content: Mapping[str, Any]) -> None:
        """Write an object soon. Never fails and never waits."""
        try:
            line = msgspec.json.encode({VERSION_KEY: self._schema.version, **content}) + b"\n"
        except (TypeError, ValueError) as error:
            self._lose(1, error)
            return
        with self._changed:
            if self._waiting_bytes + len(line) > MAX_WAITING_BYTES or self._closing:
                self._lose(1, OSError("the disk is too slow"))
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            if self._idle or self._waiting_bytes > GATHER_BYTES:
                self._idle = False
                self._changed.notify()

    def close(self) -> None:
        """Write what waits, for some seconds at most."""
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    # -- on the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._idle = True
                    self._changed.wait()
                self._idle = False
                if not self._closing:
                    self._changed.wait(GATHER_SECONDS)  # only closing wakes it now
                lines = list(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
            if not lines:
                break
            self._write(lines)
        os.close(self._file)

    def _write(self, lines: list[bytes]) -> None:
        try:
            self._follow()
        except OSError as error:
            self._lose(len(lines), error)
            return
        data = b"".join(lines)
        prefix = (
            b"\n" if self._torn else b""
        )  # ends what a full disk or a killed process has left half written
        try:
            written = max(os.write(self._file, prefix + data) - len(prefix), 0)
        except OSError as error:
            self._lose(len(lines), error)
            return
        self._torn = written < len(data) and not data[:written].endswith(b"\n")
        if written < len(data):
            self._lose(
                len(lines) - data[:written].count(b"\n"),
                OSError("the disk took only a part of it; free some room"),
            )

    def _follow(self) -> None:
        """Go on with another file where this one is full, or was moved away."""
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_size >= self._max_bytes:
            self._move_away(status.st_ino)
        try:
            is_here = os.stat(self._path).st_ino == status.st_ino
        except FileNotFoundError:
            is_here = False
        if not is_here:
            fresh = self._open()
            os.close(self._file)
            self._file, self._torn = fresh, False

    def _move_away(self, inode: int) -> None:
        """Of several processes one does it: the others find that the name leads elsewhere by then."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            if os.stat(self._path).st_ino != inode:
                return
            older = self._path.with_name(f"{self._path.name}.1")
            if older.exists():
                log.warning("%s is full: %d older bytes in %s go", self._path, older.stat().st_size, older)
            os.replace(self._path, older)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _lose(self, lines: int, error: Exception) -> None:
        if not self.lost:
            log.error(
                "a line could not be written to %s, nor may later ones be: %s", self._path, reason(error)
            )
        self.lost += lines


def _ends_torn(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_lines(path: Path, schema: DocumentSchema) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file as this version has them; lines that were torn are left out, and that is logged.

    Raises BadInput where the file cannot be read, or none of it is what it should be; NewerSchema for newer lines.
    """
    good, torn = 0, 0
    first_torn, why = 0, ""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    content = json.loads(line)
                    if not isinstance(content, dict):
                        raise ValueError("it is no object")
                except (ValueError, RecursionError) as error:  # RecursionError: nested without end
                    torn, first_torn, why = torn + 1, first_torn or number, why or str(error)
                    continue
                good += 1
                yield schema.read(content, f"{path}:{number}")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {reason(error)}") from error
    if torn and not good:
        raise BadInput(f"{path}:{first_torn}: this is no JSON: {why}")
    if torn:
        log.warning("%s: %d lines were left out, the first of them line %d: %s", path, torn, first_torn, why)
