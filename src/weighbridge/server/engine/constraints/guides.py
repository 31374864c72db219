"""The constraint on a whole output that a request asks for, in whoever's words it does."""

from __future__ import annotations

from typing import Any

import msgspec

from weighbridge.engine.request import Guide
from weighbridge.server.engine.constraints.schemas import closed
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.constraints import GUIDES
from weighbridge.wire.protocols.openai import Common, StructuredOutputs

#: What tells a grammar of llama.cpp's from one of Lark's.
_GBNF = "::="


def guide_of(request: Common) -> Guide | None:
    """The constraint a request asks for, if any. Raises ApiError when it asks for two, or for an empty one."""
    guides = _of_format(request)
    if request.structured_outputs is not None:
        guides += _of_structured(request.structured_outputs)
    for field, kind in GUIDES.items():
        value = getattr(request, field)
        if value is not None and value != "":
            guides.append(_guide(kind, value, field))
    if len(guides) > 1:
        raise ApiError(400, "only one constraint on the output can be given", param="structured_outputs")
    return guides[0] if guides else None


def _of_format(request: Common) -> list[Guide]:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [Guide("json_object", "") if wanted.schema is None else schema_guide(wanted.schema)]
    schema = wanted.json_schema.schema if wanted.json_schema else None
    if schema is None:
        raise ApiError(400, "response_format: json_schema.schema is required", param="response_format")
    return [schema_guide(schema)]


def _of_structured(extra: StructuredOutputs) -> list[Guide]:
    if extra.disable_any_whitespace:
        message = "structured_outputs.disable_any_whitespace: is not supported here; leave it out"
        raise ApiError(400, message, param="structured_outputs")
    guides = [Guide("json_object", "")] if extra.json_object else []
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(extra, kind)
        if value is not None:
            guides.append(_guide(kind, value, f"structured_outputs.{kind}"))
    return guides


def _guide(kind: str, value: Any, field: str) -> Guide:
    if kind == "json":
        return schema_guide(_plain_schema(value, field))
    if kind == "choice":
        return Guide("choice", msgspec.json.encode(value).decode())
    if kind == "grammar":
        return Guide("gbnf" if _GBNF in value else "lark", value)
    return Guide(kind, value)


def schema_guide(schema: Any) -> Guide:
    """The constraint that a schema is, closed where it does not say that it is open."""
    return Guide("json_schema", msgspec.json.encode(closed(schema)).decode())


def _plain_schema(given: Any, field: str) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(400, f"{field}: is not valid JSON: {error}", param=field.partition(".")[0]) from error
