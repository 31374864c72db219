"""Calibrations of decisions, each a tenant's own: in an SQLite file, where one is configured, else in memory."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from weighbridge.server.decisions.calibration import Calibration
from weighbridge.state.database import DatabaseSchema, as_state_error, open_database, transaction
from weighbridge.state.schema import unchanged

#: Calibrations of one tenant, and in all; the oldest make room. Each takes 10 KB at the most.
MOST_OF_TENANT, MOST = 64, 4_096
WAIT_SECONDS = 5.0

_FIRST = """
CREATE TABLE calibrations (
    tenant TEXT NOT NULL, model TEXT NOT NULL, name TEXT NOT NULL, made REAL NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (tenant, model, name)
) WITHOUT ROWID
"""
CALIBRATIONS = DatabaseSchema(
    "file of calibrations", (unchanged,), 0x57424443, _FIRST, frozenset({"calibrations"})
)


@dataclass(frozen=True, slots=True)
class KeptCalibration:
    """A calibration with what it is for: questions of a name, to a model as the client calls it."""

    model: str
    name: str
    made: float  # Unix seconds
    calibration: Calibration


class CalibrationsKept:
    """Opened at its first use. Any thread may use it. Raises StateError where the file cannot be used, and BadInput
    where it cannot be opened."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None
        self._empty = path is None  # nothing was ever put in

    def put(self, tenant: str, model: str, name: str, calibration: Calibration) -> KeptCalibration:
        made = time.time()
        row = (tenant, model, name, made, msgspec.json.encode(calibration))
        with self._lock, as_state_error(CALIBRATIONS.name, self._path):
            with transaction(self._db()) as db:
                db.execute("INSERT OR REPLACE INTO calibrations VALUES (?, ?, ?, ?, ?)", row)
                _make_room(db, "tenant = ?", (tenant,), MOST_OF_TENANT)
                _make_room(db, "1 = 1", (), MOST)
            self._empty = False
        return KeptCalibration(model, name, made, calibration)

    def find(self, tenant: str, model: str, names: Sequence[str]) -> dict[str, Calibration]:
        """Those for questions of these names."""
        wanted = set(names)
        found = {} if self._empty or not wanted else {one.name: one for one in self.of(tenant, model)}
        return {name: one.calibration for name, one in found.items() if name in wanted}

    def of(self, tenant: str, model: str | None = None) -> list[KeptCalibration]:
        """All of a tenant, the newest first; those for one model, where it is named."""
        with self._lock, as_state_error(CALIBRATIONS.name, self._path):
            rows = self._db().execute(
                "SELECT model, name, made, body FROM calibrations WHERE tenant = ?1 AND (?2 IS NULL OR model = ?2) "
                "ORDER BY made DESC",
                (tenant, model),
            )
            return [
                KeptCalibration(name, title, made, msgspec.json.decode(body, type=Calibration))
                for name, title, made, body in rows
            ]

    def remove(self, tenant: str, model: str, name: str) -> bool:
        with self._lock, as_state_error(CALIBRATIONS.name, self._path), transaction(self._db()) as db:
            where = "tenant = ? AND model = ? AND name = ?"
            return db.execute(f"DELETE FROM calibrations WHERE {where}", (tenant, model, name)).rowcount > 0

    def _db(self) -> sqlite3.Connection:
        if self._opened is None:
            self._opened = open_database(
                self._path, CALIBRATIONS, wait_s=WAIT_SECONDS, durable=True, private=True
            )
        return self._opened


def _make_room(db: sqlite3.Connection, where: str, values: tuple[str, ...], most: int) -> None:
    db.execute(
        "DELETE FROM calibrations WHERE (tenant, model, name) IN (SELECT tenant, model, name FROM calibrations "
        f"WHERE {where} ORDER BY made DESC LIMIT -1 OFFSET {most})",
        values,
    )
