"""Replicas by the addresses that Envoy knows them by, IP and port."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from weighbridge.errors import BadInput
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.fleet.desk import Lease
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.member import Member
from weighbridge.server.picker.addresses import Addresses
from weighbridge.wire.ask import Ask


def check_endpoints(spec: FleetSpec) -> None:
    """Raises BadInput for a replica that nobody but we could send a request to."""
    for model in spec.models:
        for one in model.replicas:
            if one.kind != "url":
                raise BadInput(
                    f"replica {one.name!r}: `{one.kind}:` is started here, where Envoy cannot reach it; give a `url:`"
                )


class Endpoints:
    """The replicas of a gateway as endpoints. They come and go."""

    def __init__(self, gateway: Gateway, fallbacks: int) -> None:
        """`fallbacks`: how many further endpoints are named behind the chosen one."""
        self._gateway = gateway
        self._fallbacks = fallbacks
        self.addresses = Addresses(lambda: [one.spec.target for one in self._members()])

    def among(self, subset: Sequence[str] | None) -> frozenset[str] | None:
        """The names of the replicas at these endpoints, or of those that have any; None where that is all of them."""
        places = {one.name: self._of(one) for one in self._members()}
        if subset is not None:
            asked = set(subset) - {""}
            return frozenset(name for name, place in places.items() if place in asked)
        return None if all(places.values()) else frozenset(name for name, place in places.items() if place)

    def any_ready(self, among: frozenset[str] | None, members: Iterable[Member]) -> bool:
        """Whether a request may be sent to one of these now, or as soon as it has room."""
        return any(self._is_ready(one, among) for one in members)

    def least_busy(self, among: frozenset[str] | None) -> str:
        """The endpoint of the replica with the fewest requests; empty where none is up."""
        ready = (one for one in self._members() if self._is_ready(one, among))
        least = min(ready, key=lambda one: (one.state.requests, one.name), default=None)
        return self._of(least) if least is not None else ""

    def listed(self, lease: Lease[Member], ask: Ask) -> list[str]:
        """The endpoint of a request's place, and those of the next best that would read the same body."""
        chosen, scores = lease.member, lease.choice.scores
        members = self._gateway.pools[ask.model].members
        found = [self._of(chosen)]
        for name in sorted(scores, key=lambda one: scores[one]):
            if len(found) > self._fallbacks:
                break
            other = members.get(name)
            if other is None or other is chosen or not self._is_ready(other, ask.among):
                continue
            if _reads_the_same(chosen, other, ask):
                found.append(self._of(other))
        return found

    def name_of(self, endpoint: str) -> str:
        """The replica at an endpoint; empty where none is there."""
        return next((one.name for one in self._members() if self._of(one) == endpoint), "")

    @property
    def synced(self) -> bool:
        """Whether every replica has been asked once how it is."""
        return all(one.heard or one.failed_probes for one in self._members())

    def _of(self, member: Member) -> str:
        return self.addresses.endpoint(member.spec.target)

    def _members(self) -> Iterator[Member]:
        for pool in self._gateway.pools.values():
            yield from pool.members.values()

    def _is_ready(self, member: Member, among: frozenset[str] | None) -> bool:
        if among is not None and member.name not in among:
            return False
        return member.usable(self._gateway.clock()) and member.state.healthy and bool(self._of(member))


def _reads_the_same(one: Member, other: Member, ask: Ask) -> bool:
    """Whether a request written for one replica is right for another."""
    a, b = one.spec, other.spec
    return (a.dialect, a.key, a.headers) == (b.dialect, b.key, b.headers) and (
        one.model_name(ask) == other.model_name(ask)
    )
