# ruff: noqa: E501 - tables read best a case to a line
"""What is taken out of a request, by its place in the text as it was written, and what makes a request stay."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routes.privacy.bodies import chat, redact, sent, tool
from weighbridge.routes.privacy import lastlook
from weighbridge.routes.privacy.fields import TextKind
from weighbridge.routes.privacy.hits import Hit
from weighbridge.routes.privacy.redact import Vault, free_tag
from weighbridge.routes.privacy.restoring.placeholders import TextRestorer
from weighbridge.routes.privacy.walk import attachment

FOLDS = [
    ("mail groß@beispiel.de now", "groß@beispiel.de"),
    ("mail GROẞ@BEISPIEL.DE now", "GROẞ@BEISPIEL.DE"),
    ("mail ﬁona@ﬂora.de now", "ﬁona@ﬂora.de"),
    ("mail İpek@ÖRNEK.com now", "İpek@ÖRNEK.com"),
    ("mail ﬀ@ｅｘａｍｐｌｅ．ｃｏｍ now", "ｅｘａｍｐｌｅ"),
    ("mail jose\u0301@ejemplo.es now", "jose\u0301@ejemplo.es"),
    ("mail ΝΊΚΟΣ@παράδειγμα.ελ now", "ΝΊΚΟΣ"),
    ("mail νίκος@παράδειγμα.ελ now", "νίκος"),
    ("card ４１１１ １１１１ １１１１ １１１１ now", "１１１１ １１１１"),
]


@pytest.mark.parametrize(("text", "value"), FOLDS)
async def test_a_value_goes_whatever_folding_makes_of_it(text: str, value: str) -> None:
    redacted = await redact(chat(text))
    assert redacted is not None
    assert value not in sent(redacted)
    assert redacted.body["messages"][0]["content"].endswith(" now")
    restorer = TextRestorer(redacted.vault.values)
    assert restorer.push(redacted.body["messages"][0]["content"]) + restorer.finish() == text


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("Maßwerk", "das Maßwerk hier"),
        ("Maßwerk", "das MASSWERK hier"),
        ("Masswerk", "das maßwerk hier"),
        ("ISPARTA", "in ısparta hier"),
        ("istanbul", "in İSTANBUL hier"),
        ("ΟΔΟΣ", "η οδός hier"),
        ("Éclair", "an e\u0301clair hier"),
        ("fiona", "dear ﬁona hier"),
        ("ＡＣＭＥ corp", "of acme\u00a0 corp hier"),
        ("Project X", "the project\nx hier"),
        ("机密项目", "这是机密项目的文件"),
        ("bluefin", "call bluefin_search, getBluefin and bluefin2"),
    ],
)
async def test_a_denied_phrase_goes_however_it_is_written(phrase: str, text: str) -> None:
    redacted = await redact(chat(text), [phrase])
    assert redacted is not None
    assert "[DENIED_1]" in redacted.body["messages"][0]["content"]
    assert not lastlook.still_there([phrase], redacted.body)


async def test_a_denied_word_is_no_part_of_another() -> None:
    redacted = await redact(chat("a bluefinch, a rebluefin and blue fin"), ["bluefin"])
    assert redacted is not None
    assert redacted.vault.values == {}


async def test_what_one_place_gives_away_goes_everywhere() -> None:
    """The number is known by the word beside it in one message, and stands bare in others, written otherwise."""
    messages = [
        {"role": "user", "content": "手机号 13812345678"},
        {"role": "assistant", "content": "so 13812345678, or １３８１２３４５６７８, or 138%31%32345678"},
    ]
    redacted = await redact({"messages": messages})
    assert redacted is not None
    assert redacted.body["messages"][1]["content"] == "so [PHONE_1], or [PHONE_2], or [PHONE_3]"


@given(
    st.lists(st.sampled_from(["ß", "ﬁ", "İ", "é", "e\u0301", "Σ", "ς", "x", "1", " ", "🙂"]), max_size=12),
    st.data(),
)
def test_hiding_and_restoring_give_the_text_back(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    value = text[start:end]
    vault = Vault([text], {value: "PERSON"} if value.strip() else {})
    found = [Hit(start, end, "PERSON", "test")] if value else []
    hidden = vault.hide(text, found, TextKind.TEXT)
    restorer = TextRestorer(vault.values)
    assert restorer.push(hidden) + restorer.finish() == text
    if len(value) >= 6 and value.strip():
        assert value not in hidden


# -- the last look ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "left",
    [
        "groß@beispiel.de", "GROSS@BEISPIEL.DE", "gro%C3%9F%40beispiel.de", "gro&szlig;&#64;beispiel.de",
        "gro\\u00df\\u0040beispiel.de", "g\u200bro\u00adß@beispiel.de", "ｇｒｏß＠beispiel．de", "gro%25C3%259F@beispiel.de",
    ],
)  # fmt: skip
def test_the_last_look_sees_a_value_that_was_left(left: str) -> None:
    assert lastlook.still_there(["groß@beispiel.de"], {"a": [{"b": f"mail {left} now"}]})
    assert lastlook.still_there(["groß@beispiel.de"], {f"x{left}": 1})


def test_the_last_look_reads_attachments_numbers_and_seams() -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-16", "utf-32-be"):
        data = base64.b64encode("mail ann@example.com".encode(encoding)).decode()
        assert lastlook.still_there(["ann@example.com"], {"u": f"data:text/plain;base64,{data}"})
    assert lastlook.still_there(["4111 1111 1111 1111"], {"n": 4111111111111111})
    assert lastlook.still_there(["ann@example.com"], ["ann@exam", "ple.com"])


@pytest.mark.parametrize("charset", ["cp037", "cp500", "utf-16", "utf-16-le", "utf-32", "cp1026"])
def test_an_attachment_under_a_charset_that_it_is_not_in_cannot_be_read(charset: str) -> None:
    lie = base64.b64encode(b"ann@example.com!").decode()
    assert attachment(f"data:text/plain;charset={charset};base64,{lie}") is None
    true = base64.b64encode("Ann's mail is ann@example.com.".encode(charset)).decode()
    found = attachment(f"data:text/plain;charset={charset};base64,{true}")
    assert found is not None
    assert "ann@example.com" in found.text


def test_the_last_look_lets_go_what_is_clean() -> None:
    body = chat(
        "the parking ramp of [PERSON_1] and [DENIED_1]", tools=[tool("search", {"type": {"type": "string"}})]
    )
    assert not lastlook.still_there(["Ingram", "role", "Al", "type", "Ann Lee"], body)


def test_the_last_look_shares_nothing_with_finding_and_replacing() -> None:
    """It must not be wrong where they are: no folding, no readings, no walk of theirs."""
    with open(lastlook.__file__, encoding="utf-8") as file:
        imports = [line for line in file if re.match(r"(from|import) ", line)]
    ours = [line for line in imports if "weighbridge" in line]
    assert ours == ["from weighbridge.routes.privacy.fields import VOCABULARY\n"]


async def test_a_replacement_that_failed_keeps_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vault, "hide", lambda self, text, found, kind: text)
    assert await redact(chat("mail ann@example.com")) is None


# -- what is exempt --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["role", "type", "name", "content", "format", "detail", "id", "index", "required"]
)
@pytest.mark.parametrize("value", ["alice@example.com", "4111 1111 1111 1111"])
async def test_words_of_the_api_exempt_nothing_where_the_api_does_not_define_them(
    name: str, value: str
) -> None:
    inside = {name: value}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": inside})}}
    places: list[dict[str, Any]] = [
        chat(json.dumps(inside)),
        chat(json.dumps({"a": [{"b": inside}]})),
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]},
        chat("hi", tools=[tool("f", {"p": {"type": "string", "enum": [value]}, "q": {"default": inside}})]),
        chat(
            "hi",
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"const": inside}},
            },
        ),
        chat("hi", logit_bias=inside),
        chat([{"type": "text", "text": "hi", "other": inside}]),
    ]
    for body in places:
        redacted = await redact(body)
        assert redacted is None or value not in sent(redacted), body


@pytest.mark.parametrize("value", ["alice@example.com", "4111 1111 1111 1111"])
async def test_a_value_where_the_api_takes_its_own_words_only_stays(value: str) -> None:
    message = {"role": value, "content": "hi"}
    assert await redact({"messages": [message]}) is None
    assert await redact(chat("hi", tool_choice=value)) is None
    assert await redact(chat("hi", seed=4111111111111111)) is None
    assert await redact(chat("hi", tools=[tool("f", {"p": {"maximum": 4111111111111111}})])) is None
    assert await redact(chat("hi", tools=[tool("f", {"p": {"type": value}})])) is None


HELD_TO: dict[str, dict[str, Any]] = {
    "enum": {"enum": ["nobody", "alice@example.com"]},
    "const": {"const": "alice@example.com"},
    "a const that is an object": {"const": {"to": ["alice@example.com"]}},
    "a name in a const": {"const": {"alice@example.com": 1}},
    "JSON in a const": {"const": json.dumps({"to": "alice@example.com"})},
    "a number": {"const": 4111111111111111},
    "pattern": {"pattern": r"^(nobody|alice@example\.com)$"},
    "a pattern of names": {"type": "object", "patternProperties": {r"^alice@example\.com$": {}}},
    "deep inside": {"anyOf": [{"type": "array", "items": {"not": {"enum": ["alice@example.com"]}}}]},
}


@pytest.mark.parametrize("schema", HELD_TO.values(), ids=HELD_TO)
async def test_what_an_answer_is_held_to_is_never_changed(schema: dict[str, Any]) -> None:
    """With a placeholder in it, a model could only give an answer that the client's own schema refuses."""
    formats = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {"p": schema}}}}
    assert await redact(chat("who?", response_format=formats)) is None
    assert await redact(chat("who?", tools=[tool("f", {"p": schema})])) is None


