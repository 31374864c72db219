"""`weighbridge moe stats`: what a running mixture of experts does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from weighbridge.cli.options import DEFAULT_URL, ApiKey, JsonOutput, Url
from weighbridge.cli.remote import Server
from weighbridge.cli.terminal import outside, print_json
from weighbridge.pages import html
from weighbridge.pages.html import tag

_HEAT = (
    "table.heat{border-spacing:1px;border-collapse:separate}.heat td{min-width:10px;height:16px;padding:0}"
)

#: Seconds to wait for a server's report.
PATIENCE = 30.0


def stats(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write a heat map to this file.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """Show which experts a server's tokens use: a heat map, balance, hot and cold experts, coverage."""
    report = Server(url, api_key).ask("GET", "/v1/experts", patience=PATIENCE)
    if page is not None:
        html.save(page, heat_map(report))
    if json_output:
        print_json(report)
        return
    _print_report(report)
    if page is not None:
        Console().print(outside(f"heat map in {page}"))


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(
        "layer",
        Column("tokens, expert by expert", no_wrap=True),
        "balance",
        "top 20 %",
        "entropy",
        "hot",
        "cold",
    )
    for layer in report["layers"]:
        table.add_row(
            str(layer["layer"]),
            _strip(layer["tokens"]),
            f"{layer['balancedness']:.2f}",
            f"{layer['top20_share']:.0%}",
            f"{layer['entropy_bits']:.2f}",
            " ".join(map(str, layer["hot"][:6])),
            " ".join(map(str, layer["cold"][:6])),
        )
    console.print(table)
    console.print(f"{report['steps']:,} steps, {report['touched_per_step']:.1f} experts touched by each")
    for row in report["coverage"]:
        console.print(
            f"  batch {row['batch']:>4}: {row['measured']:6.2f} experts per layer, {row['predicted']:.2f} predicted"
        )
    cache = report.get("cache")
    if cache:
        console.print(
            f"cache: {cache['hit_rate']:.1%} hits (a plain LRU: {cache['lru_hit_rate']:.1%}), "
            f"{cache['prefetched']:,} of {cache['misses']:,} misses were loaded ahead"
        )


def _strip(tokens: list[int]) -> Text:
    """One character per expert, or per group of them where a line would be too long."""
    step = -(-len(tokens) // 64)
    groups = [sum(tokens[start : start + step]) for start in range(0, len(tokens), step)]
    largest = max(groups) or 1
    return Text("".join(" ▁▂▃▄▅▆▇█"[round(8 * value / largest)] for value in groups))


def heat_map(report: dict[str, Any]) -> str:
    """A page of its own: a row per layer, a cell per expert, darker where more tokens went."""
    rows = []
    for layer in report["layers"]:
        largest = max(layer["tokens"]) or 1
        cells = (
            tag(
                "td",
                style=f"background:rgba(37,99,235,{value / largest:.3f})",
                title=f"layer {layer['layer']}, expert {expert}: {value:,} tokens",
            )
            for expert, value in enumerate(layer["tokens"])
        )
        rows.append(
            tag(
                "tr", tag("th", layer["layer"]), *cells, tag("td", f"{layer['balancedness']:.2f}", cls="soft")
            )
        )
    title = f"{report['experts']} experts, {report['top_k']} used, {report['steps']:,} steps"
    return html.page(
        title,
        tag("h1", title),
        tag("p", "Darker: more tokens, within a layer. Right: balancedness.", cls="soft"),
        tag("div", tag("table", *rows, cls="heat"), cls="wide"),
        style=_HEAT,
    )
