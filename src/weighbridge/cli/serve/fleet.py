"""The gateway over a fleet: `weighbridge serve --config FILE`, `--replicas N` and `--on ray`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from weighbridge.cli.serve.on_demand import CACHE, hint, planned
from weighbridge.cli.serve.running import CUT_OFF, SWITCH_INTERVAL, address, listening, served_name
from weighbridge.cli.terminal import errors
from weighbridge.engine.settings import DEFAULT_MEMORY_SHARE, EngineSettings, available_memory
from weighbridge.errors import BadInput, WeighbridgeError
from weighbridge.fleet.api import Replica
from weighbridge.fleet.config.command import SERVED_NAME, all_filled, filled, own_command
from weighbridge.fleet.config.difference import expanded
from weighbridge.fleet.config.spec import FleetSpec, KeySpec, ModelSpec, RaySpec, ReplicaSpec, TenantSpec
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.on_demand.residents import Residents
from weighbridge.fleet.replicas.build import build_replica, endpoint_of, load_tokenizers
from weighbridge.fleet.replicas.local import LocalReplica
from weighbridge.fleet.replicas.process import ProcessReplica, Program, own_cores, share_cores
from weighbridge.fleet.replicas.ray import (
    check_addresses,
    check_placeable,
    connect,
    make_ray_replica,
    standing,
)
from weighbridge.knobs import arguments, knobs
from weighbridge.models.catalogue.store import resolve
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import load_configuration
from weighbridge.routes.settings import RoutesSettings
from weighbridge.server.app import create_app
from weighbridge.server.door import Beside
from weighbridge.server.gateway.heap import given_back
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.reload import Reloading, Source
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.lifecycle import (
    begin_listening,
    check_files,
    check_reach,
    hold_hangups,
    run_server,
    set_up_logging,
)
from weighbridge.server.settings import ListenSettings, ServerSettings
from weighbridge.server.tracing.tracer import Tracer, trace, tracer_of
from weighbridge.server.upgrade.upgrade import Upgrade
from weighbridge.wire.keys import ApiKey

log = logging.getLogger("weighbridge.fleet")

#: Options that say how the server itself behaves, and not what it serves: they go with `--config`.
_SERVER_OPTIONS = {one.key for one in knobs(ServerSettings)}
#: What weighbridge.yaml has too; written on the command line it wins over the file.
_IN_FILES = {one.name for one in fields(FleetSpec)}


def spec_of_file(config: Path, written: Collection[str]) -> tuple[FleetSpec, RoutesSettings]:
    """The fleet and the routes of a file. `written`: the options that were given; BadInput for what the file says."""
    rest = sorted(set(written) - _SERVER_OPTIONS - {"config"})
    if rest:
        names = ", ".join("MODEL" if name == "model" else f"--{name.replace('_', '-')}" for name in rest)
        raise BadInput(f"with --config the file says what is served; leave out {names}", param=rest[0])
    read = load_configuration(config)
    return read.fleet, read.routes


def replicated(model: str, name: str | None, count: int, on: str, engine: EngineSettings) -> FleetSpec:
    """The configuration that `--replicas N` and `--on PLACE` stand for."""
    path = resolve(model)
    served = name or served_name(model, path)
    adapters = tuple(named.name for named in engine.lora)
    spec = ReplicaSpec(
        name=f"{served}-replica" if on == "ray" else served,
        kind="process" if on == "local" else "ray",
        target=model if on == "ray" and not Path(model).exists() else str(path),  # the worker finds its own
        dialect="weighbridge",
        model=served,
        count=count,
        threads=engine.threads,
        options=tuple(arguments(replace(engine, threads=None))),
        ray=RaySpec(keep=False),
    )
    return FleetSpec(models=(ModelSpec(name=served, replicas=(spec,), aliases=adapters, tokenizer=path),))


def overridden(spec: FleetSpec, server: ListenSettings, written: Collection[str]) -> FleetSpec:
    """The fleet with the options that were written on the command line, and with the tenants of `--api-key`."""
    told = [one for one in knobs(type(server)) if one.name in _IN_FILES and one.key in written]
    values: dict[str, Any] = {one.name: getattr(server, one.name) for one in told}
    tenants = (*spec.tenants, *_tenants(server.api_keys))
    priorities = dict(server.tenant_priorities)
    named = tuple(replace(one, priority=priorities.get(one.name, one.priority)) for one in tenants)
    others = priorities.keys() - {one.name for one in tenants}
    more = tuple(TenantSpec(name, priority=priorities[name]) for name in sorted(others))
    return replace(spec, **values, tenants=(*named, *more))


def _tenants(api_keys: tuple[ApiKey, ...]) -> tuple[TenantSpec, ...]:
    keys: dict[str, list[KeySpec]] = {}
    for key in api_keys:
        keys.setdefault(key.tenant, []).append(KeySpec(key.secret))
    return tuple(TenantSpec(tenant, tuple(secrets)) for tenant, secrets in keys.items())


def serve_spec(
    spec: FleetSpec,
    routes: RoutesSettings | None = None,
    *,
    json_logs: bool,
    beside: Callable[[GatewayService], Beside] | None = None,
    source: Source | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain. `routes`: routes over the fleet; `beside`: another door to it;
    `source`: reads all of it anew."""
    set_up_logging(json_logs)
    if source is not None:
        hold_hangups()
    # before anything starts: a taken port is said at once
    listener, taken = listening(spec.host, spec.port, spec.handover, spec.takeover)
    check_reach(listener, spec, any(tenant.keys for tenant in spec.tenants))
    check_files(spec)
    if said := hint(spec):
        log.warning("%s", said)
    on_demand = planned(spec)
    if on_demand is not None:
        spec = on_demand.spec
    tracer = tracer_of(spec)
    makers = LocalMakers(spec, tracer)
    makers.connect()
    gateway = Gateway(
        spec, lambda one: build_replica(one, makers.by_kind()), load_tokenizers(spec), standing=standing
    )
    usage = add_routes(gateway, routes if routes is not None else RoutesSettings())
    residents = None
    if on_demand is not None:
        source = None  # which models are there is not the file's alone to say
        residents = Residents(gateway, on_demand.settings, on_demand.needs, on_demand.memory)
    metrics = GatewayMetrics(gateway)
    service = GatewayService(gateway, metrics, usage, residents, source, routes)
    trace(service, metrics, tracer)
    app = create_app(service, beside=[beside(service)] if beside is not None else [])
    begin_listening(listener)
    if not json_logs:
        _announce(spec, routes, address(listener, spec))
        if on_demand is not None:
            errors.print(f"[dim]loaded on demand, {on_demand.in_words}[/]")
    with given_back():
        upgrade = Upgrade(taken, spec.handover, lambda: gateway.ready)
        drained = run_server(
            app, gateway, listener, spec, spec.drain_timeout, upgrade, _on_hangup(service.reloading)
        )
    if not drained:
        raise WeighbridgeError(CUT_OFF)


