"""Schemas are closed where they name their properties, and never to the point where nothing is valid."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from weighbridge.server.engine.constraints.schemas import closed


class Line(BaseModel):
    name: str
    grams: int | None = None


class Parcel(BaseModel):
    lines: list[Line]
    labels: dict[str, str]
    other: Line | None = None


def takes(schema: Any, value: Any) -> bool:
    return jsonschema.Draft202012Validator(closed(schema)).is_valid(value)


def test_a_schema_of_pydantics_takes_what_it_names_and_nothing_else() -> None:
    schema = Parcel.model_json_schema()
    good = {"lines": [{"name": "a", "grams": 1}], "labels": {"any": "thing"}, "other": {"name": "b"}}
    assert takes(schema, good)
    assert not takes(schema, good | {"more": 1})
    assert not takes(schema, good | {"lines": [{"name": "a", "invented": 1}]})
    assert not takes(schema, good | {"other": {"name": "b", "invented": 1}})
    assert schema == Parcel.model_json_schema(), "the client's own is as it was"


KG: Any = {"properties": {"kg": {"type": "integer"}}}
TON: Any = {"properties": {"t": {"type": "integer"}}}
OPEN: dict[str, tuple[Any, Any]] = {
    "additional properties": (KG | {"additionalProperties": True}, {"x": 1}),
    "additional properties of a kind": (KG | {"additionalProperties": {"type": "string"}}, {"x": "y"}),
    "patterns": (KG | {"patternProperties": {"^x": {}}}, {"x": 1}),
    "unevaluated": (KG | {"unevaluatedProperties": True}, {"x": 1}),
    "no properties at all": ({"type": "object"}, {"x": 1}),
    "required beside them": (KG | {"required": ["x"]}, {"x": 1}),
    "more than there are": (KG | {"minProperties": 2}, {"kg": 1, "x": 1}),
    "all of two": ({"allOf": [KG, TON]}, {"kg": 1, "t": 1}),
    "all of one beside them": (KG | {"allOf": [TON]}, {"kg": 1, "t": 1}),
    "any of beside them": (KG | {"anyOf": [TON]}, {"kg": 1, "t": 1}),
    "all of two that are defined": (
        {"allOf": [{"$ref": "#/$defs/kg"}, {"$ref": "#/$defs/t"}], "$defs": {"kg": KG, "t": TON}},
        {"kg": 1, "t": 1},
    ),
    "a reference beside them": (KG | {"$ref": "#/$defs/t", "$defs": {"t": TON}}, {"kg": 1, "t": 1}),
    "not": ({"type": "object", "not": KG | {"required": ["kg"]}}, {"x": 1}),
    "if": ({"if": KG | {"required": ["kg"]}, "then": TON | {"required": ["t"]}}, {"kg": 1, "t": 1}),
    "a property that is called properties": (
        {"properties": {"properties": {"type": "object"}}},
        {"properties": {"x": 1}},
    ),
    "a constant that looks like a schema": ({"const": KG}, KG),
}


@pytest.mark.parametrize("name", OPEN)
def test_what_the_schema_opens_stays_open(name: str) -> None:
    schema, value = OPEN[name]
    assert jsonschema.Draft202012Validator(schema).is_valid(value)
    assert takes(schema, value)


CLOSED: dict[str, tuple[Any, Any]] = {
    "one object": (KG, {"kg": 1, "x": 1}),
    "an empty one": ({"properties": {}}, {"x": 1}),
    "in a list": ({"items": KG}, [{"x": 1}]),
    "in any of": ({"anyOf": [KG, {"type": "string"}]}, {"x": 1}),
    "by reference, with a title": (
        {"properties": {"a": {"$ref": "#/$defs/kg", "title": "A"}}, "$defs": {"kg": KG}},
        {"a": {"x": 1}},
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_what_it_does_not_open_is_closed(name: str) -> None:
    schema, value = CLOSED[name]
    assert jsonschema.Draft202012Validator(schema).is_valid(value)
    assert not takes(schema, value)


names = st.sampled_from(["kg", "t", "x"])
plain = st.sampled_from([{"type": "integer"}, {}, True, {"const": 1}])
leaf = plain | st.just({"$ref": "#/$defs/one"})


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(names, inner, max_size=2),
            "required": st.lists(names, max_size=2, unique=True),
            "additionalProperties": inner,
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
        },
    )


schemas = st.builds(
    lambda top, one: {**top, "$defs": {"one": one}}, _around(st.recursive(leaf, _around)), _around(plain)
)
values = st.recursive(
    st.integers(0, 1), lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=2)
)


@given(schemas, values)
def test_whatever_a_closed_schema_takes_the_given_one_takes(schema: Any, value: Any) -> None:
    assert not takes(schema, value) or jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "required", [[[]], [[[[]]]], [{}], [["x"]], [None], [1], [2**64], "a", {}, {"a": 1}, None, 0]
)
def test_words_that_name_no_field_leave_an_object_as_it_is(required: object) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": required}
    assert "additionalProperties" not in closed(schema)
