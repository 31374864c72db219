"""`weighbridge init`: a configuration to begin with, for what is found on this machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from weighbridge.cli.fleet import checked_url
from weighbridge.cli.machine.findings import check_port, graphics_cards
from weighbridge.cli.terminal import outside, visible
from weighbridge.errors import BadInput, WeighbridgeError, said
from weighbridge.fleet.load.dialects import dialect
from weighbridge.fleet.replica import Timeouts
from weighbridge.fleet.replicas.http import HttpEndpoint
from weighbridge.fleet.replicas.probe import ProbedServer, probe_server
from weighbridge.models.catalogue import entries as catalogue
from weighbridge.models.catalogue.store import installed
from weighbridge.routes.config import parse_configuration
from weighbridge.state.documents import replace_file

#: Where engines listen unless told otherwise: vLLM, our own and llama-server, SGLang, Ollama, TGI, LM Studio.
PORTS = (8000, 8001, 8080, 8081, 30000, 11434, 3000, 1234)
#: One server has so long to say everything, in seconds.
PATIENCE = 10.0
_TIMEOUTS = Timeouts(connect=0.5, probe=3.0)
_LISTEN = (8080, 8090, 8888, 9080)
#: Clouds that a key in the environment gives access to.
_CLOUDS = {
    "OPENAI_API_KEY": ("https://api.openai.com", "openai"),
    "ANTHROPIC_API_KEY": ("https://api.anthropic.com", "anthropic"),
    "GEMINI_API_KEY": ("https://generativelanguage.googleapis.com", "gemini"),
}


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it; - prints it.")] = Path("weighbridge.yaml"),
    url: Annotated[
        list[str] | None, typer.Option(help="A server to put in, wherever it is; repeatable.")
    ] = None,
    look: Annotated[bool, typer.Option(help="Look for engines on this machine's usual ports.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a weighbridge.yaml for what is found here: engines that run, models, keys in the environment.

    Clouds are written as comments: nothing leaves this machine before you say so.
    """
    is_printed = str(file) == "-"
    if not is_printed and file.exists() and not force:
        raise BadInput(f"{file} is there already; name another file, or say --force", param="file")
    told = [checked_url(one) for one in url or ()]
    guessed = [f"http://127.0.0.1:{port}" for port in PORTS] if look else []
    found = asyncio.run(find_servers(told, [one for one in guessed if one not in told]))
    text = configuration(found, graphics_cards(), [name for name in _CLOUDS if os.environ.get(name)])
    parse_configuration(text, str(file), file.parent)  # what we write must hold
    if is_printed:
        print(visible(text), end="")
        return
    try:
        replace_file(file.resolve(), text.encode())
    except OSError as error:
        raise BadInput(f"{file} cannot be written: {said(error)}", param="file") from error
    console = Console(soft_wrap=True)
    for one in found:
        console.print(outside(f"found {one.dialect} at {one.url}: {one.model or 'no model told'}"))
    if not found:
        console.print(outside(f"found no engine: {_own_model()} is served here, in a process of its own"))
    console.print(outside(f"{file} is written. Next: weighbridge serve --config {file}"))


async def find_servers(told: list[str], guessed: list[str]) -> list[ProbedServer]:
    """What answers. Raises WeighbridgeError for a server that was told and does not; guesses may be wrong."""
    answers = await asyncio.gather(*map(_asked, [*told, *guessed]), return_exceptions=True)
    for one in answers[: len(told)]:
        if isinstance(one, BaseException):
            raise one
    return [one for one in answers if isinstance(one, ProbedServer)]


async def _asked(url: str) -> ProbedServer:
    endpoint = HttpEndpoint(url, dialect("openai"), timeouts=_TIMEOUTS)
    try:
        async with asyncio.timeout(PATIENCE):
            found = await probe_server(endpoint)
    except TimeoutError:
        raise WeighbridgeError(f"{url} did not say what it is within {PATIENCE:.0f} s") from None
    if not found.model and not found.needs_key:
        raise WeighbridgeError(f"{url} answers, but serves no model that it tells of")
    return found


def configuration(found: list[ProbedServer], cards: list[str], keys: list[str]) -> str:
    """The text of a weighbridge.yaml for the servers found; without any, for a model of our own."""
    models: dict[str, Any] = {}
    for one in found:
        models.setdefault(one.served_as, {"replicas": []})["replicas"].append(one.entry())
    if not models:
        models[_own_model()] = {"replicas": [{"process": _own_model()}]}
    first = next(iter(models))
    models[first] = {"aliases": ["default"], **models[first]} if first != "default" else models[first]
    taken = {url.rpartition(":")[2] for url in (one.url for one in found)}
    port = next((one for one in _LISTEN if str(one) not in taken and _is_free(one)), 0)
    document = {"listen": f"127.0.0.1:{port}", "models": models}
    lines = [
        "# Written by `weighbridge init`. `weighbridge config check` says what is wrong after a change,",
        "# `weighbridge config show` what it means with every default.",
        yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=False).rstrip(),
        *_clouds(keys),
        *_cards(cards, found),
        *_KEYS_HINT,
    ]
    return "\n".join(lines) + "\n"


_KEYS_HINT = (
    "",
    "# Keys, once others call: `weighbridge keys new` makes one and its hash.",
    "# tenants:",
    "#   alice:",
    "#     keys: [{key_env: ALICE_KEY}]",
    "#     limits: {tokens_per_minute: 100000}",
)


def _clouds(keys: list[str]) -> list[str]:
    """Comments for the clouds that there are keys for: prompts would leave this machine, so that is for a person."""
    lines = []
    for name in keys:
        url, kind = _CLOUDS[name]
        lines += ["", f"# {name} is set. A model of that cloud, if prompts may leave this machine:"]
        lines += [
            "#   NAME-OF-THE-MODEL:",
            f"#     replicas: [{{url: {url}, dialect: {kind}, key_env: {name}}}]",
        ]
    return lines


def _cards(cards: list[str], found: list[ProbedServer]) -> list[str]:
    if not cards or any(one.dialect in ("vllm", "sglang", "tgi") for one in found):
        return []
    shown = said(ValueError(", ".join(cards)))
    return [
        "",
        f"# There is a GPU: {shown}. Start an engine on it, then run `weighbridge init --force` again:",
        "#   vllm serve MODEL --port 8000",
        "# `weighbridge plan MODEL` says what fits, with the flags.",
    ]


def _own_model() -> str:
    """The model to serve where no engine runs: the largest that is here, or the default."""
    here = sorted(installed(), key=lambda one: one.size)
    return here[-1].entry.name if here else catalogue.DEFAULT.name


def _is_free(port: int) -> bool:
    try:
        check_port("127.0.0.1", port)
    except OSError:
        return False
    return True