def _on_hangup(reloading: Reloading | None) -> Callable[[], None] | None:
    """What SIGHUP does on the event loop that serves."""
    if reloading is None:
        return None
    running: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.ensure_future(reloading.on_hangup())
        running.add(task)
        task.add_done_callback(running.discard)

    return reload


def _announce(spec: FleetSpec, routes: RoutesSettings | None, where: str) -> None:
    said = {
        model.name: f"{_counted(sum(one.count for one in model.replicas))}, {model.policy}"
        for model in spec.models
        if not model.only_routes
    }
    for route in routes.routes if routes is not None else ():
        said[route.name] = route.shown_places
    for name, what in said.items():
        errors.print(Text.assemble((name, "bold"), " on ", (where, "bold"), f": {what}"))


def _counted(replicas: int) -> str:
    return f"{replicas} replica{'s' * (replicas > 1)}"


def _process_names(models: Iterable[ModelSpec]) -> list[str]:
    """The names of all processes that `models` want started."""
    return [one.name for model in models for one in _processes(model)]


def _processes(model: ModelSpec) -> list[ReplicaSpec]:
    return [one for replica in model.replicas if replica.kind == "process" for one in expanded(replica)]


def _trace_options(spec: FleetSpec) -> list[str]:
    """What tells the servers that are started here where their spans go; variables they inherit."""
    options = ["--otlp-endpoint", spec.otlp_endpoint] if spec.otlp_endpoint is not None else []
    return options if spec.trace_ratio is None else [*options, "--trace-ratio", f"{spec.trace_ratio:g}"]


