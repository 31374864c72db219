"""Replicas come and go while the gateway runs: `/admin/replicas`, behind a key of its own."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.errors import BadInput
from weighbridge.fleet.config.replica import replica_from_json
from weighbridge.fleet.gateway import Gateway, expanded
from weighbridge.fleet.pool import Pool
from weighbridge.server.endpoint import json_response
from weighbridge.wire.body import read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.keys import Keys


class Admin:
    def __init__(self, gateway: Gateway, keys: Keys) -> None:
        self._gateway = gateway
        self._keys = keys
        self._added = 0

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
        try:
            value = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise ApiError(400, f"the request body is not valid JSON: {error}") from error
        pool = self._gateway.pool(str(value.pop("for", "")) if isinstance(value, dict) else "")
        self._added += 1
        spec = replica_from_json(value, f"{pool.spec.name}-added-{self._added}")
        self._check_free([one.name for one in expanded(spec)])
        members = [pool.add(one) for one in expanded(spec)]
        now = pool.clock()
        return json_response({"object": "list", "data": [member.as_dict(now) for member in members]}, 201)

    async def drain(self, request: Request) -> Response:
        pool, name = self._named(request)
        return json_response(pool.drain(name).as_dict(pool.clock()))

    async def undrain(self, request: Request) -> Response:
        pool, name = self._named(request)
        return json_response(pool.undrain(name).as_dict(pool.clock()))

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
        drained = await pool.remove(name, timeout)
        answer: dict[str, Any] = {"removed": name, "drained": drained}
        return json_response(answer)

    def _check(self, request: Request) -> None:
        self._keys.check_admin(headers_of(request.headers.raw))

    def _named(self, request: Request) -> tuple[Pool, str]:
        self._check(request)
        name = request.path_params["replica"]
        try:
            pool, _ = self._gateway.member(name)
        except BadInput as error:
            raise ApiError(404, str(error), code="replica_not_found", param="replica") from error
        return pool, name

    def _check_free(self, names: list[str]) -> None:
        taken = {name for pool in self._gateway.pools.values() for name in pool.members}
        for name in names:
            if name in taken:
                raise ApiError(
                    409, f"a replica called {name!r} is there already; choose another name", param="name"
                )
