"""EndpointSlices of Kubernetes (discovery.k8s.io/v1): which servers a service has. Pure.

What the API server sends is checked by type; a slice that is none is left out and said.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from weighbridge.fleet.discovery.found import FoundServer
from weighbridge.wire.identity.access import is_address

#: Slices of one service that are kept, and endpoints of one of them.
MOST_SLICES, MOST_ENDPOINTS = 1024, 1000


class MalformedSlices(ValueError):
    """What the API server sent is nothing that we know."""


class Conditions(msgspec.Struct):
    """`ready` left out means that it is (the API's own rule)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(msgspec.Struct):
    addresses: list[str] = []
    conditions: Conditions = msgspec.field(default_factory=Conditions)


class Port(msgspec.Struct):
    port: int | None = None
    name: str | None = None
    protocol: str | None = None  # left out: TCP


class Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class EndpointSlice(msgspec.Struct, rename="camel"):
    metadata: Meta = msgspec.field(default_factory=Meta)
    address_type: str = ""
    endpoints: list[SliceEndpoint] | None = None
    ports: list[Port] | None = None


class SliceList(msgspec.Struct):
    metadata: Meta
    items: list[EndpointSlice]


class SliceChange(StrEnum):
    """What an event of a watch says."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


class WatchEvent(msgspec.Struct):
    type: SliceChange
    object: msgspec.Raw


class ApiStatus(msgspec.Struct):
    """What the object of an ERROR is."""

    code: int = 0
    message: str = ""


class Expired(Exception):
    """What was to be watched from is too long ago: all has to be listed anew."""


class SliceBook:
    """All slices of one service. `version`: of the last thing that was heard of."""

    def __init__(self, port: str | int | None) -> None:
        """`port`: the name or number of the port that is asked; None: the first."""
        self._port = port
        self._slices: dict[str, frozenset[FoundServer]] = {}
        self.version = ""

    def begin(self) -> None:
        """Forget all: a list follows."""
        self._slices = {}

    def listed(self, data: bytes) -> str | None:
        """Take a page of the list in; return the token of the next page. Raises MalformedSlices."""
        page = _decoded(data, SliceList)
        for one in page.items:
            self._put(one)
        self.version = page.metadata.resource_version
        return page.metadata.continue_ or None

    def heard(self, line: bytes) -> bool:
        """Take an event of a watch in; whether servers may have changed. Raises MalformedSlices and Expired."""
        event = _decoded(line, WatchEvent)
        if event.type is SliceChange.ERROR:
            status = _decoded(bytes(event.object), ApiStatus)
            if status.code == 410:
                raise Expired
            raise MalformedSlices(f"the watch ended with code {status.code}: {status.message[:200]}")
        one = _decoded(bytes(event.object), EndpointSlice)
        self.version = one.metadata.resource_version or self.version
        if event.type is SliceChange.BOOKMARK:
            return False
        if event.type is SliceChange.DELETED:
            return self._slices.pop(one.metadata.name, None) is not None
        self._put(one)
        return True

    def found(self) -> frozenset[FoundServer]:
        """All servers; one that is in two slices, and serves in one of them, serves."""
        all_of_them = frozenset[FoundServer]().union(*self._slices.values())
        return frozenset(
            one for one in all_of_them if not one.rests or one._replace(rests=False) not in all_of_them
        )

    def _put(self, one: EndpointSlice) -> None:
        name = one.metadata.name
        if name not in self._slices and len(self._slices) >= MOST_SLICES:
            raise MalformedSlices(f"there are more than {MOST_SLICES} slices")
        self._slices[name] = self._servers(one)

    def _servers(self, one: EndpointSlice) -> frozenset[FoundServer]:
        number = self._number(one.ports or [])
        if number is None or one.address_type not in ("IPv4", "IPv6"):
            return frozenset()
        found = set()
        for endpoint in (one.endpoints or [])[:MOST_ENDPOINTS]:
            is_leaving = bool(endpoint.conditions.terminating)
            serves = (
                endpoint.conditions.serving is not False
                if is_leaving
                else endpoint.conditions.ready is not False
            )
            address = (
                endpoint.addresses[0] if endpoint.addresses else ""
            )  # by the API all others mean the same
            if serves and is_address(address):
                found.add(FoundServer(address, number, is_leaving))
        return frozenset(found)

    def _number(self, ports: list[Port]) -> int | None:
        for one in ports:
            if one.port is None or not 0 < one.port < 65536 or one.protocol not in (None, "", "TCP"):
                continue
            if self._port is None or self._port in (one.name, one.port):
                return one.port
        return None


def _decoded(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MalformedSlices(f"the API server's answer is malformed: {str(error)[:200]}") from None
