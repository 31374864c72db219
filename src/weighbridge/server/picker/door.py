"""The picker's door: each request that Envoy carries is read, weighed and placed like one of the gateway's own.

    headers, body -> ask -> journey -> a place      the endpoint goes back to Envoy, the request to the replica
    answer's headers, body -> the same journey      counted as they go by, settled when they end

It is the gateway's desk: its queue, limits, policy and tickets. What differs is who carries: Envoy connects, tries the
next endpoint where one is out of reach, and ends what takes too long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from weighbridge.errors import words_of
from weighbridge.fleet.desk import NoReplica
from weighbridge.fleet.dispatch import Lease
from weighbridge.fleet.journey import FleetJourney
from weighbridge.fleet.member import Member
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.picker.answers import CarriedAnswer
from weighbridge.server.picker.conversation import EnvoyTalk
from weighbridge.server.picker.endpoints import Endpoints
from weighbridge.server.picker.http2 import GrpcCall
from weighbridge.server.picker.words import FAIRNESS
from weighbridge.wire.answer import CLIENT_GONE
from weighbridge.wire.ask import LONGEST_NAME, Ask
from weighbridge.wire.body import apart, held_body, read_body
from weighbridge.wire.errors import ApiError, as_api_error, error_body, retry_after_header
from weighbridge.wire.headers import OURS, Headers, bearer_of
from weighbridge.wire.identity.admission import settle_caller
from weighbridge.wire.identity.callers import Peer
from weighbridge.wire.journey import Answered
from weighbridge.wire.protocol import WireProtocol
from weighbridge.wire.protocols import PROTOCOLS
from weighbridge.wire.readers import whose

log = logging.getLogger("weighbridge.server")

#: What names a caller to us, and is nobody else's business.
_CREDENTIALS = ("authorization", "x-api-key", "api-key")
#: Of a request whose body is written anew, or whose answer we want to read.
_OF_THE_BODY = ("accept-encoding", "content-encoding")
#: Where a body goes that is no protocol of ours: nobody knows what it weighs.
_UNWEIGHED = "other"


@dataclass(frozen=True, slots=True)
class _Carried:
    """A request that was read: what is asked in which protocol, and the headers it came with."""

    ask: Ask
    protocol: WireProtocol
    headers: Headers


class PickerDoor:
    """Serves conversations, one for each request. `service` is that of the gateway whose desk decides."""

    def __init__(
        self, service: GatewayService, endpoints: Endpoints, clock: Callable[[], float] | None = None
    ) -> None:
        self._service = service
        self._gateway = service.gateway
        self._clock = clock if clock is not None else service.gateway.clock
        self._endpoints = endpoints
        self._protocols = {protocol.path: protocol for protocol in PROTOCOLS}

    @property
    def ready(self) -> bool:
        """Whether the fleet is known, and new requests are taken."""
        return self._endpoints.synced and not self._gateway.draining

    async def start(self) -> None:
        await self._endpoints.addresses.start()

    async def close(self) -> None:
        await self._endpoints.addresses.close()

    async def serve(self, call: GrpcCall) -> None:
        """Serve one request to the end of its answer."""
        talk = await EnvoyTalk.begin(call)
        if talk is None:
            return
        protocol = self._protocols.get(talk.path) if talk.method == "POST" and talk.sees_body else None
        status = 500
        try:
            if protocol is None:
                status = await self._unweighed(talk)
            else:
                status = await self._weighed(talk, protocol)
        except Exception as error:
            failure = as_api_error(error)
            if failure.status == 500 and failure is not error:
                log.error("a request to %s failed", talk.path, exc_info=error)
            status = failure.status
            if talk.decided:  # the client has been told something else; Envoy ends it
                raise
            await self._refuse(talk, protocol, failure)
            await talk.over()
        finally:
            self._service.answered(talk.path if protocol is not None else _UNWEIGHED, status)

    # -- requests that are weighed -----------------------------------------------------------------------

    async def _weighed(self, talk: EnvoyTalk, protocol: WireProtocol) -> int:
        carried = await self._read(talk, protocol)
        ask = carried.ask
        self._check_ready(ask)
        error: str | None = None
        journey = await self._gateway.run(ask)
        try:
            ask.tell(journey.ticket)
            return await self._carried(talk, journey, carried)
        except Exception as failure:
            error = words_of(failure)
            if isinstance(failure, Answered):  # Envoy has passed it on as it was
                return failure.status
            raise
        finally:
            await journey.close(error)

    async def _read(self, talk: EnvoyTalk, protocol: WireProtocol) -> _Carried:
        """What is asked, and by whom. Raises ApiError."""
        headers = talk.headers
        caller = await self._service.callers.caller(headers, Peer())
        fairness = headers.get(FAIRNESS, "")[:LONGEST_NAME]
        whose.set(caller.named(None, headers) if caller is not None else fairness)
        with held_body() as held:
            body = await read_body(talk.receive, headers, self._service.max_body, held)
            ask = await apart(len(body), protocol.read, body)
            if fairness and (caller is None or caller.is_gateway):
                headers.setdefault(OURS + "tenant", fairness)
            await settle_caller(self._service, protocol, ask, headers, caller, self._clock())
        ask.wants_usage = True  # the answer goes by as it is: what nobody asked for must not be in it
        ask.resume = False
        ask.among = self._endpoints.among(talk.subset)
        if ask.path != protocol.path:  # in words of another protocol, which its replica speaks itself
            ask.raw = body
        return _Carried(ask, protocol, headers)

    def _check_ready(self, ask: Ask) -> None:
        """Raises NoReplica where no endpoint is ready: who asks a picker wants to know that at once."""
        members = self._gateway.pool(ask.model).members.values()
        if not self._endpoints.any_ready(ask.among, members):
            where = "" if ask.among is None else " among the endpoints that were named"
            raise NoReplica(f"no replica of {ask.model!r} is up{where}", retry_after=1.0)

    async def _carried(self, talk: EnvoyTalk, journey: FleetJourney, carried: _Carried) -> int:
        """Have it carried to its place, and follow the answer. Raises what the client is to be told, or was."""
        lease, ask = await journey.placed(), carried.ask
        head = None
        try:
            await self._send_on(talk, lease, carried)
            head = await talk.answer_head()
        finally:
            if head is None:
                journey.abandoned(lease)
        if head is None:
            return CLIENT_GONE
        lease = self._where_it_went(journey, lease, head.served)
        told = [("x-weighbridge-ticket", ask.id), ("x-weighbridge-replica", lease.member.name)]
        is_read = ask.path == carried.protocol.path
        answer = CarriedAnswer(talk, head, told, streams=ask.stream, is_read=is_read)
        opened = await journey.answered(lease, answer)
        if ask.stream and opened.is_stream and opened.status < 400:
            async for _ in journey.stream():
                pass
        else:
            await journey.whole()
        await talk.let_go_by()
        return head.status

    def _where_it_went(self, journey: FleetJourney, lease: Lease, served: str) -> Lease:
        """The request's place, which is another one where Envoy did not reach the first."""
        name = self._endpoints.name_of(served) if served else ""
        return lease if name in ("", lease.member.name) else journey.moved(lease, name)

    async def _send_on(self, talk: EnvoyTalk, lease: Lease, carried: _Carried) -> None:
        ask, member = carried.ask, lease.member
        body = ask.raw
        if ask.path == carried.protocol.path:
            remaining = None if ask.deadline is None else max((ask.deadline - self._clock()) * 1e3, 1.0)
            body = member.call(ask, remaining).body
        to_set = _own_headers(member)
        given = {name for name, _ in to_set}
        to_remove = [name for name in _OF_THE_BODY if name in carried.headers]
        to_remove += [name for name in self._not_passed_on(carried.headers) if name not in given]
        await talk.send_on(self._endpoints.listed(lease, ask), to_set, to_remove, body)

    def _not_passed_on(self, headers: Headers) -> list[str]:
        """Headers that are for us: who asks, and what is wanted of us."""
        found = [name for name in headers if name.startswith(OURS)]
        if self._service.callers.are_asked:
            found += [name for name in _CREDENTIALS if name in headers]
        return found

    # -- requests that are not ---------------------------------------------------------------------------

    async def _unweighed(self, talk: EnvoyTalk) -> int:
        """Have a request carried that no protocol of ours reads, or whose body Envoy keeps to itself."""
        await self._service.callers.caller(talk.headers, Peer())
        if self._gateway.draining:
            raise NoReplica("the picker is shutting down; ask another one", retry_after=1.0)
        endpoint = self._endpoints.least_busy(self._endpoints.among(talk.subset))
        if not endpoint:
            raise NoReplica("no replica is up", retry_after=1.0)
        await talk.send_on([endpoint], [], self._not_passed_on(talk.headers), None)
        head = await talk.answer_head()
        if head is None:
            return CLIENT_GONE
        await talk.pass_head([])
        await talk.let_go_by()
        return head.status

    # -- errors ------------------------------------------------------------------------------------------

    async def _refuse(self, talk: EnvoyTalk, protocol: WireProtocol | None, failure: ApiError) -> None:
        body = error_body(failure) if protocol is None else protocol.error(failure)
        status = failure.status if protocol is None else protocol.status(failure)
        more = {name.decode(): value.decode() for name, value in retry_after_header(failure)}
        headers = {"content-type": "application/json", **more}
        await talk.refuse(status, headers, body, f"weighbridge_{failure.code or status}")


def _own_headers(member: Member) -> list[tuple[str, str]]:
    """What a replica wants with every request: its key, in place of the client's, and what else is configured."""
    spec = member.spec
    found = [(name.lower(), value.reveal()) for name, value in spec.headers.items()]
    if spec.key is not None:
        found.append(("authorization", bearer_of(spec.key)))
    return found
