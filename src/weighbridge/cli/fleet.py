"""`weighbridge fleet`: look at a running gateway's replicas, add, drain and remove them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from weighbridge.cli.options import DEFAULT_URL, ApiKey, JsonOutput, options
from weighbridge.cli.remote import Server
from weighbridge.cli.terminal import outside, print_json, visible
from weighbridge.cli.ticket import ticket_path
from weighbridge.errors import BadInput, WeighbridgeError, some_of
from weighbridge.fleet.abilities.ability import Ability
from weighbridge.fleet.api import Choice
from weighbridge.fleet.load.dialects import DIALECTS, dialect
from weighbridge.fleet.policies.explain import explain
from weighbridge.fleet.replica import Timeouts
from weighbridge.fleet.replicas.http import HttpEndpoint
from weighbridge.fleet.replicas.probe import ProbedServer, probe_server
from weighbridge.knobs import knob
from weighbridge.secret import Secret, without_account

Url = Annotated[str, typer.Option(envvar="WEIGHBRIDGE_URL", help="The gateway to ask.")]
GATEWAY_HINT = "is a gateway running there?"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSettings:
    """A gateway, and the right to change its fleet."""

    url: str = knob(DEFAULT_URL, "The gateway to ask.", environment="WEIGHBRIDGE_URL")
    admin_key: Secret | None = knob(
        None, "The gateway's admin_key.", environment="WEIGHBRIDGE_ADMIN_KEY", parse=Secret
    )

    def ask(self, method: str, path: str, body: Any = None, patience: float = 10.0) -> Any:
        """Ask with the operator's key."""
        return ask(method, self.url, path, self.admin_key, body, patience)


_COLOURS = {"up": "green", "starting": "yellow", "draining": "yellow"}


@options
def list_replicas(*, gateway: AdminSettings, json_output: JsonOutput = False) -> None:
    """All replicas, how they are, and what they have done."""
    load = load_of(gateway)
    console = Console()
    if json_output:
        print_json(load["models"])
    elif console.is_terminal:
        console.print(fleet_table(load, None, 0.0, console.width))
        console.print(Group(*reasons(load)))
    else:
        for line in plain_lines(load):
            print(line)


