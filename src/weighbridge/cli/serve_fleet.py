"""`weighbridge serve --config FILE` and `--replicas N`: the gateway over a fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from weighbridge.cli.terminal import errors
from weighbridge.errors import BadInput, WeighbridgeError

if TYPE_CHECKING:
    from weighbridge.fleet.api import Replica
    from weighbridge.fleet.config.spec import FleetSpec, ReplicaSpec, TenantSpec
    from weighbridge.routes.served import Served
    from weighbridge.routes.settings import HybridSettings
    from weighbridge.routes.side import SideSettings

#: Options of `serve` that belong to the engine and go on to each replica's process.
ENGINE_OPTIONS = (
    "dtype",
    "quantize",
    "max_model_len",
    "kv_cache_memory",
    "max_batch_tokens",
    "max_sequences",
    "itl_target",
    "prefix_cache",
    "speculate",
    "max_queue",
    "batching",
    "static_batch_size",
    "static_timeout",
    "check_integrity",
)


#: Options that say how the gateway itself behaves; given on the command line they win over the file.
GATEWAY_OPTIONS = ("host", "port", "tickets", "max_body", "drain_timeout")


def serve_fleet(context: typer.Context) -> None:
    """What `weighbridge serve` does when it was given a configuration, several replicas, or a place for them."""
    options = context.params
    hybrid = None
    if options["config"] is not None:
        served = _from_file(context)
        spec, hybrid = served.fleet, served.hybrid
    else:
        spec = _from_options(context)
    serve_spec(_overridden(spec, context), hybrid, json_logs=options["json_logs"])


def _from_file(context: typer.Context) -> Served:
    from weighbridge.routes.served import load_served

    allowed = {*GATEWAY_OPTIONS, "config", "json_logs", "api_key"}
    unheard = sorted(given_options(context) - allowed)
    if unheard:
        names = ", ".join("MODEL" if name == "model" else f"--{name.replace('_', '-')}" for name in unheard)
        raise BadInput(f"with --config the file says what is served; leave out {names}", param=unheard[0])
    return load_served(context.params["config"])


def _from_options(context: typer.Context) -> FleetSpec:
    options = context.params
    spec = replicated(
        options["model"] or "default",
        options["served_model_name"],
        options["replicas"],
        options["on"],
        engine_options(context),
    )
    if options["threads"] is None:
        return spec
    [model] = spec.models
    replicas = tuple(replace(one, threads=options["threads"]) for one in model.replicas)
    return replace(spec, models=(replace(model, replicas=replicas),))


def _overridden(spec: FleetSpec, context: typer.Context) -> FleetSpec:
    from weighbridge.engine.settings import parse_bytes

    values = {name: context.params[name] for name in GATEWAY_OPTIONS if name in given_options(context)}
    if "max_body" in values:
        values["max_body"] = parse_bytes(values["max_body"])
    tenants = (*spec.tenants, *_tenants(context.params["api_key"] or []))
    return replace(spec, **values, tenants=tenants)


def serve_spec(spec: FleetSpec, hybrid: HybridSettings | None = None, *, json_logs: bool) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain. `routes`: routes over the fleet."""
    from weighbridge.fleet.build import build_replica, load_tokenizers
    from weighbridge.fleet.gateway import Gateway
    from weighbridge.server.app import create_app
    from weighbridge.server.gateway.metrics import GatewayMetrics
    from weighbridge.server.gateway.service import GatewayService
    from weighbridge.server.lifecycle import bind, run_server, set_up_logging
    from weighbridge.server.settings import ServerSettings

    set_up_logging(json_logs)
    listener = bind(spec.host, spec.port)  # before anything starts: a taken port is said at once
    makers = LocalMakers(spec)
    makers.connect()
    gateway = Gateway(spec, lambda one: build_replica(one, makers.by_kind()), load_tokenizers(spec))
    if hybrid is not None and hybrid.routes:
        from weighbridge.server.gateway.routes import add_routes

        add_routes(gateway, hybrid)
    app = create_app(GatewayService(gateway, GatewayMetrics(gateway)))
    if not json_logs:
        announce(spec, hybrid, "{}:{}".format(*listener.getsockname()[:2]))
    settings = ServerSettings(drain_timeout=spec.drain_timeout, json_logs=json_logs)
    drained = run_server(app, gateway, listener, settings)
    if not drained:
        raise WeighbridgeError("some requests were cut off: the drain timeout was too short for them")


def announce(spec: FleetSpec, hybrid: HybridSettings | None, where: str) -> None:
    for model in spec.models:
        count = sum(one.count for one in model.replicas)
        errors.print(
            f"[bold]{model.name}[/] on [bold]http://{where}[/]: {count} replica{'s' * (count > 1)}, {model.policy}"
        )
    for route in hybrid.routes if hybrid is not None else ():
        sides = f"edge {shown_side(route.edge)}, cloud {shown_side(route.cloud)}"
        errors.print(f"[bold]{route.name}[/] on [bold]http://{where}[/]: {sides}")


def shown_side(side: SideSettings) -> str:
    return f"{side.model} at {side.shown}" if side.url else side.model


