"""`weighbridge usage`: what was used and what it cost, for bills."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from weighbridge.cli.config import DEFAULT_FILE
from weighbridge.cli.options import ApiKey
from weighbridge.cli.remote import Server
from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput
from weighbridge.fleet.config.load import config_text
from weighbridge.fleet.config.reader import read_yaml
from weighbridge.routes.ledger.books import LEDGER
from weighbridge.routes.ledger.usage import UsageQuery, UsageRow, usage_rows
from weighbridge.state.database import as_state_error, connect, version_of

#: Seconds that a ledger is waited for which another process keeps locked.
WAIT_SECONDS = 5.0
#: Rows that are read at one time.
PAGE_ROWS = 10_000
_NUMBERS = (
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "written_tokens",
    "output_tokens",
    "nano_usd",
    "budgeted_nano_usd",
)


class By(StrEnum):
    """Which time a line is of."""

    DAY = "day"
    MONTH = "month"


def export(
    csv_output: Annotated[bool, typer.Option("--csv", help="Print CSV; without it, JSON.")] = False,
    url: Annotated[str | None, typer.Option(help="Ask this server; none: read the ledger.")] = None,
    api_key: ApiKey = None,
    ledger: Annotated[
        Path | None, typer.Option(help="The ledger's file; none: that of weighbridge.yaml.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The configuration that names the ledger.")] = None,
    by: Annotated[By, typer.Option(help="A line for each day, or for each month.")] = By.DAY,
    first: Annotated[str, typer.Option("--from", help="The first day, such as 2026-11-01.")] = "",
    last: Annotated[str, typer.Option("--to", help="The last day.")] = "",
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
) -> None:
    """Print what was used and what it cost, by tenant, model and day or month, from a ledger or a server."""
    query = UsageQuery(first, last, by is By.MONTH, tenant, model, PAGE_ROWS)
    if url is not None:
        if ledger is not None or config is not None:
            raise BadInput("give --url, or --ledger or --config, not both")
        rows = _of_server(Server(url, api_key), query)
    else:
        rows = _of_file(ledger or _configured(config), query)
    if csv_output:
        _print_csv(by.value, rows)
    else:
        print_json({"by": by.value, "data": list(rows)})


def _of_file(path: Path, query: UsageQuery) -> Iterator[dict[str, Any]]:
    """The rows of a ledger, which others may be writing to."""
    if not path.is_file():
        raise BadInput(f"there is no ledger {path}; name one with --ledger, or ask a server with --url")
    with as_state_error("ledger", path), closing(connect(path, WAIT_SECONDS, read_only=True)) as db:
        if version_of(db, LEDGER, str(path)) < LEDGER.version:
            raise BadInput(
                f"{path} is a ledger of an older version; run `weighbridge state migrate {path}` first"
            )
        db.execute("BEGIN")  # all pages are of one moment
        while rows := usage_rows(db, query):
            yield from (_row(row, query.by_month) for row in rows)
            query = replace(query, offset=query.offset + len(rows))


def _row(row: UsageRow, by_month: bool) -> dict[str, Any]:
    fields = asdict(row)
    return {"month" if by_month else "day": fields.pop("period"), **fields}


def _of_server(server: Server, query: UsageQuery) -> Iterator[dict[str, Any]]:
    asked = {"from": query.first, "to": query.last, "tenant": query.tenant, "model": query.model}
    told = {name: value for name, value in asked.items() if value}
    offset = 0
    while True:
        page = {**told, "by": "month" if query.by_month else "day", "limit": PAGE_ROWS, "offset": offset}
        body = server.ask("GET", f"/v1/usage?{urlencode(page)}", patience=60.0)
        try:
            rows, more = body["data"], body["has_more"]
            yield from ({name: row[name] for name in row if name != "cost_usd"} for row in rows)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{server.url} answers /v1/usage in no shape that this version knows") from error
        if not more or not rows:
            return
        offset += len(rows)


def _print_csv(by: str, rows: Iterator[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([by, "tenant", "model", *_NUMBERS, "cost_usd"])
    for row in rows:
        numbers = [int(row[name]) for name in _NUMBERS]
        cost = dollars(int(row["nano_usd"]))
        writer.writerow([row[by], _cell(row["tenant"]), _cell(row["model"]), *numbers, cost])


def dollars(nano: int) -> str:
    """Nano-dollars as dollars, exactly."""
    return f"{nano // 10**9}.{nano % 10**9:09}"


def _cell(name: object) -> str:
    """A name as a cell. What a spreadsheet would take for a formula is made text: clients choose names."""
    text = str(name)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _configured(config: Path | None) -> Path:
    """The ledger that a configuration names. Its keys are not read, so that they need not be set here."""
    file = config or DEFAULT_FILE
    if config is not None or file.exists():
        root, _ = read_yaml(config_text(file), str(file))
        path: Path | None = root.path("ledger", file.parent, must_exist=False)
        if path is not None:
            return path
        raise BadInput(
            f"{file} names no `ledger:`, so usage is in the server's memory alone; ask it with --url URL"
        )
    raise BadInput(
        "there is no weighbridge.yaml here; name a ledger with --ledger, or ask a server with --url URL"
    )
