"""What `weighbridge simulate` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weighbridge.cli.terminal import outside


def show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    for name, words in result["setup"].items():
        console.print(Text.assemble((f"{name + ':':<10}", "dim"), " ", outside(words)), soft_wrap=True)
    if "compare" in result:
        console.print(_table(result["compare"]))
    elif "sweep" in result:
        points = {f"{point['rate']:.3g}/s": point for point in result["sweep"]["points"]}
        console.print(_table(points))
        knee, share = result["sweep"]["knee_rps"], result["sweep"]["served_share"]
        said = "no rate that was tried" if knee is None else f"knee: up to {knee:.3g} requests/s"
        console.print(f"{said} keeps {share:.0%} of the requests within the targets")
    else:
        console.print(_one(result))
        console.print(_sentence(result), soft_wrap=True)


def _one(result: dict[str, Any]) -> Table:
    table = _right("ms", "mean", "p50", "p90", "p95", "p99")
    rows = {
        "TTFT": "ttft_ms",
        "TPOT": "tpot_ms",
        "ITL": "itl_ms",
        "end to end": "e2e_ms",
        "in gateway": "gateway_wait_ms",
    }
    for name, key in rows.items():
        cells = [_number(result, key, column) for column in ("mean", "p50", "p90", "p95", "p99")]
        table.add_row(name, *cells)
    return table


def _number(result: dict[str, Any], key: str, column: str) -> str:
    if column not in result[key]:
        return ""
    interval = result.get("intervals", {}).get(key, {}).get(column)
    half = interval["high"] - interval["mean"] if interval else 0.0
    value = f"{result[key][column]:,.1f}"
    return f"{value} ± {half:,.1f}" if half else value


def _right(*heads: str) -> Table:
    """Return a table whose columns but the first hold numbers."""
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _sentence(result: dict[str, Any]) -> str:
    parts = [
        f"{result['requests']:,.0f} requests in {result['seconds']:,.1f} s: "
        f"{result['output_tokens_per_s']:,.1f} output tokens/s, {result['goodput_rps']:,.2f} requests/s "
        f"within the targets ({result['good_share']:.1%})",
        f"machines {result['utilization']:.0%} busy, KV {result['kv_occupancy']:.0%} full, "
        f"{result['prefix_hit_rate']:.1%} of prompt tokens from caches, {result['preemptions']:,.0f} preemptions",
    ]
    if abs(result["mean_replicas"] - result["most_replicas"]) > 1e-6:
        parts.append(
            f"{result['mean_replicas']:.2f} replicas on average, {result['most_replicas']:.0f} at most"
        )
    if result["usd"]:
        parts.append(f"{result['usd_per_million_output_tokens']:,.2f} USD per million output tokens")
    if result["failed"]:
        kinds = ", ".join(f"{name} {count:,.0f}" for name, count in result["errors"].items())
        parts.append(f"{result['failed']:,.0f} failed ({kinds})")
    if "never_fits" in result["errors"]:
        parts.append("never_fits: prompt and --max-tokens exceed --max-model-len or the KV cache")
    return "; ".join(parts)


def _table(results: dict[str, dict[str, Any]]) -> Table:
    priced = any(one["usd"] for one in results.values())
    heads = (
        "",
        "TTFT p50",
        "p95",
        "p99 ms",
        "TPOT p50",
        "p99 ms",
        "e2e p99 s",
        "tok/s",
        "good",
        "hits",
        "busy",
    )
    table = _right(*heads, *(("USD/M out",) if priced else ()))
    for name, one in results.items():
        table.add_row(
            name,
            _number(one, "ttft_ms", "p50"),
            _number(one, "ttft_ms", "p95"),
            _number(one, "ttft_ms", "p99"),
            _number(one, "tpot_ms", "p50"),
            _number(one, "tpot_ms", "p99"),
            f"{one['e2e_ms']['p99'] / 1e3:,.2f}",
            f"{one['output_tokens_per_s']:,.0f}",
            f"{one['good_share']:.1%}",
            f"{one['prefix_hit_rate']:.1%}",
            f"{one['utilization']:.0%}",
            *((f"{one['usd_per_million_output_tokens']:,.2f}",) if priced else ()),
        )
    return table