class LocalMakers:
    """Starts what a configuration wants started here, and shares this machine's cores among it."""

    def __init__(self, spec: FleetSpec) -> None:
        from weighbridge.fleet.replicas.process import own_cores, share_cores

        processes = [one for model in spec.models for one in model.replicas if one.kind == "process"]
        names = [
            f"{one.name}-{index}" if one.count > 1 else one.name
            for one in processes
            for index in range(one.count)
        ]
        self._cores = dict(zip(names, share_cores(len(names), own_cores()) if names else [], strict=True))
        self._ray = [one for model in spec.models for one in model.replicas if one.kind == "ray"]

    def connect(self) -> None:
        """Reach the Ray cluster before we serve: a missing one is said at once, and the signal handlers that Ray
        installs are replaced by our own, which drain."""
        if self._ray:
            from weighbridge.fleet.replicas.ray import connect

            connect(self._ray[0].ray.address)

    def by_kind(self) -> dict[str, Callable[[ReplicaSpec], Replica]]:
        return {"process": self.process, "engine": self.engine, "ray": self.ray}

    def process(self, spec: ReplicaSpec) -> Replica:
        from weighbridge.fleet.build import endpoint_of
        from weighbridge.fleet.replicas.process import ProcessReplica, Program, serve_command

        cores = self._cores.get(spec.name)
        options = list(spec.options)
        if spec.model is not None and "--served-model-name" not in options:
            options += ["--served-model-name", spec.model]
        if "--kv-cache-memory" not in options:
            options += ["--kv-cache-memory", str(self._memory_share())]
        threads = spec.threads or (len(cores) if cores else None)
        program = Program(serve_command(spec.target, options, threads), cores)
        return ProcessReplica(spec.name, program, lambda base: endpoint_of(spec, base))

    def _memory_share(self) -> int:
        """The default share of free memory is for one replica; several divide it."""
        from weighbridge.engine.settings import DEFAULT_MEMORY_SHARE, available_memory

        return int(available_memory() * DEFAULT_MEMORY_SHARE / max(len(self._cores), 1))

    def engine(self, spec: ReplicaSpec) -> Replica:
        """The model in this process; it is loaded before the gateway listens."""
        from weighbridge.cli.serve import SWITCH_INTERVAL, assemble, load
        from weighbridge.engine.settings import EngineSettings
        from weighbridge.fleet.replicas.local import LocalReplica
        from weighbridge.server.settings import ServerSettings

        if spec.options:
            raise BadInput(f"replica {spec.name!r}: `options` are for `process:`; an `engine:` has none")
        sys.setswitchinterval(SWITCH_INTERVAL)
        replica = load(spec.target, spec.model, EngineSettings(), "auto", "auto", spec.threads)
        app = assemble(replica, ServerSettings(), None)
        return LocalReplica(
            spec.name, app, start=replica.engine.start, stop=replica.engine.stop, timeouts=spec.timeouts
        )

    def ray(self, spec: ReplicaSpec) -> Replica:
        from weighbridge.fleet.replicas.ray import make_ray_replica

        return make_ray_replica(spec)


def replicated(model: str, name: str | None, count: int, on: str, options: Sequence[str]) -> FleetSpec:
    """The configuration that `--replicas N` stands for."""
    from weighbridge.fleet.config.spec import FleetSpec, ModelSpec, ReplicaSpec
    from weighbridge.models.files import catalogue
    from weighbridge.models.files.store import resolve

    if on not in ("local", "ray"):
        raise BadInput(f"--on {on!r} is not known: use local or ray", param="on")
    path = resolve(model)
    entry = catalogue.find(model)
    served = name or (entry.name if entry else path.stem if path.is_file() else path.name)
    spec = ReplicaSpec(
        name=f"{served}-replica" if on == "ray" else served,
        kind="process" if on == "local" else "ray",
        target=str(path),
        dialect="weighbridge",
        model=served,
        count=count,
        options=tuple(options),
    )
    models = (ModelSpec(name=served, replicas=(spec,), aliases=(), tokenizer=path),)
    return FleetSpec(models=models)


def given_options(context: typer.Context) -> set[str]:
    """Names of the options that were written on the command line, or in the environment."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def engine_options(context: typer.Context) -> list[str]:
    """The options given to `serve` that concern the engine, as they were given."""
    options: list[str] = []
    given = given_options(context)
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name not in ENGINE_OPTIONS or parameter.name not in given:
            continue
        if isinstance(value, bool):
            opposite = f"--no-{parameter.name.replace('_', '-')}"
            options.append(parameter.opts[0] if value else opposite)
        else:
            options += [parameter.opts[0], str(value)]
    return options


def _tenants(given: Sequence[str]) -> tuple[TenantSpec, ...]:
    """Tenants of `--api-key`."""
    from weighbridge.cli.serve import parse_keys
    from weighbridge.fleet.config.reader import Secret
    from weighbridge.fleet.config.spec import KeySpec, TenantSpec

    keys: dict[str, list[KeySpec]] = {}
    for key in parse_keys(list(given)):
        keys.setdefault(key.tenant, []).append(KeySpec(Secret(key.secret)))
    return tuple(TenantSpec(tenant, tuple(secrets)) for tenant, secrets in keys.items())
