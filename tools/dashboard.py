"""Write deploy/grafana/weighbridge.json, the dashboard; without `--write`, say whether it is as the panels here are."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "weighbridge.json"
WIDTH, HEIGHT = 8, 7  # of a panel, in Grafana's grid of 24 columns
_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart: its queries by what their lines are called."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str


def _quantile(share: float, name: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({name}_bucket[$__rate_interval])))"


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}[$__rate_interval]))"


def _both(name: str, by: str) -> dict[str, str]:
    return {f"p50 {{{{{by}}}}}": _quantile(0.5, name, by), f"p99 {{{{{by}}}}}": _quantile(0.99, name, by)}


ROWS: dict[str, tuple[Panel, ...]] = {
    "What clients see": (
        Panel(
            "Time to first token",
            "s",
            _both("weighbridge_gateway_time_to_first_token_seconds", "model"),
            "From a request's arrival at the gateway to its first token on the way back.",
        ),
        Panel(
            "Gap between tokens",
            "s",
            _both("weighbridge_gateway_inter_token_latency_seconds", "model"),
            "From one token of a stream to the next.",
        ),
        Panel(
            "Requests by how they ended",
            "reqps",
            {"{{model}} {{reason}}": _rate("weighbridge_gateway_requests_finished_total", "model, reason")},
            "Answers, refusals and failures a second.",
        ),
    ),
    "What waits": (
        Panel(
            "Tokens in the queue",
            "short",
            {"{{model}}": "weighbridge_gateway_queued_tokens"},
            "What waiting requests weigh: tokens of their prompts and of the answers they may get.",
        ),
        Panel(
            "Waiting",
            "s",
            _both("weighbridge_gateway_wait_seconds", "model"),
            "From a request's arrival until it is sent to a replica.",
        ),
        Panel(
            "Imbalance",
            "short",
            {"{{model}}": "weighbridge_gateway_load_imbalance"},
            "Standard deviation of the replicas' outstanding tokens over their mean; 0 is even.",
        ),
    ),
    "Replicas": (
        Panel(
            "Outstanding tokens",
            "short",
            {"{{replica}}": "weighbridge_replica_outstanding_tokens"},
            "What has been sent to a replica and not been computed yet.",
        ),
        Panel(
            "Tokens a second",
            "short",
            {
                "{{replica}} out": _rate("weighbridge_replica_output_tokens_total", "replica"),
                "{{replica}} in": _rate("weighbridge_replica_prompt_tokens_total", "replica"),
            },
            "Tokens of answers, and of prompts, of requests that ended.",
        ),
        Panel(
            "Prompt tokens found cached",
            "percentunit",
            {
                "{{replica}}": _rate("weighbridge_replica_prefix_cache_hit_tokens_total", "replica")
                + " / "
                + _rate("weighbridge_replica_prompt_tokens_total", "replica")
            },
            "The share of prompt tokens that a replica's prefix cache held.",
        ),
        Panel(
            "Failures and retries",
            "reqps",
            {
                "{{replica}} failed": _rate("weighbridge_replica_failures_total", "replica"),
                "{{replica}} retried": _rate("weighbridge_replica_retries_total", "replica"),
            },
            "Tries that failed, and requests that were tried again elsewhere, a second.",
        ),
        Panel(
            "Up",
            "short",
            {"{{replica}}": "weighbridge_replica_up"},
            "1: it gets requests. 0: it is down, drained or misconfigured.",
        ),
        Panel(
            "Error of predictions",
            "percentunit",
            {"{{replica}}": "weighbridge_prediction_error"},
            "How far first tokens were from what the balancer expected, as a share.",
        ),
    ),
    "Tenants": (
        Panel(
            "Tokens a second",
            "short",
            {"{{tenant}} {{kind}}": _rate("weighbridge_gateway_tenant_tokens_total", "tenant, kind")},
            "Of requests that ended, prompts and answers apart.",
        ),
        Panel(
            "Dollars an hour",
            "currencyUSD",
            {"{{tenant}}": "3600 * " + _rate("weighbridge_gateway_tenant_usd_total", "tenant")},
            "By the prices of the configuration.",
        ),
        Panel(
            "Requests",
            "reqps",
            {"{{tenant}}": _rate("weighbridge_gateway_tenant_requests_total", "tenant")},
            "Requests that ended, a second.",
        ),
    ),
    "Our own servers": (
        Panel(
            "KV cache in use",
            "percentunit",
            {"{{instance}}": "weighbridge_kv_blocks_used / weighbridge_kv_blocks_total"},
            "Blocks that running requests hold, of all.",
        ),
        Panel(
            "A step takes",
            "s",
            _both("weighbridge_step_seconds", "instance"),
            "One iteration of the engine: decodes and pieces of prompts together.",
        ),
        Panel(
            "Standing still",
            "s",
            {
                "{{instance}} {{thread}}": _quantile(
                    0.99, "weighbridge_loop_stall_seconds", "instance, thread"
                )
            },
            "How long a loop was kept from its next turn; p99.",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], **_place(0, top, 24, 1)}
        )
        top += 1
        for number, panel in enumerate(row):
            place = _place(number % 3 * WIDTH, top + number // 3 * HEIGHT, WIDTH, HEIGHT)
            panels.append({**_drawn(panel), **place})
        top += -(-len(row) // 3) * HEIGHT
    for number, one in enumerate(panels):
        one["id"] = number + 1
    return {
        "title": "Weighbridge",
        "uid": "weighbridge",
        "tags": ["weighbridge", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": panels,
    }


def _place(left: int, top: int, width: int, height: int) -> dict[str, Any]:
    return {"gridPos": {"x": left, "y": top, "w": width, "h": height}}


def _drawn(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
        for number, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def written() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> int:
    if "--write" in sys.argv:
        FILE.write_text(written(), encoding="utf-8")
        return 0
    is_same = FILE.exists() and FILE.read_text(encoding="utf-8") == written()
    print(
        f"{FILE.name}: {'as it should be' if is_same else 'other than its panels; run tools/dashboard.py --write'}"
    )
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
