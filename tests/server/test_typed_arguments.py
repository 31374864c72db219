"""Arguments between tags become JSON by the types of the tool's schema, whatever that schema holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.server.styles.typed import kinds_of, typed

SCHEMAS: list[tuple[Any, set[str]]] = [
    ({"type": "integer"}, {"integer"}),
    ({"type": ["string", "null"]}, {"string", "null"}),
    ({"anyOf": [{"type": "number"}, {"type": "null"}]}, {"number", "null"}),
    ({"enum": ["a", 1]}, {"string", "integer"}),
    ({"const": True}, {"boolean"}),
    ({"$ref": "#/$defs/Size"}, {"object"}),
    ({"allOf": [{"$ref": "#/$defs/Size"}], "description": "How large."}, {"object"}),
    ({"items": {"type": "string"}}, {"array"}),
    ({"$ref": "#/$defs/Endless"}, set()),
    ({"$ref": "https://else.where"}, set()),
    ({"anyOf": 7, "type": {"a": 1}, "enum": "abc"}, set()),
    ({}, set()),
    (True, set()),
    (None, set()),
]
DEFINITIONS = {"Size": {"properties": {}}, "Endless": {"anyOf": [{"$ref": "#/$defs/Endless"}] * 1000}}


@pytest.mark.parametrize(("schema", "kinds"), SCHEMAS)
def test_the_types_of_a_parameter_are_found(schema: Any, kinds: set[str]) -> None:
    assert kinds_of({"properties": {"key": schema}, "$defs": DEFINITIONS}, "key") == kinds


@pytest.mark.parametrize("schema", [None, True, 7, {"properties": 7}, {"properties": {}}])
def test_a_schema_that_says_nothing_has_no_types(schema: Any) -> None:
    assert kinds_of(schema, "key") == frozenset()


VALUES = [
    ("7", "integer", 7),
    ("7.0", "integer", 7.0),
    ("7.5", "integer", "7.5"),
    ("7", "number", 7),
    ("1e400", "boolean", "1e400"),
    ("NaN", "number", "NaN"),
    ("True", "boolean", True),
    ("yes", "boolean", "yes"),
    ("None", "null", None),
    ("[1, 2", "array", "[1, 2"),
    ("(1, 2)", "array", [1, 2]),
    ("{'a': None}", "object", {"a": None}),
    ("{1, 2}", "object", "{1, 2}"),
    ("[" * 60_000, "array", "[" * 60_000),
    (r"['\ud800']", "array", r"['\ud800']"),
    ("7", "string", "7"),
]


@pytest.mark.parametrize(("text", "kind", "value"), VALUES, ids=lambda one: str(one)[:20])
def test_a_value_is_of_its_type_or_stays_as_it_is_written(text: str, kind: str, value: Any) -> None:
    assert json.loads(typed(text, frozenset((kind,)))) == value


@given(
    st.text(max_size=30),
    st.sets(st.sampled_from(["string", "integer", "number", "object", "array", "null", "boolean"])),
)
def test_every_text_becomes_json(text: str, kinds: set[str]) -> None:
    json.loads(typed(text, frozenset(kinds)))
