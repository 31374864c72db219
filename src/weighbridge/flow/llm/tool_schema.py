"""Steps as tools of a model: their JSON schema, from signature and docstring."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import msgspec

from weighbridge.errors import BadInput
from weighbridge.flow.step import Step


def tool_schema(tool: Step[..., Any]) -> dict[str, Any]:
    """Return OpenAI's description of a tool. Raises BadInput for parameters JSON cannot describe."""
    described = tool.options.schema
    if described is None:
        described = _parameters(tool)
    function = {"name": tool.name, "parameters": described}
    text = inspect.getdoc(tool.function)
    if text:
        function["description"] = text
    return {"type": "function", "function": function}


def _parameters(tool: Step[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(tool.function)
    except Exception as error:
        raise BadInput(f"tool {tool.name}: its annotations cannot be read ({error})") from error
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(tool.function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise BadInput(f"tool {tool.name}: *{name} cannot be described to a model; name its parameters")
        try:
            properties[name] = msgspec.json.schema(hints.get(name, Any))
        except TypeError as error:
            raise BadInput(f"tool {tool.name}, parameter {name}: {error}") from error
        if parameter.default is parameter.empty:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def answer_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a type, closed (no further properties) as strict structured output wants it."""
    schema: dict[str, Any] = _closed(msgspec.json.schema(kind))
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    if name:
        definitions = schema["$defs"]
        schema = {**definitions[name], "$defs": definitions}
    return schema


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed
