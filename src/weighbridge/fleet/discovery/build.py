"""From a configuration to whoever follows its sources."""

from __future__ import annotations

from weighbridge.fleet.config.spec import DiscoverySpec
from weighbridge.fleet.discovery.dns import DnsSource
from weighbridge.fleet.discovery.found import Follower, ReplicaSource
from weighbridge.fleet.discovery.kubernetes import ACCOUNT, KubernetesSource
from weighbridge.fleet.gateway import Gateway


def followers(gateway: Gateway) -> list[Follower]:
    """One for each `discover:` of the gateway's models."""
    return [
        Follower(pool, spec, source_of(spec))
        for pool in gateway.pools.values()
        for spec in pool.spec.discover
    ]


def source_of(spec: DiscoverySpec) -> ReplicaSource:
    if spec.dns is not None:
        port = spec.port if isinstance(spec.port, int) else None
        return DnsSource(spec.dns, port, spec.interval, spec.server)
    namespace, _, service = (spec.kubernetes or "").partition("/")
    return KubernetesSource(namespace, service, spec.port, spec.api, spec.account or ACCOUNT)
