"""The page of the HTTP interface: made from what `/openapi.json` is made from, with every protocol and endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from tools.reference.markdown import MADE, code, filled, table, words

from weighbridge.server.openapi.document import ServedPath, document, key_of
from weighbridge.server.openapi.operations import OPERATIONS
from weighbridge.server.openapi.page import ORDER, in_words
from weighbridge.wire.protocols import PROTOCOLS

_INTRODUCTION = """# HTTP

{made}

A running server shows the same as OpenAPI 3.1 at `/openapi.json` and as a page at `/docs`. What the fields mean
beyond their
protocols is in [serving](../guide/serve.md#what-a-request-may-say), and how clients are set in
[clients](../guide/clients.md).

- **Keys**: `Authorization: Bearer KEY`, or `x-api-key`. Without keys on, nobody is asked for one.
- **Errors** have the shape of the protocol that was spoken; OpenAI's is `{{"error": {{"message", "type",
"param", "code"}}}}`.
- **Ticket**: each answer to a request for tokens names its ticket in `x-weighbridge-ticket`.
- **Headers** `x-weighbridge-NAME` say what the body's `weighbridge` can say, with dashes for underscores.
"""

#: What a request may have beside its protocol's own fields, in every protocol.
_EXTENSION = "Extension"


@cache
def page() -> str:
    told = whole()
    groups: dict[str, list[str]] = {name: [] for name in ORDER}
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            part = "\n".join(_endpoint(told, path, method, operation))
            groups.setdefault(operation["tags"][0], []).append(part)
    parts = [filled(_INTRODUCTION.format(made=MADE))]
    for name, endpoints in groups.items():
        if endpoints:
            parts += [f"## {name[0].upper()}{name[1:]}\n", *endpoints]
    return "\n".join([*parts, *_types(told)])


def whole() -> dict[str, Any]:
    """The document of a server with every protocol and every endpoint of any door."""
    known = {key_of("POST", one.path) for one in PROTOCOLS}
    rows = [ServedPath(*key.split(" ", 1)) for key in OPERATIONS if key not in known]
    return document(rows, PROTOCOLS, [], asks_keys=True)


def _endpoint(told: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}\n"
    yield f"{words(operation['summary'])} Answers {_answer(operation)}.\n"
    rows = [
        (code(one["name"]), in_words(one["schema"]), one["in"], "" if one["in"] == "query" else "required")
        for one in operation["parameters"]
    ]
    content = operation.get("requestBody", {}).get("content", {})
    for kind, body in content.items():
        schema = body["schema"]
        if "$ref" in schema:
            schema = told["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        rows += [(*row[:2], "body" if "json" in kind else "form", row[2]) for row in _fields(schema)]
    if rows:
        yield table(("field", "type", "where", "default"), rows)


def _answer(operation: Mapping[str, Any]) -> str:
    content = operation["responses"]["200"]["content"]
    kinds = [
        f"JSON ({in_words(body['schema'])})" if "schema" in body else code(kind)
        for kind, body in content.items()
    ]
    kinds = [kind.replace("JSON (Anything)", "JSON") for kind in kinds]
    return kinds[0] + "".join(f", or {kind} where a stream is asked for" for kind in kinds[1:])


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each field of a type: its name, what it is, its default."""
    needed = set(schema.get("required", ()))
    for name, one in schema.get("properties", {}).items():
        default = "required" if name in needed else ""
        if not default and one.get("default") not in (None, "", [], {}):
            default = code(
                one["default"] if not isinstance(one["default"], bool) else str(one["default"]).lower()
            )
        yield code(name), in_words(one), default


def _types(told: Mapping[str, Any]) -> Iterator[str]:
    """Types that fields of requests have, and that answers are."""
    schemas = told["components"]["schemas"]
    asked = {
        body["schema"]["$ref"].rpartition("/")[2]
        for methods in told["paths"].values()
        for operation in methods.values()
        for body in operation.get("requestBody", {}).get("content", {}).values()
        if "$ref" in body["schema"]
    }
    yield "## Types\n"
    yield "What fields and answers above are made of. Answers may have further fields of their protocol.\n"
    for name, schema in schemas.items():
        rows = list(_fields(schema))
        if name not in asked and rows:
            yield f"### {name}\n"
            if schema.get("description"):
                yield words(schema["description"]) + "\n"
            yield table(("field", "type", "default"), rows)
