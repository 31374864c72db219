"""What an operator changed while the gateway ran: written down before it is done, told to who asks, done again after a
restart.

The file is a log that only grows: a line a change, with who, when, from and to. What holds is what the lines come to.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request

from weighbridge.errors import BadInput, Refused, WeighbridgeError
from weighbridge.fleet.config.difference import expanded
from weighbridge.fleet.config.replica import replica_from_json
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.server.gateway.tenants import TenantAct, TenantChange, TenantStandings, read_change
from weighbridge.state.database import reason, sentence
from weighbridge.state.lines import read_lines
from weighbridge.state.schema import VERSION_KEY, DocumentSchema, unchanged
from weighbridge.wire.identity.callers import peer_of

log = logging.getLogger("weighbridge.fleet")

#: A change as a line of a file. Before version 2 there were changes of replicas alone; since version 3 those of tenants
#: have the version that they have among gateways.
CHANGES = DocumentSchema("change log", (unchanged, unchanged, unchanged))
#: Changes that can be told without reading the file.
MOST_TOLD = 1000
#: Fields of a replica's entry that may hold secrets, and what is written in their place.
_SECRET, _HIDDEN = ("key", "headers", "options"), "(not written down)"


class FleetAct(StrEnum):
    """What was done to a replica, or (`RELOAD`) to all of them."""

    ADD = "add"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    REMOVE = "remove"
    RELOAD = "reload"  # the configuration was read again; it says itself what holds


@dataclass(frozen=True, slots=True)
class FleetChange:
    """One change. `at`: epoch seconds. `before`, `after`: what is so of the replica; None: it is not there.

    `entry`: that of a replica which was added, as it was asked for, to be added again; None where secrets are in it.
    """

    at: float
    changed_by: str
    act: FleetAct
    replica: str
    model: str
    before: str | None
    after: str | None
    entry: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """For people."""
        return asdict(self)


Change = FleetChange | TenantChange


class NotWritten(Refused):
    """A change could not be written down, so it was not made."""

    code = "change_not_written"


class ChangeLog:
    """The changes of a gateway, in a file where there is one. Writing blocks until the disk has it."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises BadInput where the file cannot be read or written."""
        self.path = path
        self._latest: deque[Change] = deque(maxlen=MOST_TOLD)
        self.standing = Standings()
        self.tenants = TenantStandings()
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise BadInput(sentence(error, f"{CHANGES.name} file", path)) from error
        for change in read_changes(path):
            self._take(change)

    def latest(self, count: int) -> list[Change]:
        """The newest first."""
        return list(islice(reversed(self._latest), count))

    def write(self, change: Change) -> None:
        """Write a change down, for good. Raises NotWritten where the disk does not take it."""
        try:
            self._append([change])
        except OSError as error:
            message = f"nothing was changed, as {self.path} could not be written: {reason(error)}"
            raise NotWritten(message) from error
        self._take(change)

    def write_heard(self, changes: Sequence[Change]) -> None:
        """Write down what another gateway did. It holds here, whether the disk takes it or not."""
        try:
            self._append(changes)
        except OSError as error:
            why = reason(error)
            log.error("what another gateway changed holds, and is not written down in %s: %s", self.path, why)
        for change in changes:
            self._take(change)

    def _append(self, changes: Sequence[Change]) -> None:
        """Raises OSError; then nothing was written."""
        if self.path is None:
            return
        lines = [
            msgspec.json.encode({VERSION_KEY: CHANGES.version, **asdict(one)}) + b"\n" for one in changes
        ]
        _append(self.path, b"".join(lines))

    def _take(self, change: Change) -> None:
        self._latest.append(change)
        if isinstance(change, TenantChange):
            self.tenants.take(change)
        else:
            self.standing.take(change)


def _append(path: Path, lines: bytes) -> None:
    """Append whole lines or nothing, and wait for the disk."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # what a killed process left half written
        data = b"\n" + lines if torn else lines
        try:
            if os.write(file, data) < len(data):
                raise OSError("the disk took only a part of it; free some room")
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def read_changes(path: Path) -> list[Change]:
    """The changes of a file, the oldest first. Raises BadInput where it is none of ours."""
    found: list[Change] = []
    for line in read_lines(path, CHANGES):
        try:
            if line["act"] in list(TenantAct):
                found.append(read_change(line))
            else:
                found.append(msgspec.convert({**line, "act": FleetAct(line["act"])}, FleetChange))
        except (KeyError, ValueError, BadInput, msgspec.ValidationError) as error:
            raise BadInput(f"{path}: a line is no change of a fleet: {error}") from error
    return found


def entry_of(value: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """What may be written of an entry so that it can be added again, and its words. None: it has secrets."""
    shown = {name: _HIDDEN if name in _SECRET else one for name, one in value.items()}
    url = shown.get("url")
    if isinstance(url, str) and "@" in url:
        shown["url"] = _HIDDEN
    words = ", ".join(f"{name} {one}" for name, one in shown.items())
    return (None if _HIDDEN in shown.values() else dict(value)), words


@dataclass(slots=True)
class Standings:
    """What all changes come to. `added`: replicas that are there by an operator's word: their models and entries."""

    added: dict[str, tuple[str, dict[str, Any] | None]] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)

    def take(self, change: FleetChange) -> None:
        name = change.replica
        match change.act:
            case FleetAct.ADD:
                self.added[name] = change.model, change.entry
                self.removed.discard(name)
                self.draining.discard(name)
            case FleetAct.DRAIN:
                self.draining.add(name)
            case FleetAct.UNDRAIN:
                self.draining.discard(name)
            case FleetAct.REMOVE:
                self.draining.discard(name)
                if self.added.pop(name, None) is None:
                    self.removed.add(name)


def made_again(gateway: Gateway, standing: Standings) -> list[str]:
    """Do again what was changed before a restart. Where the configuration names the same replica it holds, but for a
    rest that was asked for. Return sentences on what was done and what was not."""
    said = []
    for name, (model, entry) in standing.added.items():
        said.append(_added_again(gateway, name, model, entry))
    there = {name: pool for pool in gateway.pools.values() for name in pool.members}
    for name in sorted(standing.draining & there.keys()):
        there[name].drain(name)
        said.append(f"replica {name} is draining, as an operator had asked")
    for name in sorted(standing.removed & there.keys()):
        said += [f"replica {name} had been removed, but the configuration names it: it is there again"]
    return said


def _added_again(gateway: Gateway, name: str, model: str, entry: dict[str, Any] | None) -> str:
    if any(name in pool.members for pool in gateway.pools.values()):
        return f"replica {name} had been added, and the configuration names it now: the configuration holds"
    if entry is None:
        return f"replica {name} had been added with a secret, which is not written down: add it again"
    try:
        spec = next(one for one in specs_of(entry, name) if one.name == name)
        gateway.pool(model).add(spec)
    except (WeighbridgeError, StopIteration) as error:
        return f"replica {name} had been added and cannot be added again: {error}"
    return f"replica {name} is there, as an operator had added it"


def specs_of(entry: Mapping[str, Any], name: str) -> Iterable[ReplicaSpec]:
    """The replicas that an entry stands for. Raises BadInput."""
    return expanded(replica_from_json({key: one for key, one in entry.items() if key != "for"}, name))


def operator_of(request: Request) -> str:
    """Who asked for a change, as the log says it: whoever has the operator's key, and from where."""
    return f"operator at {peer_of(request.scope).address or 'an unknown address'}"
