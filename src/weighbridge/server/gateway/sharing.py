"""A gateway's change log and its peers: what others changed is written down here too, for a restart."""

from __future__ import annotations

import asyncio
import time

from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.peers.membership import is_shared
from weighbridge.fleet.peers.peers import Peers
from weighbridge.fleet.peers.records import MemberRecord, Rest
from weighbridge.server.elsewhere.store import StreamStore
from weighbridge.server.gateway.changes import ChangeLog, FleetAct, FleetChange
from weighbridge.wire.keys import digest_of

_ACTS = {Rest.HERE: FleetAct.UNDRAIN, Rest.DRAINING: FleetAct.DRAIN, Rest.REMOVED: FleetAct.REMOVE}


def shared_with(gateway: Gateway, changes: ChangeLog) -> Peers | None:
    """The peers of a gateway; None where nothing but limits is shared. Raises BadInput where the extra is missing."""
    spec = gateway.spec
    if spec.peers is None or spec.admin_key is None:
        return None

    async def heard(record: MemberRecord, done: str) -> None:
        is_new = record.rest is not Rest.REMOVED and record.entry is not None
        acts = [FleetAct.ADD] if is_new and record.name not in changes.standing.added else []
        if not acts or record.rest is Rest.DRAINING:
            acts.append(_ACTS[record.rest])
        for act in acts:
            entry = record.entry if act is FleetAct.ADD else None
            change = FleetChange(time.time(), record.by, act, record.name, record.model, None, done, entry)
            await asyncio.to_thread(changes.write_heard, [change])

    return Peers(gateway, spec.peers, digest_of(spec.admin_key), heard)


def streams_of(spec: FleetSpec, peers: Peers | None) -> StreamStore | None:
    """Where streams are kept that other gateways can go on with; None where none are."""
    shared = spec.peers
    if shared is None or peers is None or not shared.streams or spec.admin_key is None:
        return None
    key = digest_of(spec.admin_key)
    return StreamStore(shared.redis, shared.prefix, peers.me, key, shared.streams, peers.is_gone)


def seeds_of(gateway: Gateway, changes: ChangeLog) -> list[MemberRecord]:
    """What the change log comes to, as the oldest of records: whatever others know of the same replicas is newer."""
    standing, now = changes.standing, time.time()
    pools = {name: pool for pool in gateway.pools.values() for name in pool.members}
    found = []
    for name in {*standing.added, *standing.draining} & pools.keys():
        if not is_shared(pools[name].members[name].spec):
            continue
        _, entry = standing.added.get(name, ("", None))
        rest = Rest.DRAINING if name in standing.draining else Rest.HERE
        found.append(
            MemberRecord(
                name=name,
                model=pools[name].spec.name,
                rest=rest,
                version=1,
                at=now,
                by="the change log",
                entry=None if entry is None else {**entry, "name": name},
            )
        )
    return found
