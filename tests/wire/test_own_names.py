"""An error names the field that the client wrote, whatever a chat calls it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.names import Names
from weighbridge.wire.protocols.ollama import OllamaGenerate

NAMES = Names(
    {"stop": "options.stop", "tools[].function.parameters": "tools[].schema", "messages[]": "input"}
)
HI = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("stop: give at most 16", "options.stop: give at most 16"),
        ("stop[3]: is empty", "options.stop[3]: is empty"),
        ("tools[12].function.parameters.type: is 7", "tools[12].schema.type: is 7"),
        ("tools[12].function.name: is missing", "tools[12].function.name: is missing"),
        ("messages[4].content: is empty", "input.content: is empty"),
        ("edge answered 400: stop: give fewer", "edge answered 400: options.stop: give fewer"),
        ("stopped early: stop", "stopped early: stop"),
        ("stop's place", "stop's place"),
        ("the stop: no", "the stop: no"),
        ("", ""),
    ],
)
def test_a_field_at_the_beginning_is_told_by_its_own_name(said: str, told: str) -> None:
    assert NAMES.message(ApiError(400, said)) == told
    assert NAMES.param(ApiError(400, said, param="stop")) == "options.stop"
    assert NAMES.param(ApiError(400, said)) is None


@given(st.text())
def test_whatever_names_no_field_stays_as_it_is(text: str) -> None:
    assert Names({}).message(ApiError(400, text)) == str(ApiError(400, text))


@pytest.mark.parametrize(
    ("protocol", "body", "begins"),
    [
        (OllamaGenerate(), {"prompt": "hello", "images": ["?"]}, "images[0]: "),
        (OllamaGenerate(), {"prompt": "hello", "system": "be brief", "images": ["?"]}, "images[0]: "),
    ],
)
def test_an_error_of_what_was_made_a_chat_names_the_field_that_was_written(
    protocol: Any, body: dict[str, Any], begins: str
) -> None:
    with pytest.raises(ApiError) as caught:
        protocol.read(json.dumps({"model": "tiny", **body}).encode())
    told = json.loads(protocol.error(caught.value))["error"]
    message = told if isinstance(told, str) else told["message"]
    assert message.startswith(begins)