class LocalMakers:
    """Starts what a configuration wants started here, and shares this machine's cores among it."""

    def __init__(self, spec: FleetSpec, tracer: Tracer | None = None) -> None:
        self._tracer, self._traces = tracer, _trace_options(spec)
        lasting = _process_names(model for model in spec.models if not spec.is_on_demand(model))
        self._on_demand = frozenset(_process_names(spec.models)) - set(lasting)
        foreign = {one.name for model in spec.models for one in _processes(model) if one.command}
        names = [name for name in lasting if name not in foreign]  # others take the cores that they like
        self._cores = dict(zip(names, share_cores(len(names), own_cores()) if names else [], strict=True))
        self._ray = [one for model in spec.models for one in model.replicas if one.kind == "ray"]

    def connect(self) -> None:
        """Reach the Ray cluster before we serve: a missing one is said at once, and the signal handlers that Ray
        installs are replaced by our own, which drain."""
        if self._ray:
            check_addresses(self._ray)
            connect(next((one.ray.address for one in self._ray if one.ray.address is not None), None))
            for one in self._ray:
                check_placeable(one)

    def by_kind(self) -> dict[str, Callable[[ReplicaSpec], Replica]]:
        """What makes a replica of each kind."""
        return {"process": self.process, "engine": self.engine, "ray": make_ray_replica}

    def process(self, spec: ReplicaSpec) -> Replica:
        """A replica in a process of its own, which is started when it is first probed."""
        cores = self._cores.get(spec.name)
        if spec.command:
            program = _foreign(spec, again=spec.name not in self._on_demand)
            return ProcessReplica(spec.name, program, lambda base: endpoint_of(spec, base))
        options = list(spec.options)
        if spec.model is not None and SERVED_NAME not in options:
            options += [SERVED_NAME, spec.model]
        comes_and_goes = spec.name in self._on_demand
        if CACHE not in options:
            options += [CACHE, str(self._memory_share())]
        if "--otlp-endpoint" not in options:
            options += self._traces
        threads = spec.threads or (len(cores) if cores else None)
        program = Program(own_command(spec.target, options, threads), cores, again=not comes_and_goes)
        return ProcessReplica(spec.name, program, lambda base: endpoint_of(spec, base))

    def _memory_share(self) -> int:
        """The default share of free memory is for one replica; several divide it."""
        return int(available_memory() * DEFAULT_MEMORY_SHARE / max(len(self._cores), 1))

    def engine(self, spec: ReplicaSpec) -> Replica:
        """The model in this process; it is loaded before the gateway listens."""
        from weighbridge.cli.serve.model import (  # loads torch, which other kinds do not need
            assemble,
            load_any,
        )

        if spec.options:
            raise BadInput(f"replica {spec.name!r}: `options` are for `process:`; an `engine:` has none")
        sys.setswitchinterval(SWITCH_INTERVAL)
        replica = load_any(spec.target, spec.model, EngineSettings(threads=spec.threads))
        tracer = self._tracer.at_engine() if self._tracer is not None else None
        app = assemble(replica, ServerSettings(), tracer=tracer)
        return LocalReplica(
            spec.name, app, start=replica.engine.start, stop=replica.engine.stop, timeouts=spec.timeouts
        )


def _foreign(spec: ReplicaSpec, *, again: bool) -> Program:
    """The program that an entry's own command starts; it takes the cores that it likes."""
    name = spec.model or (spec.names[0] if spec.names else "")
    known = {"model": spec.target, "name": name, "key": spec.key.reveal() if spec.key is not None else ""}
    env = {variable: filled(value.reveal(), known) for variable, value in spec.env.items()}
    return Program(all_filled(spec.command, known), env=env, again=again, is_ours=False)
