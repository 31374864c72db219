"""The state of a prompt from a model of the fleet in this process, where all its replicas are on this machine."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from weighbridge.errors import WeighbridgeError
from weighbridge.fleet.config.spec import ReplicaSpec
from weighbridge.fleet.gateway import Gateway, arrival_of, ticket_of
from weighbridge.fleet.journey import FleetJourney
from weighbridge.fleet.pool import Pool
from weighbridge.routes.errors import SideFailed
from weighbridge.routes.side import SideRequest, is_here
from weighbridge.wire.ask import Ask

PATH, CHAT = "/v1/embeddings", "/v1/chat/completions"
#: Replicas that are started here, or as actors of the fleet's own cluster.
OWN_KINDS = frozenset(("process", "engine", "ray"))


def foreign(replicas: Iterable[ReplicaSpec]) -> str:
    """Why the state of these is not to be had; empty where all are our engines, on this machine."""
    for one in replicas:
        if one.kind not in OWN_KINDS and not is_here(one.target):
            return f"its replica {one.name!r} ({one.shown}) is not on this machine"
        if one.kind not in OWN_KINDS and one.dialect != "weighbridge":
            return f"its replica {one.name!r} is no Weighbridge engine; write `dialect: weighbridge` if it is one"
    return ""


async def fleet_embeddings(gateway: Gateway, pool: Pool, request: SideRequest, route: str) -> Any:
    """The answer of the replica that the policy chooses for this prompt, which then has it in its prefix cache, so
    that the chat follows it there. It takes its place in the queue, but none of the tenant's limits: the request
    it belongs to has. Raises SideFailed."""
    body = {**request.body, "model": pool.spec.name}
    ask = Ask(
        id=uuid.uuid4().hex,
        path=PATH,
        fields={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()},
        model=pool.spec.name,
        tenant=request.tenant,
        priority=request.priority,
        deadline=gateway.clock() + request.timeout,
        route=route,
    )
    journey: FleetJourney | None = None
    try:
        async with asyncio.timeout(request.timeout):
            journey = await _journey(gateway, pool, ask)
            opened = await journey.open()
        text = (await journey.whole()).body
    except (WeighbridgeError, TimeoutError) as error:
        raise SideFailed(f"edge: {str(error) or 'no answer in time'}") from error
    finally:
        if journey is not None:  # shielded: the place on the replica is given back whoever is cancelled
            await asyncio.shield(asyncio.ensure_future(journey.close()))
    if opened.status >= 400:
        raise SideFailed(f"edge answered {opened.status}", status=opened.status)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise SideFailed("edge sent an answer that is no JSON") from None


async def _journey(gateway: Gateway, pool: Pool, ask: Ask) -> FleetJourney:
    """As the gateway makes one, without limits and without a ticket in its store."""
    chat = replace(ask, path=CHAT, max_tokens=1)  # weighed as what it is, the prompt of a chat
    weight, weighed = await pool.scales.weigh(chat)
    arrival = arrival_of(ask, weight, weighed.chain, gateway.clock())
    ticket = ticket_of(ask, weight, weighed.hash, time.time())
    return FleetJourney(pool, ask, arrival, weighed, ticket)
