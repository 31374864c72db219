"""`weighbridge config`: is weighbridge.yaml right, and what does it mean."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from weighbridge.cli.options import JsonOutput
from weighbridge.cli.terminal import outside, print_json, visible, whole_table
from weighbridge.errors import BadInput
from weighbridge.fleet.config.load import config_text
from weighbridge.fleet.config.spec import FleetSpec, SharedLimitsSpec
from weighbridge.routes.config import Configuration, load_configuration, modernised, parse_configuration
from weighbridge.routes.settings import RouteSettings
from weighbridge.secret import SHOWN, Secret, split_account
from weighbridge.state.database import sentence
from weighbridge.state.documents import replace_file

_FILE = Annotated[Path, typer.Argument(help="The configuration.")]
DEFAULT_FILE = Path("weighbridge.yaml")
#: The account in a URL.
_ACCOUNT = re.compile(r"//[^/\s]*@")


def check(file: _FILE = DEFAULT_FILE, json_output: JsonOutput = False) -> None:
    """Read the file and say what is wrong, line by line; exit 2 when anything is."""
    try:
        read = load_configuration(file)
    except BadInput as error:
        if not json_output:
            raise
        print_json({"file": str(file), "ok": False, "problems": str(error).splitlines()})
        raise typer.Exit(2) from error
    spec = read.fleet
    counts = {
        "model": sum(1 for model in spec.models if not model.only_routes),
        "replica": sum(replica.count for model in spec.models for replica in model.replicas),
    }
    if read.routes.routes:
        counts["route"] = len(read.routes.routes)
    if json_output:
        print_json({"file": str(file), "ok": True, **{f"{name}s": n for name, n in counts.items()}})
    else:
        said = [f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items()]
        Console().print(outside(f"{file}: ok, {', '.join(said)}"))


def migrate(
    file: _FILE = DEFAULT_FILE,
    write: Annotated[bool, typer.Option("--write", help="Change the file; without it, only show.")] = False,
    json_output: JsonOutput = False,
) -> None:
    """Write settings that were renamed as they are now, and show the difference; comments keep their place."""
    old = config_text(file)
    new = modernised(old, str(file), file.parent)
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), str(file), f"{file} (new)", "", "", 2, ""
    )
    difference = _without_secrets("\n".join(lines), parse_configuration(new, str(file), file.parent))
    if write and new != old:
        _replace(file, new)
    if json_output:
        print_json({"file": str(file), "changed": new != old, "written": write, "diff": difference})
    elif new == old:
        print(visible(f"{file}: nothing is old"))
    else:
        print(visible(difference))
        print(visible(f"{file} is written" if write else f"{file} is as it was; --write changes it"))


def _replace(file: Path, text: str) -> None:
    """Raises BadInput where the file cannot be written; then it is as it was."""
    path = file.resolve()
    try:
        mode = path.stat().st_mode & 0o777
        replace_file(path, text.encode())
        os.chmod(path, mode)
    except OSError as error:
        raise BadInput(sentence(error, "configuration", file)) from error


def _without_secrets(text: str, read: Configuration) -> str:
    """A piece of the file for a terminal: the keys that it holds become stars."""
    for secret in sorted(set(_secrets(read)), key=len, reverse=True):
        text = text.replace(secret, SHOWN)
    return _ACCOUNT.sub(f"//{SHOWN}@", text)  # it may be written with other characters than it has


def _secrets(value: Any) -> Iterator[str]:
    if isinstance(value, Secret):
        if value:
            yield value.reveal()
    elif is_dataclass(value) and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield from _secrets(getattr(value, name))
    elif isinstance(value, tuple | list | frozenset | Mapping):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _secrets(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _secrets(one)


def show(file: _FILE = DEFAULT_FILE, json_output: JsonOutput = False) -> None:
    """The configuration with every default filled in; keys are not shown."""
    read = load_configuration(file)
    spec, routes = read.fleet, read.routes.routes
    if json_output:
        print_json({**plain(spec), "routes": plain(routes), "budgets": plain(read.routes.budgets)})
        return
    table = whole_table("model", "policy", "replica", "what", "where", "dialect", "calls it")
    for model in spec.models:
        for one in model.replicas:
            name = f"{one.name} x {one.count}" if one.count > 1 else one.name
            called = one.model or "as clients do"
            cells = (model.name, model.policy, name, one.kind, one.target, one.dialect, called)
            table.add_row(*map(outside, cells))
    console = Console()
    console.print(table)
    if routes:
        console.print(_routes(routes))
    console.print(outside(_settings(spec)))


def _routes(routes: Sequence[RouteSettings]) -> Table:
    table = whole_table("route", "places", "residency", "rules", "escalates below")
    for route in routes:
        below = f"{route.cascade.threshold:g}" if route.cascade.enabled else "never"
        rules = ", ".join(f"{rule.name}: {rule.residency}" for rule in route.policy.rules) or "none"
        cells = (route.name, route.shown_places, route.policy.default, rules, below)
        table.add_row(*map(outside, cells))
    return table


def _settings(spec: FleetSpec) -> str:
    lines = [f"listens on {spec.host}:{spec.port}"]
    parts = ("queue", "health", "retry", "breaker", *(("on_demand",) if spec.on_demand is not None else ()))
    for name in parts:
        values = ", ".join(
            f"{key} {'none' if value is None else value}"
            for key, value in asdict(getattr(spec, name)).items()
        )
        lines.append(f"{name}: {values}")
    for tenant in spec.tenants:
        limits = ", ".join(f"{k} {v:g}" for k, v in asdict(tenant.limits).items() if v is not None)
        lines.append(f"tenant {tenant.name}: {len(tenant.keys)} key(s); {limits or 'no limits'}")
    lines.append(f"shared_limits: {_shared(spec.shared_limits)}")
    if spec.peers is not None:
        told = [name for name in ("members", "learned") if getattr(spec.peers, name)]
        lines.append(f"shared with other gateways: {', '.join(told) or 'nothing beside limits'}")
    return "\n".join(lines)


def _shared(spec: SharedLimitsSpec | None) -> str:
    """Where limits are shared; a URL's user and options may hold a password."""
    if spec is None:
        return "none, each gateway counts alone"
    url = urlsplit(split_account(spec.redis.reveal())[0])
    where = f"{url.scheme}://{url.netloc}{url.path}"
    return f"redis {where}, prefix {spec.prefix}, timeout {spec.timeout:g}"


def plain(value: Any) -> Any:
    """Return dataclasses as plain JSON types; keys become stars."""
    if isinstance(value, Secret):
        return SHOWN
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return str(value) if isinstance(value, Path | IPv4Network | IPv6Network) else value