async def test_a_schema_stays_whose_value_is_only_found_elsewhere() -> None:
    properties = {"p": {"enum": ["bluefin", "other"]}}
    assert await redact(chat("about bluefin", tools=[tool("f", properties)]), ["bluefin"]) is None
    assert await redact(chat("ann@example.com", tools=[tool("f", properties)])) is not None
    described = {"p": {"type": "string", "description": "such as ann@example.com", "enum": ["a"]}}
    redacted = await redact(chat("hi", tools=[tool("f", described)]))
    assert redacted is not None
    assert "ann@" not in sent(redacted)


async def test_words_of_the_api_stay_as_they_are_though_they_are_denied() -> None:
    body = chat("the user has a function of type string", tools=[tool("f", {"p": {"type": "string"}})])
    redacted = await redact(body, ["user", "function", "string", "type"])
    assert redacted is not None
    assert redacted.body["messages"][0]["role"] == "user"
    assert redacted.body["tools"][0]["type"] == "function"
    assert redacted.body["tools"][0]["function"]["parameters"]["properties"]["p"] == {"type": "string"}
    assert "user" not in redacted.body["messages"][0]["content"]


# -- names -----------------------------------------------------------------------------------------------

LEGAL = re.compile(r"[A-Za-z0-9_.-]{1,64}")


