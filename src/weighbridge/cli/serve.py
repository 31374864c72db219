"""`weighbridge serve`: one model behind the OpenAI API."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weighbridge.cli.terminal import DownloadBar, counting, errors
from weighbridge.errors import WeighbridgeError

if TYPE_CHECKING:
    from weighbridge.engine.build import Replica
    from weighbridge.wire.keys import ApiKey

#: How long one thread may hold the interpreter while the other waits, in seconds. The engine's thread asks
#: for it after every kernel, so the default of 5 ms would add up to a stall.
SWITCH_INTERVAL = 0.0001


def serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Name, directory, .gguf file or hub name; none: the default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    served_model_name: Annotated[str | None, typer.Option(help="The name clients use.")] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or auto (what this CPU multiplies fastest).")
    ] = "auto",
    quantize: Annotated[
        str, typer.Option(help="auto (as the file keeps them), none, int8 or int4: weights in fewer bits.")
    ] = "auto",
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt and answer together, in tokens.")
    ] = None,
    kv_cache_memory: Annotated[str | None, typer.Option(help="Memory of the KV cache, such as 2GiB.")] = None,
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one iteration.")] = 2048,
    max_sequences: Annotated[int, typer.Option(min=1, help="Requests in one batch.")] = 256,
    itl_target: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Gap between tokens to keep while prompts run, in ms; none: about twice a decode step.",
        ),
    ] = None,
    prefix_cache: Annotated[bool, typer.Option(help="Share equal prompt beginnings.")] = True,
    speculate: Annotated[
        bool, typer.Option(help="Guess tokens by looking them up in the text so far.")
    ] = True,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are refused with 429.")
    ] = 4096,
    batching: Annotated[
        str, typer.Option(help="continuous, or static: the classic baseline.")
    ] = "continuous",
    static_batch_size: Annotated[int, typer.Option(min=1, help="With --batching static.")] = 16,
    static_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds a static batch waits to fill.")
    ] = 0.1,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads; none: one per core.")] = None,
    expert_cache: Annotated[
        str | None,
        typer.Option(help="Memory for the experts of a mixture, such as 4GB; the rest is mapped. None: all."),
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="WEIGHBRIDGE_API_KEYS", help="KEY or TENANT=KEY; may repeat.")
    ] = None,
    max_body: Annotated[str, typer.Option(help="Largest request body.")] = "8MiB",
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds to finish accepted requests on SIGTERM.")
    ] = 30.0,
    tickets: Annotated[Path | None, typer.Option(help="Append every ticket to this JSONL file.")] = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log JSON lines.")] = False,
    check_integrity: Annotated[
        bool, typer.Option("--check-integrity", help="Check the KV accounting whenever idle.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="Serve the fleet that this weighbridge.yaml describes.")
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Processes of this model behind one endpoint, sharing the cores.")
    ] = 1,
    on: Annotated[str, typer.Option(help="Where replicas run: local, or ray.")] = "local",
) -> None:
    """Serve a model over the OpenAI API until SIGTERM or Ctrl-C."""
    if config is not None or replicas > 1 or on != "local":
        from weighbridge.cli.serve_fleet import serve_fleet

        serve_fleet(context)
        return
    from weighbridge.engine.settings import EngineSettings, parse_bytes
    from weighbridge.server.lifecycle import bind, run_server, set_up_logging
    from weighbridge.server.settings import ServerSettings

    began = time.monotonic()
    set_up_logging(json_logs)
    engine_settings = EngineSettings(
        max_model_len=max_model_len,
        kv_cache_memory=parse_bytes(kv_cache_memory) if kv_cache_memory else None,
        max_batch_tokens=max_batch_tokens,
        max_sequences=max_sequences,
        itl_target=None if itl_target is None else itl_target / 1e3,
        enable_prefix_cache=prefix_cache,
        speculate=speculate,
        max_queue_requests=max_queue,
        batching=batching,
        static_batch_size=static_batch_size,
        static_timeout=static_timeout,
        check_integrity=check_integrity,
    )
    server_settings = ServerSettings(
        api_keys=parse_keys(api_key or []),
        max_body=parse_bytes(max_body),
        drain_timeout=drain_timeout,
        json_logs=json_logs,
    )
    listener = bind(host, port)  # before loading: a taken port is said at once
    replica = load(
        model or "default", served_model_name, engine_settings, dtype, quantize, threads, expert_cache
    )
    app = assemble(replica, server_settings, tickets)
    where = "{}:{}".format(*listener.getsockname()[:2])
    if not json_logs:
        announce(replica, where, time.monotonic() - began)
    sys.setswitchinterval(SWITCH_INTERVAL)
    drained = run_server(app, replica.engine, listener, server_settings)
    replica.engine.stop()
    if not drained:
        raise WeighbridgeError("some requests were cut off: the drain timeout was too short for them")


def load(  # type: ignore[no-untyped-def]
    model: str,
    name: str | None,
    settings,
    dtype: str,
    quantize: str,
    threads: int | None,
    expert_cache: str | None = None,
) -> Replica:
    """The replica for `model`, with progress on the terminal."""
    from weighbridge.engine.build import build_replica
    from weighbridge.engine.settings import parse_bytes
    from weighbridge.models.files import catalogue
    from weighbridge.models.files.store import resolve

    path = resolve(model, progress=DownloadBar("Pulling the model"))
    entry = catalogue.find(model)
    served = name or (entry.name if entry else path.stem if path.is_file() else path.name)
    with counting("Packing layers") as report:
        return build_replica(
            path,
            served,
            settings,
            dtype=dtype,
            quantize=quantize,
            threads=threads,
            report=report,
            expert_cache=parse_bytes(expert_cache) if expert_cache else None,
        )


def assemble(replica: Replica, settings, tickets: Path | None):  # type: ignore[no-untyped-def]
    """The ASGI application over a replica; its engine starts with the event loop."""
    from weighbridge.server.app import create_app
    from weighbridge.server.engine.metrics import EngineMetrics
    from weighbridge.server.engine.service import EngineService
    from weighbridge.ticket import TicketStore

    engine = replica.engine
    metrics = EngineMetrics(engine, TicketStore(path=tickets), settings.json_logs)
    engine.observers.append(metrics)
    validate = replica.guides.validate
    return create_app(EngineService(engine, replica.tokenizer, settings, metrics, validate, engine.start))


def announce(replica: Replica, where: str, seconds: float) -> None:
    pool = replica.num_blocks * replica.settings.block_size
    errors.print(
        f"[bold]{replica.engine.model_name}[/] on [bold]http://{where}[/], ready in {seconds:.1f} s: "
        f"{replica.decoder.kernels.name} kernels, KV cache of {pool:,} tokens, context {replica.max_model_len:,}"
    )
    if not replica.calibrated:
        errors.print("[dim]step cost is the default; `weighbridge calibrate` measures this machine[/]")


def parse_keys(values: list[str]) -> tuple[ApiKey, ...]:
    """KEY or TENANT=KEY each. Raises BadInput for an empty one."""
    from weighbridge.wire.keys import parse_key

    return tuple(parse_key(value) for value in values)
