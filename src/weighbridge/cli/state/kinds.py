"""The kinds of files that Weighbridge writes: how each is recognised, checked, copied and migrated."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighbridge.engine.calibration import CALIBRATION
from weighbridge.errors import BadInput
from weighbridge.flow.journal.schema import JOURNAL
from weighbridge.routes.difficulty.trained import ROUTER
from weighbridge.routes.learn.shadow import SHADOW
from weighbridge.routes.ledger.books import LEDGER
from weighbridge.server.batch.store import BATCHES
from weighbridge.server.gateway.changes import CHANGES
from weighbridge.server.responses.file import RESPONSES
from weighbridge.state.database import (
    DatabaseSchema,
    StateError,
    as_state_error,
    connect,
    copy_database,
    damage,
    is_of,
    open_database,
    version_of,
)
from weighbridge.state.documents import replace_file
from weighbridge.state.lines import read_lines
from weighbridge.state.schema import DocumentSchema
from weighbridge.ticket import TICKETS

#: Seconds that a file is waited for which another process keeps locked.
WAIT_SECONDS = 5.0

_SQLITE = b"SQLite format 3\0"
#: A key of its objects tells what a file of JSON is.
_DOCUMENTS: dict[str, tuple[DocumentSchema, bool]] = {
    "prompt_hash": (TICKETS, True),
    "edge_quality": (SHADOW, True),
    "changed_by": (CHANGES, True),
    "step_cost": (CALIBRATION, False),
    "baseline": (ROUTER, False),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about a file. `problem` empty: it is well."""

    path: Path
    kind: str
    version: int
    current: int
    size: int  # bytes
    problem: str = ""
    note: str = ""

    @property
    def is_old(self) -> bool:
        return not self.problem and self.version < self.current


class StateFile(ABC):
    """A file of a known kind. Everything it does may be done while others use the file."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    @abstractmethod
    def check(self) -> Finding:
        """Read all of it. Raises BadInput or StateError where it cannot be read."""

    @abstractmethod
    def copy(self, target: Path) -> None:
        """Write it as it is at one moment to a file that does not exist. Raises StateError."""

    @abstractmethod
    def migrate(self) -> str:
        """Bring it to this version; return what was done, in words."""


class DatabaseFile(StateFile):
    """A ledger, a journal, a file of responses or one of batches."""

    def __init__(self, path: Path, schema: DatabaseSchema) -> None:
        super().__init__(path, schema.name)
        self._schema = schema

    def check(self) -> Finding:
        with (
            as_state_error(self.name, self.path),
            closing(connect(self.path, WAIT_SECONDS, read_only=True)) as connection,
        ):
            version = max(version_of(connection, self._schema, str(self.path)), 0)
            problem = damage(connection)
        size = sum(part.stat().st_size for part in (self.path, Path(f"{self.path}-wal")) if part.exists())
        told = f"it is damaged ({problem}); restore it from a backup" if problem else ""
        return Finding(self.path, self.name, version, self._schema.version, size, told)

    def copy(self, target: Path) -> None:
        with as_state_error(self.name, self.path):
            copy_database(self.path, target, wait_s=WAIT_SECONDS)
        with as_state_error(self.name, target), closing(connect(target, WAIT_SECONDS)) as connection:
            problem = damage(connection)
        if problem:
            raise StateError(
                f"the {self.name} {self.path} is damaged ({problem}), and so is its copy {target}"
            )

    def migrate(self) -> str:
        version = self.check().version
        if version == self._schema.version:
            return "nothing to do"
        kept = self.path.with_name(f"{self.path.name}.v{version}")
        if not kept.exists():
            self.copy(kept)
        open_database(self.path, self._schema, wait_s=WAIT_SECONDS, durable=True).close()
        return f"from version {version} to {self._schema.version}; what it was is in {kept.name}"


class LinesFile(StateFile):
    """Tickets or shadow evaluations: every line has its own version."""

    def __init__(self, path: Path, schema: DocumentSchema) -> None:
        super().__init__(path, schema.name)
        self._schema = schema

    def check(self) -> Finding:
        rows = sum(1 for _ in read_lines(self.path, self._schema))
        with as_state_error(self.name, self.path):
            first = next(_objects(self.path), {})
            size = self.path.stat().st_size
        version = first.get(self._schema.key, 0)
        found = Finding(self.path, self.name, version, self._schema.version, size, note=f"{rows} lines")
        return found

    def copy(self, target: Path) -> None:
        """Whole lines only: one that is being written now is left out."""
        with (
            as_state_error(self.name, self.path),
            self.path.open("rb") as source,
            target.open("xb") as copied,
        ):
            left = os.fstat(source.fileno()).st_size
            kept = 0
            while left > 0 and (block := source.read(min(1 << 20, left))):
                copied.write(block)
                left -= len(block)
                end = block.rfind(b"\n")
                kept = copied.tell() - len(block) + end + 1 if end >= 0 else kept
            copied.truncate(kept)
            copied.flush()
            os.fsync(copied.fileno())

    def migrate(self) -> str:
        self.check()
        return "nothing to do: lines are brought to this version when they are read"


class DocumentFile(StateFile):
    """A calibration or a router."""

    def __init__(self, path: Path, schema: DocumentSchema) -> None:
        super().__init__(path, schema.name)
        self._schema = schema

    def _read(self) -> dict[str, Any]:
        with as_state_error(self.name, self.path):
            return dict(next(_objects(self.path)))

    def check(self) -> Finding:
        content = self._read()
        version = self._schema.check(content.get(self._schema.key, 0), str(self.path))
        size = self.path.stat().st_size
        return Finding(self.path, self.name, version, self._schema.version, size)

    def copy(self, target: Path) -> None:
        with as_state_error(self.name, self.path):
            replace_file(target, self.path.read_bytes())

    def migrate(self) -> str:
        version = self.check().version
        if version == self._schema.version:
            return "nothing to do"
        content = self._schema.read(self._read(), str(self.path))
        with as_state_error(self.name, self.path):
            replace_file(self.path, json.dumps(self._schema.stamped(content)).encode())
        return f"from version {version} to {self._schema.version}"


def recognise(path: Path) -> StateFile:
    """Return a file as what it is. Raises BadInput where it is nothing that Weighbridge has written."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if head == _SQLITE:
        return _database(path)
    first = next(_objects(path), None)
    for key, (schema, is_lines) in _DOCUMENTS.items():
        if first is not None and key in first:
            make: Callable[[Path, DocumentSchema], StateFile] = LinesFile if is_lines else DocumentFile
            return make(path, schema)
    raise BadInput(f"{path} is nothing that Weighbridge has written, or it is damaged; leave it out")


def _database(path: Path) -> StateFile:
    with as_state_error("file", path), closing(connect(path, WAIT_SECONDS, read_only=True)) as connection:
        for schema in (LEDGER, JOURNAL, RESPONSES, BATCHES):
            if is_of(connection, schema):
                return DatabaseFile(path, schema)
    raise BadInput(f"{path} is an SQLite file of something else; leave it out")


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects at the beginning of lines, the torn ones left out."""
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value
