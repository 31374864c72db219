"""The document of the HTTP interface: every endpoint is in it, and what it says of requests is what readers take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.fleet.backends import Backend, Front, fleet
from weighbridge.server.openapi.document import ServedPath, document, key_of
from weighbridge.server.openapi.narrow import NARROWED, NEEDED, NOT_BOTH, ONE_OF
from weighbridge.server.openapi.operations import OPERATIONS
from weighbridge.server.openapi.page import shown
from weighbridge.wire.protocols import PROTOCOLS
from weighbridge.wire.protocols.chat import ChatRequest


def whole() -> dict[str, Any]:
    """The document of a server with every protocol and one model."""
    known = {key_of("POST", one.path) for one in PROTOCOLS}
    rows = [ServedPath(*key.split(" ", 1)) for key in OPERATIONS if key not in known]
    return document(rows, PROTOCOLS, ["tiny"], asks_keys=True)


WHOLE = whole()


def test_references_lead_somewhere_and_operations_have_names_of_their_own() -> None:
    text = msgspec.json.encode(WHOLE).decode()
    schemas = WHOLE["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)
    named = [one["operationId"] for methods in WHOLE["paths"].values() for one in methods.values()]
    assert len(named) == len(set(named))
    assert {link["operationId"] for link in links()} <= set(named)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


def links() -> Iterator[dict[str, Any]]:
    for methods in WHOLE["paths"].values():
        for operation in methods.values():
            yield from operation["responses"]["200"].get("links", {}).values()


def test_no_name_of_a_component_is_private_and_none_is_corrected_in_vain() -> None:
    schemas = WHOLE["components"]["schemas"]
    assert not [name for name in schemas if not name[0].isupper()]
    for name in {*NARROWED, *NEEDED, *ONE_OF, *NOT_BOTH}:
        assert name in schemas, f"{name} is corrected, and nobody asks with it"


def test_models_are_those_that_are_served() -> None:
    assert WHOLE["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == ["tiny", None]


def examples(name: str) -> st.SearchStrategy[Any]:
    """Messages as the document has them."""
    texts = st.text(max_size=20)
    asked = st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "developer"]), "content": texts}
    )
    return st.lists(
        asked | st.fixed_dictionaries({"role": st.just("assistant"), "content": texts}), min_size=1
    )


@settings(max_examples=50)
@given(messages=examples("messages"), temperature=st.floats(0, 2), most=st.integers(1, 1 << 20))
def test_what_the_document_takes_the_reader_takes(messages: Any, temperature: float, most: int) -> None:
    body = {"model": "tiny", "messages": messages, "temperature": temperature, "max_tokens": most}
    schema = {"$ref": "#/components/schemas/ChatRequest", "components": WHOLE["components"]}
    assert Draft202012Validator(schema).is_valid(body)
    assert msgspec.json.decode(msgspec.json.encode(body), type=ChatRequest).max_tokens == most


async def described(front: Front) -> Any:
    return await front.get("/openapi.json")


async def test_a_gateway_describes_all_it_serves_and_no_more() -> None:
    async with fleet(Backend()) as front:
        told = await described(front)
        found = {f"{method.upper()} {path}" for path, methods in told["paths"].items() for method in methods}
        assert found == {key for key in OPERATIONS if "/v1/experts" not in key and "lora_adapter" not in key}
        async with front.client.get(f"{front.url}/docs") as answer:
            page = await answer.text()
        assert "<script" not in page
        assert "POST /v1/chat/completions" in page


def test_a_page_shows_names_from_outside_as_text() -> None:
    made = document([], PROTOCOLS, ["<script>alert(1)</script>"], asks_keys=False)
    assert "<script>alert" not in shown(made)


NESTED = {
    "type": "object",
    "properties": {
        "where": {"$ref": "#/$defs/Place"},
        "days": {"type": "array", "items": {"type": "integer"}},
    },
    "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
USUAL = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Short."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "assistant", "content": "It is"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": NESTED}}],
        "tool_choice": "required",
        "continue_final_message": True,
        "add_generation_prompt": False,
        "stop": ["\n\n", "END."],
        "stop_token_ids": [49_151],
        "logit_bias": {"49151": -100},
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": NESTED}},
    },
    "/v1/completions": {"model": "tiny", "prompt": [49_151, 300], "structured_outputs": {"regex": "[0-9]+"}},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 10,
        "system": [{"type": "text", "text": "Short."}],
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]},
        ],
        "tools": [{"name": "weather", "input_schema": NESTED}],
        "tool_choice": {"type": "any"},
    },
}


@pytest.mark.parametrize("path", USUAL)
def test_what_clients_usually_send_is_in_the_document(path: str) -> None:
    """It may be said closely what a request is, but not more closely than what is served."""
    schema = WHOLE["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": WHOLE["components"]}).validate(USUAL[path])


#: The groups of endpoints that clients of others ask.
CLIENTS = ("OpenAI", "Anthropic", "Ollama", "readers", "batches", "tokens")


def asked_with() -> Iterator[type[msgspec.Struct]]:
    """All types of which requests of others' clients are made, those inside of others too."""
    asks = [one.asks for one in OPERATIONS.values() if one.asks and one.tag in CLIENTS]
    left = list(msgspec.inspect.multi_type_info(asks))
    seen: set[type] = set()
    while left:
        one = left.pop()
        if isinstance(one, msgspec.inspect.StructType) and one.cls not in seen:
            seen.add(one.cls)
            yield one.cls
            left += [field.type for field in one.fields]
        elif isinstance(one, msgspec.inspect.UnionType):
            left += one.types
        elif isinstance(one, msgspec.inspect.ListType):
            left.append(one.item_type)
        elif isinstance(one, msgspec.inspect.DictType):
            left.append(one.value_type)


@pytest.mark.parametrize("kind", list(asked_with()), ids=lambda kind: kind.__name__)
def test_a_field_that_may_be_left_out_may_be_null(kind: type[msgspec.Struct]) -> None:
    """Programs that dump their objects whole write null for what nobody said."""
    told = msgspec.inspect.type_info(kind)
    assert isinstance(told, msgspec.inspect.StructType)
    assert not [one.name for one in told.fields if not one.required and not _takes_null(one.type)]


def _takes_null(kind: msgspec.inspect.Type) -> bool:
    if isinstance(kind, msgspec.inspect.UnionType):
        return kind.includes_none
    return isinstance(kind, msgspec.inspect.AnyType | msgspec.inspect.NoneType)
