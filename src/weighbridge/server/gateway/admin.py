"""Replicas come and go while the gateway runs: `/admin/replicas`, behind a key of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from weighbridge.errors import BadInput
from weighbridge.fleet.config.difference import expanded
from weighbridge.fleet.config.replica import replica_from_json
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.peers.membership import is_shared
from weighbridge.fleet.peers.peers import Peers
from weighbridge.fleet.peers.records import Rest
from weighbridge.fleet.pool import Pool
from weighbridge.server.endpoint import json_response
from weighbridge.server.gateway.changes import (
    MOST_TOLD,
    ChangeLog,
    FleetAct,
    FleetChange,
    NotWritten,
    entry_of,
    operator_of,
)
from weighbridge.server.gateway.reload import Reloading
from weighbridge.wire.body import decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.keys import Keys

#: What is so of a replica behind each act of an operator.
_RESTS = {
    FleetAct.ADD: Rest.HERE,
    FleetAct.UNDRAIN: Rest.HERE,
    FleetAct.DRAIN: Rest.DRAINING,
    FleetAct.REMOVE: Rest.REMOVED,
}


class Admin:
    """`peers`: the other gateways that hear of every change; None: there are none."""

    def __init__(
        self,
        gateway: Gateway,
        keys: Keys,
        changes: ChangeLog,
        peers: Peers | None = None,
        reloading: Reloading | None = None,
    ) -> None:
        self._gateway = gateway
        self._keys = keys
        self._changes = changes
        self._reloading = reloading
        self._peers = peers if peers is not None and peers.members is not None else None
        self._added = 0
        self._writing = asyncio.Lock()

    async def replicas(self, request: Request) -> Response:
        self._check(request)
        load = self._gateway.load()
        data = [
            {"model": model, **replica}
            for model, pool in load["models"].items()
            for replica in pool["replicas"]
        ]
        return json_response({"object": "list", "data": data})

    async def add(self, request: Request) -> Response:
        """The body is an entry as in the configuration, with the `model` it serves as `for` (or, with one model,
        nothing)."""
        self._check(request)
        body = await read_body(request.receive, headers_of(request.headers.raw), 1 << 20)
        value = decode(body, dict[str, Any])
        pool = self._gateway.pool(str(value.pop("for", "")))
        _check_stays(pool)
        specs = expanded(replica_from_json(value, self._new_name(pool)))
        self._check_free([one.name for one in specs])
        entry, words = entry_of(value)
        members = []
        for one in specs:
            shared = None if entry is None else {**entry, "name": one.name}
            async with self._told(request, FleetAct.ADD, one, pool, shared, is_secret=entry is None):
                await self._note(request, FleetAct.ADD, one.name, pool, None, words, entry)
                members.append(pool.add(one))
        now = pool.clock()
        return json_response({"object": "list", "data": [member.as_dict(now) for member in members]}, 201)

    async def drain(self, request: Request) -> Response:
        pool, name = self._named(request)
        async with self._told(request, FleetAct.DRAIN, pool.members[name].spec, pool):
            await self._note(request, FleetAct.DRAIN, name, pool, _rest(pool, name), "draining")
            return json_response(pool.drain(name).as_dict(pool.clock()))

    async def undrain(self, request: Request) -> Response:
        pool, name = self._named(request)
        async with self._told(request, FleetAct.UNDRAIN, pool.members[name].spec, pool):
            await self._note(request, FleetAct.UNDRAIN, name, pool, _rest(pool, name), "takes requests")
            return json_response(pool.undrain(name).as_dict(pool.clock()))

    async def reload(self, request: Request) -> Response:
        """Read the configuration again."""
        self._check(request)
        if self._reloading is None:
            raise ApiError(
                400, "this gateway has no file to read again, or loads its models on demand; start it anew"
            )
        return json_response(await self._reloading.reload(operator_of(request)))

    async def changes(self, request: Request) -> Response:
        """What was changed, the newest first."""
        self._check(request)
        limit = request.query_params.get("limit", "100")
        if not (limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= MOST_TOLD):
            raise ApiError(400, f"limit: must be a number from 1 to {MOST_TOLD}", param="limit")
        data = [one.told() for one in self._changes.latest(int(limit))]
        file = None if self._changes.path is None else str(self._changes.path)
        return json_response({"object": "list", "file": file, "data": data})

    async def remove(self, request: Request) -> Response:
        """Waits for what runs there, at most `timeout` seconds (30)."""
        pool, name = self._named(request)
        given = request.query_params.get("timeout", "30")
        try:
            timeout = float(given)
        except ValueError:
            timeout = -1.0
        if not 0.0 <= timeout <= 3600.0:
            raise ApiError(400, f"timeout: {given!r} must be seconds from 0 to 3600", param="timeout")
        async with self._told(request, FleetAct.REMOVE, pool.members[name].spec, pool):
            await self._note(request, FleetAct.REMOVE, name, pool, _rest(pool, name), None)
            drained = await pool.remove(name, timeout)
        answer: dict[str, Any] = {"removed": name, "drained": drained}
        return json_response(answer)

    async def _note(
        self,
        request: Request,
        act: FleetAct,
        name: str,
        pool: Pool,
        before: str | None,
        after: str | None,
        entry: dict[str, Any] | None = None,
    ) -> None:
        """Write a change down before it is made. Raises NotWritten."""
        change = FleetChange(
            time.time(), operator_of(request), act, name, pool.spec.name, before, after, entry
        )
        async with self._writing:
            await asyncio.to_thread(self._changes.write, change)
        if name not in pool.members and act is not FleetAct.ADD:  # somebody else was quicker
            raise ApiError(404, f"the replica {name!r} is gone", code="replica_not_found", param="replica")

    @asynccontextmanager
    async def _told(
        self,
        request: Request,
        act: FleetAct,
        spec: ReplicaSpec,
        pool: Pool,
        entry: dict[str, Any] | None = None,
        *,
        is_secret: bool = False,
    ) -> AsyncIterator[None]:
        """Tell the other gateways of a change that is made inside, and take it back where it cannot be written down.

        Raises Contested where somebody was quicker there.
        """
        if self._peers is None or self._peers.members is None or not is_shared(spec):
            yield
            return
        peers, who = self._peers, operator_of(request)
        known = self._peers.members.roster.get(spec.name)
        before = known.rest if known is not None else Rest.REMOVED if act is FleetAct.ADD else Rest.HERE
        with self._peers.members.changing(spec.name):
            await peers.change(_RESTS[act], spec.name, pool.spec.name, who, entry, is_secret=is_secret)
            try:
                yield
            except NotWritten:
                await peers.change(before, spec.name, pool.spec.name, f"{who}, not written down")
                raise

    def _new_name(self, pool: Pool) -> str:
        """A name that nobody has or had lately, here or at another gateway."""
        apart = "" if self._peers is None else f"{self._peers.me[-4:]}-"
        while True:
            self._added += 1
            name = f"{pool.spec.name}-added-{apart}{self._added}"
            if name not in pool.members:
                return name

    def _check(self, request: Request) -> None:
        self._keys.check_admin(headers_of(request.headers.raw))

    def _named(self, request: Request) -> tuple[Pool, str]:
        self._check(request)
        name = request.path_params["replica"]
        try:
            pool, _ = self._gateway.member(name)
        except BadInput as error:
            raise ApiError(404, str(error), code="replica_not_found", param="replica") from error
        _check_stays(pool)
        return pool, name

    def _check_free(self, names: list[str]) -> None:
        taken = {name for pool in self._gateway.pools.values() for name in pool.members}
        for name in names:
            if name in taken:
                raise ApiError(
                    409, f"a replica called {name!r} is there already; choose another name", param="name"
                )


def _check_stays(pool: Pool) -> None:
    """Refuse to change the replicas of a model whose replicas come and go by themselves."""
    if pool.on_demand is not None:
        message = (
            f"{pool.spec.name!r} is loaded on demand; POST /v1/models/load and /v1/models/unload change that"
        )
        raise ApiError(409, message, code="on_demand", param="replica")


def _rest(pool: Pool, name: str) -> str:
    return "draining" if pool.members[name].draining else "takes requests"
