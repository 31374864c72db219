"""`weighbridge route explain` and `route report`: one ticket in words, many as a table, a page, or findings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.fleet import explained
from weighbridge.cli.options import DEFAULT_URL, ApiKey, JsonOutput, Url, options
from weighbridge.cli.terminal import outside, print_json, visible
from weighbridge.cli.ticket import ticket_path, tickets_of
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.routes.difficulty.trained import load_router
from weighbridge.routes.learn.drift import drift
from weighbridge.routes.learn.report import as_html, sentences, summarise
from weighbridge.routes.learn.report import explain as in_words
from weighbridge.routes.learn.shadow import SHADOW
from weighbridge.routes.learn.suggest import suggest
from weighbridge.state.lines import read_lines
from weighbridge.ticket import TICKETS

Rows = list[dict[str, Any]]
COLUMNS = ("route", "requests", "local", "degraded", "USD", "saved USD", "p50 ms edge", "p50 ms cloud")


def explain(
    ticket: Annotated[str, typer.Argument(help="The id from x-weighbridge-ticket.")],
    url: Url = DEFAULT_URL,
    tickets: Annotated[Path | None, typer.Option(help="A tickets file instead of a server.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Say in words where a request went, why, what left the machine, and what it cost."""
    if tickets is None:
        print(_in_words(tickets_of(url, api_key).ask("GET", ticket_path(ticket))))
        return
    found = [one for one in read_lines(tickets, TICKETS) if one.get("id") == ticket]
    if not found:
        raise BadInput(f"{tickets} holds no ticket {ticket!r}")
    print(_in_words(found[-1]))


def _in_words(record: dict[str, Any]) -> str:
    """A route's ticket, or that of a request for a model of the fleet, which knows no edge and no cloud."""
    return visible("\n".join(explained(record)) if record.get("scores") else in_words(record))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """What is looked at beside the tickets."""

    shadow: Path | None = knob(None, "Shadow evaluations: quality, suggestions.")
    router: Path | None = knob(None, "What `train` wrote: has the traffic drifted?")
    route: str | None = knob(None, "Only this route.")
    usd_per_quality: float = knob(0.01, "What a right answer is worth.", min=1e-9)
    html: Path | None = knob(None, "Write a page as well.")


@options
def report(
    tickets: Annotated[Path, typer.Option(help="The tickets file of the routes.")],
    *,
    told: ReportSettings,
    json_output: JsonOutput = False,
) -> None:
    """Share local, money saved, quality, latency; drift since training; better thresholds, if there are."""
    rows = _of(told.route, list(read_lines(tickets, TICKETS)), "model")
    judged = _of(told.route, list(read_lines(told.shadow, SHADOW)) if told.shadow else [], "route")
    summary = summarise(rows, judged)
    summary["suggestions"] = _suggestions(judged, told.usd_per_quality)
    if told.router is not None:
        summary["drift"] = asdict(drift(load_router(told.router), rows, judged))
    if told.html is not None:
        _write(told.html, as_html(summary))
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


def _suggestions(shadows: Rows, usd_per_quality: float) -> list[dict[str, Any]]:
    """For the pre-router and for the cascade, where enough was judged. The last row says what is set now."""
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
        shown = (
            outside(row["route"]),
            str(row["requests"]),
            f"{row['share_local']:.1%}",
            str(row["degraded"]),
        )
        money = (f"{row['cost_usd']:.6f}", f"{row['saved_usd']:.6f}")
        table.add_row(*shown, *money, _ms(row["edge_p50_ms"]), _ms(row["cloud_p50_ms"]))
    Console().print(table)
    for line in sentences(summary):
        print(visible(line))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
