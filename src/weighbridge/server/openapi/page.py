"""The interface as a page: what each endpoint is for, and the fields of what it is asked with. No scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from weighbridge.pages.html import Html, joined, page, table, tag

Document = Mapping[str, Any]

#: The groups, those that most people look for first.
ORDER = (
    "OpenAI",
    "Anthropic",
    "Ollama",
    "batches",
    "streams",
    "tokens",
    "figures",
    "server",
    "administration",
)


def shown(document: Document) -> str:
    """The document for people, grouped by its tags."""
    groups: dict[str, list[Html]] = {name: [] for name in ORDER}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_endpoint(document, path, method, operation))
    about = tag("p", document["info"]["description"], cls="soft")
    machine = tag("p", "For machines: ", tag("a", "/openapi.json", href="/openapi.json"), ", OpenAPI 3.1.")
    sections = [joined([tag("h2", name), *rows]) for name, rows in groups.items() if rows]
    return page(
        f"Weighbridge {document['info']['version']}: HTTP", tag("h1", "HTTP"), about, machine, *sections
    )


def _endpoint(document: Document, path: str, method: str, operation: Mapping[str, Any]) -> Html:
    head = tag(
        "summary", tag("code", f"{method.upper()} {path}"), " ", tag("span", operation["summary"], cls="soft")
    )
    rows = [*_parameters(operation), *_fields(document, operation)]
    body = (
        table(["field", "type", "where"], rows, words=True)
        if rows
        else tag("p", "It takes nothing.", cls="soft")
    )
    return tag("details", head, body)


def _parameters(operation: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for one in operation["parameters"]:
        yield one["name"], in_words(one["schema"]), one["in"]


def _fields(document: Document, operation: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    needed = set(schema.get("required", ()))
    for name, one in schema.get("properties", {}).items():
        yield name, in_words(one), "body, required" if name in needed else "body"


def in_words(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    for word in ("anyOf", "oneOf"):
        if word in schema:
            kinds = dict.fromkeys(in_words(one) for one in schema[word])
            return " or ".join(one for one in kinds if one != "null")
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {in_words(schema.get('items', {}))}"
    bounds = [
        f"{sign} {schema[word]}"
        for word, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="))
        if word in schema
    ]
    return " ".join([" or ".join(kind) if isinstance(kind, list) else str(kind), *bounds])