async def test_names_have_legal_aliases_which_are_the_same_everywhere() -> None:
    schema = tool("bluefin_search", {"bluefin_id": {"$ref": "#/$defs/Bluefin"}}, required=["bluefin_id"])
    schema["function"]["parameters"]["$defs"] = {"Bluefin": {"type": "string"}}
    called = {"name": "bluefin_search", "arguments": '{"bluefin_id": 3}'}
    body = {
        "messages": [
            {"role": "user", "content": "ask bluefin", "name": "bluefin-user"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "bluefin_1", "type": "function", "function": called}]},
            {"role": "tool", "tool_call_id": "bluefin_1", "content": "done"},
        ],
        "tools": [schema],
        "tool_choice": {"type": "function", "function": {"name": "bluefin_search"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "bluefin_out", "schema": {"type": "object"}}},
    }  # fmt: skip
    redacted = await redact(body, ["bluefin"])
    assert redacted is not None
    assert "bluefin" not in sent(redacted).lower()
    made = redacted.body
    name = made["tools"][0]["function"]["name"]
    parameters = made["tools"][0]["function"]["parameters"]
    assert LEGAL.fullmatch(name)
    assert made["tool_choice"]["function"]["name"] == name
    assert made["messages"][1]["tool_calls"][0]["function"]["name"] == name
    assert all(LEGAL.fullmatch(key) for key in parameters["properties"])
    assert parameters["required"] == list(parameters["properties"])
    assert (
        list(json.loads(made["messages"][1]["tool_calls"][0]["function"]["arguments"]))
        == parameters["required"]
    )
    assert (
        parameters["properties"][parameters["required"][0]]["$ref"]
        == f"#/$defs/{next(iter(parameters['$defs']))}"
    )
    assert made["messages"][2]["tool_call_id"] == made["messages"][1]["tool_calls"][0]["id"]
    assert LEGAL.fullmatch(made["response_format"]["json_schema"]["name"])
    assert LEGAL.fullmatch(made["messages"][0]["name"])
    restorer = TextRestorer(redacted.vault.values)
    assert restorer.push(name) + restorer.finish() == "bluefin_search"


