"""The page of metrics of a gateway with many replicas: the client's own format, written in pieces."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from tests.fleet.arrivals import arrival
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.server.gateway.metrics import (
    REPLICA_COUNTERS,
    REPLICA_GAUGES,
    GatewayMetrics,
    replica_pieces,
)


async def gateway_of(count: int) -> Gateway:
    replicas = "".join(
        f"      - {{name: 'r {number}', url: 'http://127.0.0.1:{number + 1}', probe: false}}\n"
        for number in range(count)
    )
    gateway = Gateway(
        parse_config(f"models:\n  'a \"b\\c':\n    replicas:\n{replicas}", "f", Path(".")),
        build_replica,
        seed=1,
    )
    await gateway.start()
    return gateway


class _Families:
    """The same as the client writes it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        now, found = self._gateway.clock(), []
        members = [(p.spec.name, m) for p in self._gateway.pools.values() for m in p.members.values()]
        for name, text, value in REPLICA_GAUGES:
            family = GaugeMetricFamily(f"weighbridge_{name}", text, labels=["model", "replica"])
            for model, member in members:
                family.add_metric([model, member.name], value(member, now))
            found.append(family)
        for name, text, field in REPLICA_COUNTERS:
            family = CounterMetricFamily(f"weighbridge_{name}", text, labels=["model", "replica"])
            for model, member in members:
                family.add_metric([model, member.name], getattr(member.counts, field))
            found.append(family)
        return found


async def test_the_lines_of_replicas_are_those_that_the_client_writes() -> None:
    gateway = await gateway_of(3)
    try:
        member = next(iter(next(iter(gateway.pools.values())).members.values()))
        member.state.credit(arrival("a", 123), 0, gateway.clock())
        member.counts.usd, member.counts.output_tokens = 0.1 + 0.2, 12345678
        registry = CollectorRegistry()
        registry.register(_Families(gateway))  # type: ignore[arg-type]
        assert b"".join(replica_pieces(gateway)) == generate_latest(registry)
    finally:
        await gateway.close()


async def test_others_have_their_turn_while_a_page_is_written() -> None:
    gateway = await gateway_of(600)
    try:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await asyncio.sleep(0)
        before = turns
        page = await GatewayMetrics(gateway).exposition()
        counting.cancel()
        assert turns - before > 3 * len(REPLICA_GAUGES + REPLICA_COUNTERS)
        families = {one.name: one for one in text_string_to_metric_families(page.decode())}
        assert len(families["weighbridge_replica_up"].samples) == 600
        assert "weighbridge_gateway_load_imbalance" in families
    finally:
        await gateway.close()
