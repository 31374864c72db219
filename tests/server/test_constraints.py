"""Whatever a request holds its answer to: it is kept, or refused by name. Nothing is left out in silence."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from weighbridge.wire.protocols.constraints import UNKEPT

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def asked(server: str, path: str = CHAT, **body: Any) -> httpx.Response:
    said = {"messages": HELLO} if path == CHAT else {"prompt": "Hello"}
    return httpx.post(server + path, json={**said, "max_tokens": 12, "seed": 1, **body}, timeout=60)


def text_of(server: str, path: str = CHAT, **body: Any) -> str:
    answer = asked(server, path, **body)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    text: str = choice["message"]["content"] if path == CHAT else choice["text"]
    return text


def ids_of(server: str, text: str) -> list[int]:
    ids: list[int] = httpx.post(f"{server}/tokenize", json={"prompt": text}).json()["tokens"]
    return ids


GBNF = 'root ::= "v" [0-9]{1,3} ("." [0-9]{2})? "\\x21" # a version\n'
KEPT = [
    ({"structured_outputs": {"choice": ["yes", "no\n", 'may"be']}}, r'yes|no\n|may"be'),
    ({"guided_choice": ["東京", "b"]}, "東京|b"),
    ({"grammar": GBNF}, r"v[0-9]{1,3}(\.[0-9]{2})?!"),
    ({"structured_outputs": {"grammar": 'root ::= "(" root ")" | "x"'}}, r"\(*x\)*"),
    ({"ebnf": 'root ::= ("a" | "b"){3}'}, "[ab]{3}"),
    ({"guided_grammar": 'start: "a" | "bb"'}, "a|bb"),
    ({"guided_regex": "[a-c]{2}"}, "[a-c]{2}"),
    ({"regex": "[xyz]{3}"}, "[xyz]{3}"),
    ({"guided_json": {"type": "integer", "minimum": 0, "maximum": 9}}, "[0-9]"),
    ({"json_schema": '{"enum": ["k"]}'}, '"k"'),
    ({"response_format": {"type": "json_object", "schema": {"const": 7}}}, "7"),
    ({"structured_outputs": {"json_object": True, "regex": None}}, r"\{[\s\S]*"),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("field", "pattern"), KEPT, ids=[str(field)[:40] for field, _ in KEPT])
def test_an_answer_is_as_it_was_asked_for(
    server: str, path: str, field: dict[str, Any], pattern: str
) -> None:
    assert re.fullmatch(pattern, text_of(server, path, **field))


REFUSED = [
    {"grammar": 'root := "a"'},
    {"grammar": 'root ::= "a" missing'},
    {"grammar": 'root ::= ["'},
    {"structured_outputs": {"choice": []}},
    {"structured_outputs": {"structural_tag": "x"}},
    {"structured_outputs": {"disable_any_whitespace": True, "json_object": True}},
    {"guided_choice": "yes"},
    {"allowed_token_ids": []},
    {"allowed_token_ids": [5, 99_999]},
    {"bad_words": [" "]},
    {"bad_words": ["x"] * 300},
    {"prompt_logprobs": 50},
    {"prompt_logprobs": -1},
]


@pytest.mark.parametrize("body", REFUSED, ids=[str(body)[:40] for body in REFUSED])
def test_what_cannot_be_kept_is_refused_by_name(server: str, body: dict[str, Any]) -> None:
    answer = asked(server, **body)
    assert answer.status_code == 400, answer.text
    named = "response_format" if "grammar" in body else next(iter(body))
    assert answer.json()["error"]["param"] == named


@pytest.mark.parametrize("name", sorted(UNKEPT))
def test_fields_of_other_servers_are_refused_unless_they_mean_nothing(server: str, name: str) -> None:
    neutral, _ = UNKEPT[name]
    answer = asked(server, **{name: 0.25})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert asked(server, max_tokens=1, **{name: neutral[-1]}).status_code == 200


def test_two_constraints_are_one_too_many(server: str) -> None:
    answer = asked(server, regex="a", guided_choice=["a"])
    assert answer.status_code == 400
    assert "only one constraint" in answer.text


def test_allowed_tokens_are_the_only_ones(server: str) -> None:
    ids = ids_of(server, "fox dog")
    text = text_of(server, allowed_token_ids=ids, max_tokens=20, temperature=1.5)
    assert set(ids_of(server, text)) <= set(ids)


@pytest.mark.parametrize("temperature", [0, 1])
def test_bad_words_do_not_come_alone_nor_behind_each_other(server: str, temperature: int) -> None:
    """A bias that lets the model say little else."""
    ids = ids_of(server, " quick brown")
    wish: dict[str, Any] = {"logit_bias": dict.fromkeys(map(str, ids), 100), "temperature": temperature}
    free = text_of(server, TEXT, max_tokens=30, **wish)
    said = text_of(server, TEXT, max_tokens=30, bad_words=["quick brown"], **wish)
    assert "quick" in free
    assert "brown" in free
    assert "quick brown" not in said
    assert ("quick" in said) or ("brown" in said)


def test_what_leaves_no_token_fails_alone_and_says_so(server: str) -> None:
    answer = asked(server, regex="[0-9]+", allowed_token_ids=ids_of(server, "fox"))
    assert answer.status_code == 400  # a server that fails is tried again, and is left alone after some times
    assert answer.json()["error"]["code"] == "nothing_left"
    assert "leaves no token" in answer.text


def test_the_stop_is_shown_where_it_is_wanted_and_not_looked_for_before_the_minimum(server: str) -> None:
    whole = text_of(server, TEXT, temperature=0, max_tokens=12)
    stop = whole[2:4]
    cut = text_of(server, TEXT, temperature=0, stop=stop)
    shown = text_of(server, TEXT, temperature=0, stop=stop, include_stop_str_in_output=True)
    assert cut == whole[: whole.index(stop)]
    assert shown == whole[: whole.index(stop) + len(stop)]
    assert text_of(server, TEXT, temperature=0, stop=stop, min_tokens=12) == whole


def test_a_stop_token_is_shown_where_it_is_wanted(server: str) -> None:
    first = asked(server, TEXT, temperature=0, max_tokens=3, logprobs=0).json()["choices"][0]
    last = ids_of(server, first["logprobs"]["tokens"][0])
    body: dict[str, Any] = {"temperature": 0, "stop_token_ids": last}
    shown = asked(server, TEXT, include_stop_str_in_output=True, **body).json()["choices"][0]
    hidden = asked(server, TEXT, **body).json()["choices"][0]
    assert shown["stop_reason"] == hidden["stop_reason"] == last[0]
    assert (hidden["text"], shown["text"]) == ("", first["logprobs"]["tokens"][0])


def test_a_stream_of_stops_is_what_the_whole_answer_is(server: str) -> None:
    body: dict[str, Any] = {
        "temperature": 0,
        "stop": ["e"],
        "include_stop_str_in_output": True,
        "max_tokens": 40,
    }
    whole = text_of(server, TEXT, **body)
    lines = asked(server, TEXT, stream=True, **body).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for choice in choices) == whole
