"""`weighbridge route explain` and `route report`: one ticket in words, many as a table, a page, or findings."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import print_json
from weighbridge.cli.ticket import fetch
from weighbridge.errors import BadInput

Rows = list[dict[str, Any]]
COLUMNS = ("route", "requests", "local", "degraded", "USD", "saved USD", "p50 ms edge", "p50 ms cloud")


def explain(
    ticket: Annotated[str, typer.Argument(help="The id from x-weighbridge-ticket.")],
    url: Annotated[str, typer.Option(help="The server to ask.")] = "http://127.0.0.1:8080",
    tickets: Annotated[Path | None, typer.Option(help="A tickets file instead of a server.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="WEIGHBRIDGE_API_KEY", help="Its API key.")] = None,
) -> None:
    """Say in words where a request went, why, what left the machine, and what it cost."""
    from weighbridge.routes.learn.report import read_tickets

    if tickets is None:
        print(_in_words(asyncio.run(fetch(f"{url.rstrip('/')}/v1/tickets/{ticket}", api_key))))
        return
    found = [one for one in read_tickets(tickets) if one.get("id") == ticket]
    if not found:
        raise BadInput(f"{tickets} holds no ticket {ticket!r}")
    print(_in_words(found[-1]))


def _in_words(record: dict[str, Any]) -> str:
    """A route's ticket, or that of a request for a model of the fleet, which knows no edge and no cloud."""
    from weighbridge.cli.fleet import explained
    from weighbridge.routes.learn.report import explain as words

    return "\n".join(explained(record)) if record.get("scores") else words(record)


def report(
    tickets: Annotated[Path, typer.Option(help="The tickets file of the routes.")],
    shadow: Annotated[Path | None, typer.Option(help="Shadow evaluations: quality, suggestions.")] = None,
    router: Annotated[Path | None, typer.Option(help="What `train` wrote: has the traffic drifted?")] = None,
    route: Annotated[str | None, typer.Option(help="Only this route.")] = None,
    usd_per_quality: Annotated[float, typer.Option(min=1e-9, help="What a right answer is worth.")] = 0.01,
    html: Annotated[Path | None, typer.Option(help="Write a page as well.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Share local, money saved, quality, latency; drift since training; better thresholds, if there are."""
    from weighbridge.routes.learn.report import as_html, read_tickets, summarise

    rows = _of(route, read_tickets(tickets), "model")
    judged = _of(route, read_tickets(shadow) if shadow else [], "route")
    summary = summarise(rows, judged)
    summary["suggestions"] = _suggestions(judged, usd_per_quality)
    if router is not None:
        summary["drift"] = _drift(router, rows, judged)
    if html is not None:
        _write(html, as_html(summary))
    if json_output:
        print_json(summary)
    else:
        _print(summary)


def _of(route: str | None, rows: Rows, name: str) -> Rows:
    chosen = [one for one in rows if route in (None, one.get(name))]
    if rows and not chosen:
        known = ", ".join(sorted({str(one.get(name)) for one in rows}))
        raise BadInput(f"--route: {route!r} is in none of the rows; there is {known}")
    return chosen


def _drift(router: Path, tickets: Rows, shadows: Rows) -> dict[str, Any]:
    from weighbridge.routes.difficulty.trained import load_router
    from weighbridge.routes.learn.drift import drift

    return asdict(drift(load_router(router), tickets, shadows))


def _suggestions(shadows: Rows, usd_per_quality: float) -> list[dict[str, Any]]:
    """For the pre-router and for the cascade, where enough was judged. The last row says what is set now."""
    import numpy as np

    from weighbridge.routes.learn.suggest import suggest

    found = []
    for kind, name in (("score", "threshold"), ("confidence", "confidence_threshold")):
        present = [one[name] for one in shadows if one.get(name) is not None]
        if present:
            rng = np.random.default_rng(0)
            one = suggest(kind, shadows, float(present[-1]), usd_per_quality, rng)
            if one is not None:
                found.append({**asdict(one), "worth_changing": one.worth_changing})
    return found


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error


def _print(summary: dict[str, Any]) -> None:
    table = Table(*COLUMNS, title="Edge and cloud")
    for row in summary["routes"]:
        shown = (row["route"], str(row["requests"]), f"{row['share_local']:.1%}", str(row["degraded"]))
        money = (f"{row['cost_usd']:.6f}", f"{row['saved_usd']:.6f}")
        table.add_row(*shown, *money, _ms(row["edge_p50_ms"]), _ms(row["cloud_p50_ms"]))
    Console().print(table)
    from weighbridge.routes.learn.report import sentences

    for line in sentences(summary):
        print(line)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
