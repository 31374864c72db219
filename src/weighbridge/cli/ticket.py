"""`weighbridge ticket`: what was decided about a request, and why."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.terminal import print_json
from weighbridge.errors import BadInput, WeighbridgeError


def ticket(
    id: Annotated[
        str | None, typer.Argument(help="The id from x-weighbridge-ticket; none: the recent ones.")
    ] = None,
    url: Annotated[str, typer.Option(help="The server to ask.")] = "http://127.0.0.1:8080",
    api_key: Annotated[str | None, typer.Option(envvar="WEIGHBRIDGE_API_KEY", help="Its API key.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a request's ticket, or list the most recent tickets of a running server."""
    path = "/v1/tickets" if id is None else f"/v1/tickets/{id}"
    body = asyncio.run(fetch(url.rstrip("/") + path, api_key))
    if json_output:
        print_json(body)
    elif id is None:
        _print_list(body["data"])
    else:
        _print_one(body)


async def fetch(url: str, api_key: str | None) -> Any:
    """GET JSON from a Weighbridge server; errors say what to do."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
            session.get(url) as answer,
        ):
            body = await answer.json(content_type=None)
            if answer.status == 404:
                raise BadInput(body.get("error", {}).get("message", f"{url} does not exist"))
            if answer.status >= 400:
                raise WeighbridgeError(
                    body.get("error", {}).get("message", f"{url} answered {answer.status}")
                )
            return body
    except (aiohttp.ClientError, TimeoutError) as error:
        raise WeighbridgeError(
            f"no answer from {url} ({error}); is `weighbridge serve` running there?"
        ) from error


def _print_list(tickets: list[dict[str, Any]]) -> None:
    table = Table("ticket", "tenant", "model", "prompt", "cached", "output", "TTFT ms", "total ms", "finish")
    for one in tickets:
        table.add_row(
            one["id"],
            one["tenant"],
            one["model"],
            str(one["prompt_tokens"]),
            str(one["cached_tokens"]),
            str(one["output_tokens"]),
            f"{one['ttft_ms']:.0f}" if "ttft_ms" in one else "-",
            f"{one['e2e_ms']:.0f}" if "e2e_ms" in one else "-",
            one["finish_reason"] or "running",
        )
    Console().print(table)


def _print_one(ticket: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in ticket.items():
        table.add_row(name.replace("_", " "), "-" if value is None else str(value))
    Console().print(table)
