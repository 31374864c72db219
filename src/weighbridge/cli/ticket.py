"""`weighbridge ticket`: what was decided about a request, and why."""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import DEFAULT_URL, ApiKey, JsonOutput, Url
from weighbridge.cli.remote import Server
from weighbridge.cli.terminal import outside, print_json, visible
from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire.ask import LONGEST_NAME

HEADINGS = ("ticket", "tenant", "model", "prompt", "cached", "output", "TTFT ms", "total ms", "finish")
#: Which of them are left out on a narrow terminal, the first first.
GIVEN_UP = ("cached", "TTFT ms", "prompt", "output", "total ms")


def ticket(
    id: Annotated[
        str | None,
        typer.Argument(help="The id from x-weighbridge-ticket, or how it begins; none: the recent ones."),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    json_output: JsonOutput = False,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Show where its prompt left the one before it.")
    ] = False,
) -> None:
    """Show a request's ticket, or list the most recent tickets of a running server."""
    server = tickets_of(url, api_key)
    if prefix and id is None:
        raise BadInput("--prefix is about one ticket; give its id", param="prefix")
    body = server.ask("GET", "/v1/tickets" if id is None else ticket_path(id))
    if prefix:
        _show_prefix(body, json_output)
        return
    if json_output:
        print_json(body)
    else:
        console = Console()
        console.print(_list(body["data"], console.width) if id is None else _single(body))


def _show_prefix(ticket: dict[str, Any], json_output: bool) -> None:
    told, ruled = ticket.get("prefix"), ticket.get("prompt_rules")
    if json_output:
        shown = {name: ticket.get(name) for name in ("id", "cached_tokens", "prefix", "prompt_rules")}
        print_json(shown)
        return
    if ruled is not None:
        _show_rules(ruled)
    if told is None:
        remedy = "it had none, or goes on from it, or the server was not started with --prefix-care"
        print(f"nothing is known of a prompt that this one left: {remedy}")
    else:
        took = "" if told["ms"] is None else f", about {told['ms']:g} ms"
        print(f"left the prompt before it at token {told['left_at_token']}")
        print(visible(f"there stood    {told['stood']!r}"))
        print(visible(f"now stands     {told['stands']!r}"))
        print(
            f"computed again {told['tokens_behind']} tokens{took}; {ticket['cached_tokens']} came from the cache"
        )


def _show_rules(ruled: dict[str, Any]) -> None:
    """What rules for prompts touched, and what they are worth."""
    for one in ruled["touched"]:
        count = f", {one['lines']} line{'s' * (one['lines'] != 1)}" if "lines" in one else ""
        print(visible(f"rule {one['rule']}: {one['what']}{count}"))
    if ruled["left_at"] is None:
        print("nothing of it had moved since the last prompt like it")
    else:
        print(f"about {ruled['tokens_saved']} tokens came from the cache because of that")


def tickets_of(url: str, api_key: Secret | None) -> Server:
    """A server that is asked for tickets: one that it does not have is the user's mistake, anything else is not."""
    return Server(url, api_key, mistakes={404})


def ticket_path(id: str) -> str:
    """Where a server answers one ticket."""
    return f"/v1/tickets/{quote(id, safe='')}"


def _list(tickets: list[dict[str, Any]], width: int) -> Table:
    """As many columns as there is room for: what names a request stays, and is folded before it is cut."""
    shown = _shortest({one["id"] for one in tickets})
    rows = [[outside(cell) for cell in _cells(one, shown)] for one in tickets]
    needs = [
        max([len(heading), *(row[place].cell_len for row in rows)]) + 3
        for place, heading in enumerate(HEADINGS)
    ]
    kept = list(range(len(HEADINGS)))
    for heading in GIVEN_UP:
        if sum(needs[place] for place in kept) + 1 > width:
            kept.remove(HEADINGS.index(heading))
    table = Table()
    for place in kept:
        folds = HEADINGS[place] in ("tenant", "model")
        table.add_column(HEADINGS[place], no_wrap=not folds, overflow="fold")
    for row in rows:
        table.add_row(*(row[place] for place in kept))
    return table


def _cells(one: dict[str, Any], shown: int) -> tuple[object, ...]:
    """A ticket's figures by `HEADINGS`."""
    return (
        one["id"][:shown],
        one["tenant"],
        one["model"],
        one["prompt_tokens"],
        one["cached_tokens"],
        one["output_tokens"],
        f"{one['ttft_ms']:.0f}" if "ttft_ms" in one else "-",
        f"{one['e2e_ms']:.0f}" if "e2e_ms" in one else "-",
        one["finish_reason"] or "running",
    )


def _shortest(ids: Set[str]) -> int:
    """How many characters tell all of them apart: a ticket is asked for by its beginning too."""
    return next((most for most in range(8, 32) if len({one[:most] for one in ids}) == len(ids)), LONGEST_NAME)


def _single(ticket: dict[str, Any]) -> Table:
    """What a ticket says, a name and its value to a line; what it has nothing about is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    arrived = ticket.get("arrived") or 0.0
    for name, value in ticket.items():
        if value is None or value in ("", [], {}):
            continue
        shown = "" if name == "legs" and _says_the_same(value) else _told(name, value, arrived)
        if shown:
            table.add_row(outside(name.replace("_", " ")), outside(shown))
    return table


def _says_the_same(legs: list[dict[str, Any]]) -> bool:
    """Whether the one leg of a request is the request: no route took it anywhere."""
    return len(legs) == 1 and not legs[0].get("place")


def _told(name: str, value: Any, arrived: float) -> str:
    """A value of a ticket for people. `arrived`: when the request came, in seconds since the epoch."""
    if name == "arrived":
        return datetime.fromtimestamp(value).astimezone().isoformat(" ", "milliseconds")
    if name in _LATER:
        return f"{(value - arrived) * 1e3:.0f} ms after it arrived"
    if name == "trace":
        return str(value["trace_id"]) + ("" if value["sampled"] else " (not sampled: its spans are not sent)")
    if name == "legs":
        return "\n".join(_leg(one, arrived) for one in value)
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_told('', one, arrived)}" for key, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


#: Times of a ticket that say more as how long it had been there.
_LATER = ("scheduled", "first_token", "finished")


def _leg(leg: dict[str, Any], arrived: float) -> str:
    """A leg of a route's request in one line."""
    where = " ".join(filter(None, (leg["place"], leg["model"], leg["replica"])))
    if leg["purpose"] != "answer":
        where += f" ({leg['purpose']})"
    took = "" if leg["finished"] is None else f", until {_told('finished', leg['finished'], arrived)}"
    paid = f", {leg['usd']:.6g} USD" if leg["usd"] else ""
    ended = leg["error"] or leg["outcome"] or "running"
    return f"{where}: {leg['prompt_tokens']} + {leg['output_tokens']} tokens{took}{paid}, {ended}"
