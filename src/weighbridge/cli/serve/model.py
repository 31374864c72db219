"""One model in this process: loaded with progress on the terminal, and served."""

from __future__ import annotations

import socket
import time
from concurrent.futures import Future
from typing import Any

from rich.text import Text
from starlette.types import ASGIApp

from weighbridge.cli.serve.running import address, serve_engine, served_name
from weighbridge.cli.terminal import DownloadBar, counting, errors
from weighbridge.engine.build import EngineReplica, build_replica
from weighbridge.engine.encoding.encoder import EncoderReplica, build_encoder
from weighbridge.engine.request import Guide
from weighbridge.engine.settings import EngineSettings
from weighbridge.errors import BadInput, some_of
from weighbridge.models.catalogue.store import resolve
from weighbridge.models.files.hf_config import is_native_body
from weighbridge.models.readers.form import LabelForm, VectorForm, form_of
from weighbridge.server.app import create_app
from weighbridge.server.engine.metrics import EngineMetrics
from weighbridge.server.engine.service import EngineService
from weighbridge.server.lifecycle import begin_listening
from weighbridge.server.settings import ServerSettings
from weighbridge.server.tracing.tracer import Tracer, trace, tracer_of
from weighbridge.server.upgrade.inherited import Taken
from weighbridge.ticket import TicketStore


def serve_model(
    model: str,
    name: str | None,
    engine: EngineSettings,
    server: ServerSettings,
    listener: socket.socket,
    began: float,
    taken: Taken | None = None,
) -> None:
    """Load a model and serve it. `name`: what clients call it; `began`: when the user asked, for the announcement.
    `taken`: from whom the listening socket was taken over."""
    tickets = TicketStore(
        path=server.tickets
    )  # before loading: a file that cannot be written is said at once
    tracer = tracer_of(server, by_engine=True)
    replica = load_any(model, name, engine)
    app = assemble(replica, server, tickets, tracer)
    begin_listening(listener)
    if not server.json_logs:
        _announce(replica, address(listener, server), time.monotonic() - began)
    serve_engine(app, replica.engine, listener, server, taken)


def load(model: str, name: str | None, settings: EngineSettings, *, quiet: bool = False) -> EngineReplica:
    """The replica for `model`: a name, a directory or a file. `name` None: what the catalogue or the path calls it."""
    path = resolve(model, progress=DownloadBar("Pulling the model"))
    with counting("Packing layers", quiet=quiet) as report:
        return build_replica(path, name or served_name(model, path), settings, report)


def load_any(model: str, name: str | None, settings: EngineSettings) -> EngineReplica | EncoderReplica:
    """As `load`; a model that reads texts whole has a replica of its own kind."""
    path = resolve(model, progress=DownloadBar("Pulling the model"))
    form = form_of(path)
    name = name or served_name(model, path)
    if form is None:
        return load(str(path), name, settings)
    if not (isinstance(form, VectorForm) and form.is_last_state and is_native_body(path)):
        return build_encoder(path, form, name, settings)
    replica = load(str(path), name, settings)  # on the paged cache, where prompts share their beginnings
    replica.engine.reads = form
    return replica


def _does(replica: EngineReplica | EncoderReplica) -> str:
    """What a model that writes nothing makes of a text."""
    form = replica.engine.reads
    if isinstance(form, LabelForm):
        return "a score" if len(form.labels) == 1 else f"scores of {len(form.labels)} labels"
    return f"embeddings of {replica.engine.hidden_size} numbers"


def _never(guide: Guide) -> Future[Any]:
    raise BadInput(
        "response_format: this model writes nothing that could be constrained", param="response_format"
    )


def assemble(
    replica: EngineReplica | EncoderReplica,
    settings: ServerSettings,
    tickets: TicketStore | None = None,
    tracer: Tracer | None = None,
) -> ASGIApp:
    """The ASGI application over a replica; its engine starts with the event loop."""
    engine = replica.engine
    metrics = EngineMetrics(engine, tickets or TicketStore(path=settings.tickets), settings.json_logs)
    engine.observers.append(metrics)
    compiled = replica.guides.compiled if isinstance(replica, EngineReplica) else _never
    service = EngineService(engine, replica.tokenizer, settings, metrics, compiled, engine.start)
    trace(service, metrics, tracer)
    return create_app(service)


def _adapters(replica: EngineReplica) -> str:
    names = [adapter.name for adapter in replica.engine.adapters()]
    return f", adapters {some_of(names)}" if names else ""


def _announce(replica: EngineReplica | EncoderReplica, where: str, seconds: float) -> None:
    if isinstance(replica, EncoderReplica) or replica.engine.reads is not None:
        what = f"{_does(replica)}, texts of up to {replica.max_model_len:,} tokens"
        where_text = ((replica.engine.model_name, "bold"), " on ", (where, "bold"))
        errors.print(Text.assemble(*where_text, f", ready in {seconds:.1f} s: {what}"))
        return
    pool = replica.num_blocks * replica.settings.block_size
    errors.print(
        Text.assemble(
            (replica.engine.model_name, "bold"),
            " on ",
            (where, "bold"),
            f", ready in {seconds:.1f} s: {replica.decoder.kernels.name} kernels, KV cache of {pool:,} tokens, "
            f"context {replica.max_model_len:,}{_adapters(replica)}",
        )
    )
    if not replica.calibrated:
        errors.print("[dim]step cost is the default; `weighbridge calibrate` measures this machine[/]")
