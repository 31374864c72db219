"""The document: paths from the table of endpoints, schemas from the types that read requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from weighbridge import __version__
from weighbridge.server.openapi.answers import ErrorBody
from weighbridge.server.openapi.narrow import NARROWED, NEEDED, NOT_BOTH, ONE_OF
from weighbridge.server.openapi.operations import OPERATIONS, SERVED, TICKET, Operation
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
    """An endpoint as the document needs it. `is_open`: nobody is asked for a key there; `is_near`: nobody who asks from
    the server's own machine."""

    method: str
    path: str
    is_open: bool = False
    is_near: bool = False


def document(
    rows: Sequence[ServedPath], protocols: Iterable[WireProtocol], models: Sequence[str], asks_keys: bool
) -> dict[str, Any]:
    """OpenAPI 3.1 of what a door serves. `models`: names that a request may ask for now. A row must be described in
    `OPERATIONS`; a protocol that is not is served all the same."""
    known = [(row, OPERATIONS[key_of(row.method, row.path)]) for row in rows]
    asking = [ServedPath("POST", one.path) for one in protocols]
    for row in asking:
        operation = OPERATIONS.get(key_of(row.method, row.path))
        known += [(row, operation)] if operation else []
    served = {key_of(row.method, row.path) for row, _ in known}
    types = [one for _, operation in known for one in (operation.asks, operation.answers) if one is not None]
    _, schemas = msgspec.json.schema_components([*dict.fromkeys(types), ErrorBody], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for row, operation in known:
        path = plain(row.path)
        told = _operation(row, operation, path, models)
        if row in asking and TICKET in served:
            _lead_to_ticket(told)
        if asks_keys and not row.is_open:
            told["security"] = [{"key": []}, *([{}] if row.is_near else [])]
        paths.setdefault(path, {})[row.method.lower()] = told
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


def _operation(row: ServedPath, operation: Operation, path: str, models: Sequence[str]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": _name(f"{row.method} {path}"),
        "parameters": [
            *({"name": one, "in": "path", "required": True, "schema": _hole(operation, one, models)}
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
    return told


def _hole(operation: Operation, name: str, models: Sequence[str]) -> dict[str, Any]:
    """What may stand in a path: any id, unless the operation knows better."""
    told = operation.holes.get(name, {"type": "string", "minLength": 1})
    return {"enum": list(models)} if told is SERVED and models else dict(told)


def _lead_to_ticket(told: dict[str, Any]) -> None:
    """Say that an answer names its ticket, and where that is."""
    good = told["responses"]["200"]
    good["headers"] = {"x-weighbridge-ticket": {"schema": {"type": "string"}}}
    link = {"operationId": _name(TICKET), "parameters": {"ticket": "$response.header.x-weighbridge-ticket"}}
    good.setdefault("links", {})[_name(TICKET)] = link


def _name(key: str) -> str:
    """An operation's name for programs: its method and path in one word."""
    method, _, path = key.partition(" ")
    return re.sub(r"\W+", "_", method.lower() + path).strip("_")


def _link(key: str, pointer: str) -> dict[str, Any]:
    [hole] = _HOLES.findall(key)
    return {"operationId": _name(key), "parameters": {hole: f"$response.body#{pointer}"}}


def _responses(operation: Operation) -> dict[str, Any]:
    content = (
        {kind: {} for kind in operation.texts}
        if operation.texts
        else _json(operation.answers)
        if operation.answers
        else {}
    )
    if operation.streams:
        content = {**content, operation.streams: {}}
    good: dict[str, Any] = {"description": "As asked.", "content": content}
    links = {_name(key): _link(key, "/id") for key in operation.leads}
    links |= {_name(key): _link(key, "/data/0/id") for key in operation.first_leads}
    if links:
        good["links"] = links
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
    if "model" in properties and (name.endswith("Request") or name == "NamedModel") and models:
        names: list[str | None] = list(models)
        if "model" not in (*schema.get("required", ()), *NEEDED.get(name, ())):
            names.append(None)
        properties["model"] = {"enum": names, "description": "A name of /v1/models."}
    told = {**schema, "properties": properties}
    if name in NEEDED:
        told["required"] = [*schema.get("required", ()), *NEEDED[name]]
    if name in NOT_BOTH:
        told["not"] = _given(*NOT_BOTH[name])
    if name in ONE_OF:
        told["oneOf"] = [_given(one) for one in ONE_OF[name]]
    return told


def _given(*names: str) -> dict[str, Any]:
    """That something is said in each of these fields: null says nothing."""
    return {
        "required": list(names),
        "properties": {name: {"not": {"type": "null"}} for name in names},
    }
