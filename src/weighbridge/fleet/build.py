"""Makes the adapter that a replica's configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.fleet.api import Replica
from weighbridge.fleet.config import FleetSpec, ReplicaSpec
from weighbridge.fleet.dialects import dialect
from weighbridge.fleet.http_replica import Endpoint, HttpReplica

Make = Callable[[ReplicaSpec], Replica]


def build_replica(spec: ReplicaSpec, local: dict[str, Make] | None = None) -> Replica:
    """`local` makes the kinds that need more than a URL: processes, engines in this process, Ray actors."""
    if spec.kind == "url":
        return HttpReplica(spec.name, endpoint_of(spec, spec.target))
    make = (local or {}).get(spec.kind)
    if make is None:
        raise BadInput(f"replica {spec.name!r}: `{spec.kind}:` cannot be started here; give a `url:`")
    return make(spec)


def endpoint_of(spec: ReplicaSpec, base: str) -> Endpoint:
    return Endpoint(
        base=base,
        dialect=dialect(spec.dialect),
        key=spec.key,
        headers=spec.headers,
        timeouts=spec.timeouts,
        probe_path=spec.probe_path,
    )


def load_tokenizers(spec: FleetSpec) -> dict[str, object]:
    """The tokenizers of models that have a path to one. Raises BadInput naming the model."""
    from weighbridge.models.tokenizer import load_tokenizer

    found: dict[str, object] = {}
    for model in spec.models:
        if model.tokenizer is not None:
            found[model.name] = _loaded(load_tokenizer, model.name, model.tokenizer)
    return found


def _loaded(load: Callable[[Path], object], model: str, path: Path) -> object:
    try:
        return load(path)
    except (BadInput, OSError, ValueError) as error:
        raise BadInput(f"model {model!r}: cannot read a tokenizer at {path}: {error}") from error
