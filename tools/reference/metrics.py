"""The page of metrics: what the collectors of a gateway and of a server say of themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from tools.reference.markdown import MADE, code, filled, sentence, table, words

from weighbridge.cli.serve.simulated import SimulatedEngine, SimulatedMachine, assemble_simulated
from weighbridge.fleet.config.load import parse_config
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.server.engine.experts import ExpertCollector
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.gateway.metrics import REPLICA_COUNTERS, REPLICA_GAUGES, GatewayMetrics
from weighbridge.server.settings import ServerSettings

_INTRODUCTION = """# Metrics

{made}

`GET /metrics` in the text format of Prometheus. A histogram has `_bucket`, `_sum` and `_count`. Who may see the
page with keys on:
[gateways and watchers](../guide/identity.md#gateways-and-watchers). Rules and a dashboard are in
[deploy](../../deploy/README.md).
"""
#: The unit by the end of a name, the first that fits.
_UNITS = {
    "_seconds": "seconds",
    "bytes_per_token": "bytes",
    "_bytes": "bytes",
    "_usd": "US dollars",
    "_bits": "bits",
    "_blocks_used": "blocks",
    "_blocks_cached": "blocks",
    "_blocks_free": "blocks",
    "_blocks_total": "blocks",
    "_tokens": "tokens",
    "_tokens_seen": "tokens",
    "_requests": "requests",
    "_requests_finished": "requests",
    "_requests_sent": "requests",
    "_up": "0 or 1",
    "_known": "0 or 1",
    "_share": "share",
    "_rate": "share",
    "_error": "share",
    "_imbalance": "share",
    "_balancedness": "share",
    "_per_step": "pairs",
    "_preemptions": "times",
    "_cache_hits": "experts",
    "_cache_misses": "experts",
    "_cache_prefetched": "experts",
    "_cache_lru_hits": "experts",
    "_streams": "streams",
    "_fallbacks": "requests",
    "_copies": "requests",
    "_failures": "requests",
    "_retries": "requests",
    "_hedges": "requests",
}


@dataclass(frozen=True, slots=True)
class Family:
    """A metric as its collector describes it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str

    @property
    def unit(self) -> str:
        return next((unit for end, unit in _UNITS.items() if self.name.endswith(end)), "")

    @property
    def series(self) -> str:
        """The name that queries use."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


@cache
def page() -> str:
    parts = [filled(_INTRODUCTION.format(made=MADE))]
    for title, families in (
        ("A server with a model", engine_families()),
        ("A mixture of experts", expert_families()),
        ("A gateway, routes included", gateway_families()),
    ):
        rows = [
            (
                code(one.series),
                one.kind,
                ", ".join(map(code, one.labels)),
                one.unit,
                words(sentence(one.text)),
            )
            for one in families
        ]
        parts += [f"## {title}\n", table(("metric", "type", "labels", "unit", "meaning"), rows)]
    return "\n".join(parts)


def engine_families() -> list[Family]:
    running = assemble_simulated(SimulatedMachine(), SimulatedEngine(), ServerSettings())
    [metrics] = [one for one in running.engine.observers if isinstance(one, EngineMetrics)]
    return list(_of_registry(metrics.registry))


def expert_families() -> list[Family]:
    return list(_of_collectors([ExpertCollector(_Mixture())]))


def gateway_families() -> list[Family]:
    """Those of a gateway that shares limits, and of its replicas."""
    text = "shared_limits: {redis: 'redis://127.0.0.1:1'}\nmodels: {m: {replicas: [{url: 'http://127.0.0.1:1'}]}}\n"
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(parse_config(text, "metrics", Path(folder)), build_replica, seed=1)
        found = list(_of_registry(GatewayMetrics(gateway).registry))
    replica = ("model", "replica")
    found += [Family(f"weighbridge_{name}", "gauge", replica, text) for name, text, _ in REPLICA_GAUGES]
    return found + [
        Family(f"weighbridge_{name}", "counter", replica, text) for name, text, _ in REPLICA_COUNTERS
    ]


class _Mixture:
    """Stands for a mixture with an expert cache: one layer, one expert, nothing counted."""

    def report(self, coactivation: bool = False, coverage: bool = True) -> dict[str, Any]:
        names = ("hits", "misses", "prefetched", "lru_hits", "loaded_bytes", "hit_rate", "resident_bytes")
        layer = {"layer": 0, "balancedness": 1.0, "top20_share": 1.0, "entropy_bits": 0.0}
        layer |= {"decode_tokens": [0], "prefill_tokens": [0]}
        return {"touched_per_step": 0.0, "experts": 1, "layers": [layer], "cache": dict.fromkeys(names, 0)}


def _of_registry(registry: CollectorRegistry) -> Iterator[Family]:
    return _of_collectors(registry._collector_to_names)


def _of_collectors(collectors: Iterable[Any]) -> Iterator[Family]:
    for collector in collectors:
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", None) or getattr(collector, "_labels", None)
            yield Family(
                family.name,
                family.type,
                tuple(labels or getattr(family, "_labelnames", ())),
                family.documentation,
            )
