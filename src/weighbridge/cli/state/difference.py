"""`weighbridge config diff`: how a running gateway differs from its file, by what was changed on either side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from weighbridge.cli.config import DEFAULT_FILE
from weighbridge.cli.fleet import AdminSettings
from weighbridge.cli.options import JsonOutput, options
from weighbridge.cli.terminal import outside, print_json
from weighbridge.fleet.config.difference import expanded
from weighbridge.fleet.config.spec import FleetSpec
from weighbridge.fleet.limits.stated import in_words, limits_of, written
from weighbridge.routes.config import load_configuration
from weighbridge.server.gateway.tenants import key_id
from weighbridge.wire.keys import digest_of


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the file has it. None: it is not there."""

    what: str
    name: str
    file: str | None
    running: str | None


@options
def diff(
    file: Annotated[Path, typer.Argument(help="The configuration.")] = DEFAULT_FILE,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 where they differ.")] = False,
    *,
    gateway: AdminSettings,
    json_output: JsonOutput = False,
) -> None:
    """Show where a running gateway is not as its file says: replicas, policies, keys and limits of tenants."""
    spec = load_configuration(file).fleet
    load = gateway.ask("GET", "/v1/load")["models"]
    replicas = gateway.ask("GET", "/admin/replicas")["data"]
    found = [
        *_models(spec, load),
        *_replicas(spec, replicas),
        *_tenants(spec, gateway.ask("GET", "/admin/tenants")),
    ]
    if json_output:
        print_json({"file": str(file), "same": not found, "differences": [asdict(one) for one in found]})
    else:
        console = Console(soft_wrap=True)
        for one in found:
            file_has, running = one.file or "not there", one.running or "not there"
            console.print(outside(f"{one.what} {one.name}: {file_has} in the file, {running} at the gateway"))
        if not found:
            console.print(outside(f"the gateway is as {file} says"))
    if found and exit_code:
        raise typer.Exit(1)


def _models(spec: FleetSpec, running: Mapping[str, Any]) -> Iterator[Difference]:
    own = {one.name: one for one in spec.models}
    for name in dict.fromkeys([*own, *running]):
        if name not in running:
            yield Difference("model", name, "there", None)
        elif name not in own:
            yield Difference("model", name, None, "there")
        elif own[name].policy != running[name]["policy"]:
            yield Difference("policy of", name, own[name].policy, running[name]["policy"])


def _replicas(spec: FleetSpec, running: list[dict[str, Any]]) -> Iterator[Difference]:
    own = {
        one.name: (model.name, one.target)
        for model in spec.models
        for replica in model.replicas
        for one in expanded(replica)
    }
    there = {one["name"]: one for one in running}
    for name in dict.fromkeys([*own, *there]):
        file = None if name not in own else "{} at {}".format(*own[name])
        one = there.get(name)
        runs = None if one is None else f"{one['model']} at {one['target']}"
        if runs is not None and one is not None and one["standing"] == "draining":
            runs += ", draining"
        if file != runs:
            yield Difference("replica", name, file, runs)


def _tenants(spec: FleetSpec, told: Mapping[str, Any]) -> Iterator[Difference]:
    others = written(spec.default_limits)
    if others != told["limits_of_others"]:
        running = in_words(limits_of(told["limits_of_others"]))
        yield Difference("limits of", "tenants that are not named", in_words(spec.default_limits), running)
    own, there = {one.name: one for one in spec.tenants}, {one["tenant"]: one for one in told["data"]}
    for name in dict.fromkeys([*own, *there]):
        tenant, one = own.get(name), there.get(name)
        limits = spec.default_limits if tenant is None else tenant.limits
        if one is None:
            yield Difference("tenant", name, "there", None)
            continue
        if written(limits) != one["limits"]:
            yield Difference("limits of", name, in_words(limits), in_words(limits_of(one["limits"])))
        keys = {key_id(digest_of(key.secret)) for key in tenant.keys} if tenant is not None else set()
        running_keys = {key["id"] for key in one["keys"]}
        for key in sorted(keys | running_keys):
            if (key in keys) != (key in running_keys):
                here, away = ("good" if key in keys else None), ("good" if key in running_keys else None)
                yield Difference(f"key {key} of", name, here, away)
