"""Makes the adapter that a replica's configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.fleet.api import Replica
from weighbridge.fleet.config.spec import FleetSpec, ModelSpec, ReplicaSpec
from weighbridge.fleet.load.dialects import dialect
from weighbridge.fleet.load.weigher import Counter
from weighbridge.fleet.replicas.http import HttpEndpoint, HttpReplica
from weighbridge.fleet.replicas.messages import MessagesReplica

Make = Callable[[ReplicaSpec], Replica]


def build_replica(spec: ReplicaSpec, local: dict[str, Make] | None = None) -> Replica:
    """Return the adapter of a replica; `local` makes the kinds that need more than a URL: processes, engines
    in this process, Ray actors."""
    if spec.kind == "url":
        endpoint = endpoint_of(spec, spec.target)
        return (MessagesReplica if endpoint.dialect.speaks_messages else HttpReplica)(spec.name, endpoint)
    make = (local or {}).get(spec.kind)
    if make is None:
        raise BadInput(f"replica {spec.name!r}: `{spec.kind}:` cannot be started here; give a `url:`")
    return make(spec)


def endpoint_of(spec: ReplicaSpec, base: str) -> HttpEndpoint:
    speaks = dialect(spec.dialect)
    return HttpEndpoint(
        base=base,
        dialect=speaks,
        model=spec.model or next(iter(spec.names), ""),
        key=spec.key,
        account=spec.account,
        trust=spec.trust,
        headers=spec.headers,
        timeouts=spec.timeouts,
        probe_path=spec.probe_path,
        prefix=speaks.prefix if spec.prefix is None else spec.prefix,
        api_version=spec.api_version,
    )


def load_tokenizers(spec: FleetSpec) -> dict[str, Counter]:
    """The tokenizers of models that have a path to one, or a replica whose model is on this machine.

    None of one that encodes in a process of its own: requests are weighed on the event loop, then by their bytes.
    Raises BadInput naming the model.
    """
    paths = {model.name: _tokenizer_path(model) for model in spec.models}
    forgeable = {
        model.name
        for model in spec.models
        if any("--control-tokens-in-content" in replica.options for replica in model.replicas)
    }
    read = {
        name: _tokenizer(name, path, name in forgeable) for name, path in paths.items() if path is not None
    }
    return {name: tokenizer for name, tokenizer in read.items() if tokenizer is not None}


def _tokenizer_path(model: ModelSpec) -> Path | None:
    local = next((one.target for one in model.replicas if one.brings_tokenizer), None)
    if model.tokenizer is not None or local is None:
        return model.tokenizer
    from weighbridge.models.catalogue.store import resolve

    return resolve(local)


def _tokenizer(model: str, path: Path, control_tokens_in_content: bool) -> Counter | None:
    from weighbridge.models.text.tokenizer import (
        load_tokenizer,  # takes a second, which many gateways need not spend
    )

    try:
        tokenizer = load_tokenizer(path, control_tokens_in_content=control_tokens_in_content)
    except (BadInput, OSError, ValueError) as error:
        raise BadInput(f"model {model!r}: cannot read a tokenizer at {path}: {error}") from error
    return None if tokenizer.encodes_apart else tokenizer