@pytest.mark.parametrize(
    "name", ["getBluefinInfo", "X9bluefin2", "bluefin", "a.bluefin-b", "bluefin_bluefin"]
)
async def test_an_alias_in_a_name_comes_back_exactly(name: str) -> None:
    redacted = await redact(chat("bluefin", tools=[tool(name, {})]), ["bluefin"])
    assert redacted is not None
    alias = redacted.body["tools"][0]["function"]["name"]
    assert LEGAL.fullmatch(alias)
    assert "bluefin" not in alias.lower()
    restorer = TextRestorer(redacted.vault.values)
    assert restorer.push(alias) + restorer.finish() == name


async def test_a_name_that_would_become_too_long_keeps_the_request() -> None:
    assert await redact(chat("hi", tools=[tool("ace_" + "x" * 60, {})]), ["ace"]) is None


# -- placeholders that are there already -----------------------------------------------------------------


@pytest.mark.parametrize(
    "there", ["[EMAIL_1]", "[email 1]", "\\[EMAIL\\_1\\]", "EMAIL_1", "%5BEMAIL_1%5D", "[EMAIL-01]"]
)
async def test_what_looks_like_a_placeholder_already_is_not_taken_for_one(there: str) -> None:
    text = f"keep {there} but hide ann@example.com"
    redacted = await redact(chat(text))
    assert redacted is not None
    assert there in redacted.body["messages"][0]["content"]
    restorer = TextRestorer(redacted.vault.values)
    assert restorer.push(redacted.body["messages"][0]["content"]) + restorer.finish() == text


@settings(deadline=None)
@given(st.lists(st.sampled_from(["[", "EMAIL", "IP", "X", "Q", "_", "1", "]", "A", " ", "\\"]), max_size=40))
def test_a_free_tag_is_free(parts: list[str]) -> None:
    text = "".join(parts)
    tag = free_tag([text])
    assert f"EMAIL{tag}_1" not in text
    assert f"[IP{tag}_1]" not in text


async def test_json_that_names_a_field_twice_hides_nothing() -> None:
    redacted = await redact(chat('{"a": "ann@example.com", "a": "x"}'))
    assert redacted is not None
    assert "ann@" not in sent(redacted)
