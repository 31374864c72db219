"""The document: paths from the table of endpoints, schemas from the types that read requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from weighbridge import __version__
from weighbridge.server.openapi.answers import ErrorBody
from weighbridge.server.openapi.narrow import NARROWED, NEEDED, ONE_OF
from weighbridge.server.openapi.operations import OPERATIONS, Operation
from weighbridge.wire.protocol import WireProtocol

_REF = "#/components/schemas/{name}"
_HOLES = re.compile(r"{(\w+)(?::\w+)?}")
_ABOUT = (
    "One endpoint over one model, a fleet, or routes between edge and cloud. Beside each protocol's own fields a "
    "body may have `weighbridge`: tenant, priority, deadline and more. Each answer to a request for tokens names its "
    "ticket in `x-weighbridge-ticket`; `/v1/tickets/{ticket}` says what was decided and why."
)


def key_of(method: str, path: str) -> str:
    """An endpoint's name in the table of operations: its method, and its path without the types of its holes."""
    return f"{method} {plain(path)}"


def plain(path: str) -> str:
    """A path as OpenAPI writes it: `/v1/models/{model:path}` is `/v1/models/{model}`."""
    return _HOLES.sub(r"{\1}", path)


@dataclass(frozen=True, slots=True)
class ServedPath:
    """An endpoint as the document needs it. `is_open`: nobody is asked for a key there."""

    method: str
    path: str
    is_open: bool = False


def document(
    rows: Sequence[ServedPath], protocols: Iterable[WireProtocol], models: Sequence[str], asks_keys: bool
) -> dict[str, Any]:
    """OpenAPI 3.1 of what a door serves. `models`: names that a request may ask for now. A row must be described in
    `OPERATIONS`; a protocol that is not is served all the same."""
    known = [(row, OPERATIONS[key_of(row.method, row.path)]) for row in rows]
    for row in [ServedPath("POST", one.path) for one in protocols]:
        operation = OPERATIONS.get(key_of(row.method, row.path))
        known += [(row, operation)] if operation else []
    types = [one for _, operation in known for one in (operation.asks, operation.answers) if one is not None]
    _, schemas = msgspec.json.schema_components([*dict.fromkeys(types), ErrorBody], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for row, operation in known:
        path = plain(row.path)
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, operation, path, asks_keys)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Weighbridge", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {name: _schema(name, schema, models) for name, schema in sorted(schemas.items())},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(row: ServedPath, operation: Operation, path: str, asks_keys: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": _name(f"{row.method} {path}"),
        "parameters": [
            *({"name": one, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
              for one in _HOLES.findall(path)),
            *({"name": one, "in": "query", "schema": schema} for one, schema in operation.query.items()),
        ],
        "responses": _responses(operation),
    }  # fmt: skip
    if operation.asks is not None:
        told["requestBody"] = {"required": True, "content": _json(operation.asks)}
    elif operation.form is not None:
        form = {"type": "object", "properties": operation.form, "required": list(operation.form)}
        told["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    if asks_keys and not row.is_open:
        told["security"] = [{"key": []}]
    return told


def _name(key: str) -> str:
    """An operation's name for programs: its method and path in one word."""
    method, _, path = key.partition(" ")
    return re.sub(r"\W+", "_", method.lower() + path).strip("_")


def _link(key: str) -> dict[str, Any]:
    [hole] = _HOLES.findall(key)
    return {"operationId": _name(key), "parameters": {hole: "$response.body#/id"}}


def _responses(operation: Operation) -> dict[str, Any]:
    content = (
        {operation.text: {}} if operation.text else _json(operation.answers) if operation.answers else {}
    )
    if operation.streams:
        content = {**content, operation.streams: {}}
    good: dict[str, Any] = {"description": "As asked.", "content": content}
    if operation.leads:
        good["links"] = {_name(key): _link(key) for key in operation.leads}
    failed = {"description": "What is wrong, and what to do about it.", "content": _json(ErrorBody)}
    return {"200": good, **({"503": good} if operation.busy else {}), "default": failed}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(name=kind.__name__)}}}


def _schema(name: str, schema: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """A type's schema with what its reader judges by itself, and with the names of models that are served."""
    properties = schema.get("properties")
    if properties is None:
        return schema
    properties = dict(properties)
    for field, closer in NARROWED.get(name, {}).items():
        if closer is None:
            properties.pop(field, None)
        elif field in properties:
            properties[field] = closer
    if "model" in properties and name.endswith("Request") and models:
        properties["model"] = {"type": "string", "enum": list(models), "description": "A name of /v1/models."}
    told = {**schema, "properties": properties}
    if name in NEEDED:
        told["required"] = [*schema.get("required", ()), *NEEDED[name]]
    if name in ONE_OF:
        told["oneOf"] = [{"required": [one]} for one in ONE_OF[name]]
    return told