def explain_ticket(
    ticket: Annotated[str, typer.Argument(help="The id from x-weighbridge-ticket.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    json_output: JsonOutput = False,
) -> None:
    """Why a request went where it went: what it weighed, every try, and what stood against the other replicas."""
    record = ask("GET", url, ticket_path(ticket), api_key)
    lines = explained(record)
    if json_output:
        print_json({"ticket": ticket, "explanation": lines})
    else:
        Console().print(outside("\n".join(lines)))


def explained(ticket: dict[str, Any]) -> list[str]:
    """A gateway's ticket in words."""
    if not ticket.get("attempts"):
        return [
            f"no replica was chosen for {ticket['id']}: {ticket.get('error') or ticket.get('finish_reason')}"
        ]
    counted = "by the model's tokenizer" if ticket["exact"] else "estimated from bytes"
    lines = [
        f"{ticket['weighed_tokens']} prompt tokens ({counted}), about {ticket['predicted_output_tokens']:g} of output "
        f"expected, {ticket['output_tokens']} came",
        f"waited {1e3 * (ticket['scheduled'] - ticket['arrived']):.1f} ms for a replica",
        *ticket["decisions"],
    ]
    choice = Choice(ticket["replica"], "", ticket["scores"], ticket["score_unit"])
    lines += explain(choice, "")[1:]
    more = ticket.get("candidates", 0) - len(ticket["scores"])
    return [*lines, f"and {more} more"] if more > 0 else lines


@options
def add(
    replica: Annotated[
        str, typer.Argument(help="A URL, or a replica as JSON like an entry of weighbridge.yaml.")
    ],
    model: Annotated[
        str, typer.Option("--for", help="The model it serves; needed when there are several.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    dialect: Annotated[str | None, typer.Option(help=", ".join(DIALECTS) + ".")] = None,
    *,
    gateway: AdminSettings,
    json_output: JsonOutput = False,
) -> None:
    """Add a replica; it gets requests as soon as it answers."""
    entry = _entry(replica)
    entry |= {key: value for key, value in (("name", name), ("dialect", dialect)) if value is not None}
    if model:
        entry["for"] = model
    added = gateway.ask("POST", "/admin/replicas", entry)
    _say(added, json_output, "added " + ", ".join(one["name"] for one in added["data"]))


@options
def drain(
    replica: str,
    undo: Annotated[bool, typer.Option("--undo", help="Let it have requests again.")] = False,
    *,
    gateway: AdminSettings,
    json_output: JsonOutput = False,
) -> None:
    """Send nothing more to a replica; what runs there goes on."""
    action = "undrain" if undo else "drain"
    state = gateway.ask("POST", f"/admin/replicas/{quote(replica, safe='')}/{action}")
    text = f"{replica} is {state['standing']}, {state['requests']} requests in flight"
    _say(state, json_output, text)


@options
def remove(
    replica: str,
    timeout: Annotated[float, typer.Option(min=0.0, help="Seconds to wait for what runs there.")] = 30.0,
    *,
    gateway: AdminSettings,
    json_output: JsonOutput = False,
) -> None:
    """Drain a replica and take it out of the fleet."""
    path = f"/admin/replicas/{quote(replica, safe='')}?timeout={timeout:g}"
    answer = gateway.ask("DELETE", path, patience=timeout + 10.0)
    drained = "" if answer["drained"] else "; requests were cut off"
    _say(answer, json_output, f"removed {replica}{drained}")


@options
def reload(*, gateway: AdminSettings, json_output: JsonOutput = False) -> None:
    """Have the gateway read its weighbridge.yaml again, as SIGHUP does; open requests go on."""
    answer = gateway.ask("POST", "/admin/reload", patience=60.0)
    _say(answer, json_output, "\n".join([answer["summary"], *answer["failed"]]))


def probe(
    server: Annotated[str, typer.Argument(metavar="URL", help="The server, up to and without /v1.")],
    model: Annotated[str, typer.Option(help="The model to look at; none: the first that it lists.")] = "",
    key: Annotated[
        str | None, typer.Option(help="The key that it asks for.", envvar="WEIGHBRIDGE_SERVER_KEY")
    ] = None,
    trial: Annotated[
        bool, typer.Option("--try", help="Send it requests of a token or a few, to see what no page tells.")
    ] = False,
    json_output: JsonOutput = False,
) -> None:
    """Say what a server is and can, and the entry of weighbridge.yaml for it."""
    base = checked_url(server)
    endpoint = HttpEndpoint(base, dialect("openai"), Secret(key) if key else None, timeouts=PROBE_PATIENCE)
    found = asyncio.run(probe_server(endpoint, model, trial=trial))
    if found.is_unknown:
        raise WeighbridgeError(
            f"what answers at {base} has no list of models, no load and no abilities: it is no server of models, or "
            "has yet to start"
        )
    if json_output:
        print_json(found.as_dict())
        return
    console = Console(soft_wrap=True)
    for line in _found_in_words(found):
        console.print(outside(line))
    console.print()
    print(visible(found.configuration()), end="")


#: A server that is asked once may take its time: a trial computes.
PROBE_PATIENCE = Timeouts(connect=5.0, probe=60.0)


def checked_url(text: str) -> str:
    """A server's URL without what is added to it. Raises BadInput for what is none."""
    url = text.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise BadInput(f"{without_account(text)!r} is no URL; write for example http://127.0.0.1:8000")
    return url


def _found_in_words(found: ProbedServer) -> list[str]:
    """What was found of a server, a line for each thing that it tells."""
    told, report, abilities = found.told, found.report, found.abilities
    lines = [f"{found.dialect} {told.version}".rstrip() + f" at {found.url}"]
    if told.models:
        lines.append("serves " + some_of(list(told.models), most=8))
    if told.context:
        lines.append(
            f"context {told.context:,} tokens" + (f", {told.seats} requests at once" if told.seats else "")
        )
    for has, words in ((True, "can"), (False, "cannot")):
        named = [one.value for one in Ability if abilities.get(one) is has]
        if named:
            lines.append(f"{words}: {', '.join(named)}")
    unknown = [one.value for one in Ability if one not in abilities]
    if unknown:
        lines.append(f"not told: {', '.join(unknown)}")
    if report is not None:
        lines.append(
            f"load from {found.load_page}: {report.running_requests} running, {report.queued_requests} waiting"
        )
    return lines + [f"note: {note}" for note in found.notes]


def _entry(replica: str) -> dict[str, Any]:
    if not replica.lstrip().startswith("{"):
        return {"url": replica}
    try:
        entry = json.loads(replica)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the replica is no JSON: {error}") from error
    return dict(entry)


def _say(value: Any, as_json: bool, text: str) -> None:
    if as_json:
        print_json(value)
    else:
        Console().print(outside(text))


def ask(
    method: str, url: str, path: str, key: Secret | None = None, body: Any = None, patience: float = 10.0
) -> Any:
    """Ask a gateway. Raises BadInput for what it calls wrong, WeighbridgeError when it cannot be asked."""
    return Server(url, key, GATEWAY_HINT).ask(method, path, body, patience=patience)


def load_of(gateway: AdminSettings) -> Any:
    """The load of all models. Raises WeighbridgeError where they are not told."""
    load = gateway.ask("GET", "/v1/load")
    if not isinstance(load, dict) or "models" not in load:
        where = f"{without_account(gateway.url.rstrip('/'))}/v1/load"
        raise WeighbridgeError(
            f"{where} tells of no models: it is a single replica (`serve --config` starts a gateway), or a gateway "
            "that shows them to the operator and to watchers only: give its key with --admin-key"
        )
    return load


def plain_lines(load: dict[str, Any]) -> list[str]:
    """A replica a line, for pipes: model, name, standing, requests, finished, failed, why; a tab between."""
    return [
        "\t".join(
            visible(str(value)).replace("\t", " ").replace("\n", " ")
            for value in (model, *(one[key] for key in _PLAIN), one["why"] or "-")
        )
        for model, pool in load["models"].items()
        for one in pool["replicas"]
    ]


def reasons(load: dict[str, Any]) -> list[Text]:
    """Why replicas are not up, whole, below the tables: a column of them has no room for that."""
    replicas = [one for pool in load["models"].values() for one in pool["replicas"]]
    return [outside(f"{one['name']}: {one['why']}") for one in replicas if one["why"]]


_PLAIN = ("name", "standing", "requests", "finished", "failures")


#: Columns of the table by their headings, in the order in which they are given up on a narrow terminal, last first.
FIGURES = ("requests", "finished", "failed", "tok/s", "cached", "KV", "prompt left", "output left")
#: Characters that a column of figures takes with its border; and those of the columns that are always there.
_FIGURE_WIDTH, _BORDERS = 11, 7


def fleet_table(load: dict[str, Any], before: dict[str, Any] | None, seconds: float, width: int) -> Group:
    """A heading and a table for each model. `before`: the look `seconds` ago, for speeds. `width`: characters of the
    terminal."""
    parts: list[Text | Table] = []
    for name, model in load["models"].items():
        parts += [model_heading(name, model), _model_table(name, model, before, seconds, width)]
    return Group(*parts)


def model_heading(name: str, model: dict[str, Any]) -> Text:
    """What holds for all replicas of a model; it wraps where the table below it would cut it."""
    heading = outside(
        f"{name} · {model['policy']} · {model['queued_requests']} waiting "
        f"({model['queued_tokens']} tokens) · imbalance {model['imbalance']:.2f}"
    )
    heading.stylize("italic")
    return heading


def _model_table(
    name: str, model: dict[str, Any], before: dict[str, Any] | None, seconds: float, width: int
) -> Table:
    table = Table()
    headings = (("replica", "name"), ("standing", "standing"))
    longest = [
        max([len(heading), *(len(visible(str(one[key]))) for one in model["replicas"])])
        for heading, key in headings
    ]
    taken = _BORDERS + sum(longest)
    for (heading, _), characters in zip(headings, longest, strict=True):  # whole: it is what one looks for
        table.add_column(heading, min_width=characters if taken <= width else None, overflow="fold")
    shown = [one for one in FIGURES if one != "tok/s" or before is not None]
    shown = shown[: max((width - taken) // _FIGURE_WIDTH, 0)]
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    known = before["models"].get(name, {}).get("replicas", []) if before is not None else []
    earlier = {one["name"]: one for one in known}
    for one in model["replicas"]:
        table.add_row(*_row(one, earlier.get(one["name"], one), seconds, shown))
    return table


def _row(one: dict[str, Any], earlier: dict[str, Any], seconds: float, shown: list[str]) -> list[Text]:
    standing = outside(one["standing"])
    standing.stylize(_COLOURS.get(one["standing"], "red"))
    figures = figures_of(one, earlier, seconds)
    cells = (_written(heading, figures[heading], one) for heading in shown)
    return [outside(one["name"]), standing, *map(outside, cells)]


def figures_of(one: dict[str, Any], earlier: dict[str, Any], seconds: float) -> dict[str, float | None]:
    """A replica's figures by the headings of the table; None: not known. `earlier`: the same, `seconds` ago."""
    total, prompt = one["kv_tokens_total"], one["prompt_tokens"]
    made = one["output_tokens"] - earlier["output_tokens"]
    return {
        "requests": one["requests"],
        "prompt left": one["uncomputed_tokens"],
        "output left": one["remaining_output_tokens"],
        "KV": one["kv_tokens"] / total if total else one["kv_tokens"],
        "tok/s": made / seconds if seconds > 0.0 else None,
        "finished": one["finished"],
        "failed": one["failures"],
        "cached": one["cached_tokens"] / prompt if prompt else None,
    }


def _written(heading: str, figure: float | None, one: dict[str, Any]) -> str:
    if figure is None:
        return "-"
    if heading == "cached" or (heading == "KV" and one["kv_tokens_total"]):
        return f"{figure:.0%}"
    return f"{figure:.0f}" if heading == "tok/s" else str(figure)
