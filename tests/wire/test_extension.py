"""Who asks and how it is to be treated: restrictions of all sides add up, and nothing is misread in silence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.wire.ask import Ask, Extension, Placement
from weighbridge.wire.errors import ApiError
from weighbridge.wire.extension import HIGHEST_PRIORITY, LOWEST_PRIORITY, KnownCaller, apply_caller
from weighbridge.wire.headers import headers_of
from weighbridge.wire.protocols.chat import ChatProtocol


def read(
    headers: list[tuple[str, str]] | None = None,
    key: str | None = None,
    is_gateway: bool = False,
    user: str | None = None,
    **body: object,
) -> Ask:
    if headers is None:
        headers = []
    ask = Ask("", "/v1/chat/completions", {}, "m", "", user=user)
    ask.extension = Extension(**body) if body else None  # type: ignore[arg-type]
    caller = KnownCaller(key, is_gateway) if key is not None else None
    sent = headers_of((f"x-weighbridge-{n}".encode(), v.encode()) for n, v in headers)
    apply_caller(ask, sent, caller, now=100.0)
    return ask


def test_labels_of_all_lines_and_of_the_body_add_up_whatever_their_case() -> None:
    ask = read([("labels", "Patient, x"), ("labels", "foo")], labels=["BAR", " "])
    assert ask.labels == {"patient", "x", "foo", "bar"}


@pytest.mark.parametrize("label", ["PAT\u0130ENT", "pat\u0131ent", "Pati\u0307ent", "ＰＡＴ\u0130ＥＮＴ"])
def test_a_label_in_the_case_of_turkish_is_the_same_label(label: str) -> None:
    assert read(labels=[label]).labels == {"patient"}


@pytest.mark.parametrize("body", ["prefer_cloud", "only_cloud", None])
def test_only_edge_holds_whoever_says_so(body: str | None) -> None:
    assert read([("placement", "only_edge")], placement=body).placement is Placement.ONLY_EDGE
    assert read([("placement", body)] if body else [], placement="only_edge").placement is Placement.ONLY_EDGE


def test_two_header_lines_of_placement_do_not_hide_the_strict_one() -> None:
    assert read([("placement", "prefer_cloud"), ("placement", "only_edge")]).placement is Placement.ONLY_EDGE


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_the_later_priority_holds_and_is_moved_to_the_bound(inside: int, outside: int) -> None:
    ask = read([("priority", str(outside))], priority=inside)
    assert ask.priority == max(LOWEST_PRIORITY, min(max(inside, outside), HIGHEST_PRIORITY))


def test_the_nearer_deadline_and_the_smaller_sum_hold() -> None:
    ask = read([("deadline-ms", "500"), ("max-usd", "0.5")], deadline_ms=900.0, max_usd=0.1)
    assert ask.deadline_ms == 500
    assert ask.deadline == pytest.approx(100.5)
    assert ask.max_usd == 0.1


def test_a_keys_tenant_cannot_be_overridden() -> None:
    assert read([("tenant", "h")], key="k", user="u", tenant="b").tenant == "k"


def test_a_gateways_word_is_believed_and_what_its_clients_write_is_not() -> None:
    told = {"key": "k", "is_gateway": True}
    assert read([("tenant", "h")], **told, tenant="b").tenant == "b"  # type: ignore[arg-type]
    assert read([("tenant", "h")], **told, user="u").tenant == "h"  # type: ignore[arg-type]
    assert read(**told, user="u").tenant == "k"  # type: ignore[arg-type]
    assert read([("tenant", "h")], user="u", tenant="b").tenant == "b"
    assert read([("tenant", "h")], user="u").tenant == "h"
    assert read(user="u").tenant == "u"
    assert read().tenant == "default"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", "soon"),
        ("priority", "nan"),
        ("priority", "1e400"),
        ("deadline-ms", "0"),
        ("deadline-ms", "-5"),
        ("deadline-ms", ""),
        ("max-usd", "-1"),
        ("placement", "edge"),
        ("placement", ""),
        ("speculative", "maybe"),
        ("resume", "2"),
        ("labels", ",".join(f"l{index}" for index in range(33))),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ApiError) as caught:
        read([(name, value)])
    assert caught.value.status == 400
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("1", True), ("TRUE", True), ("yes", True), ("on", True), ("off", False), ("0", False)],
)
def test_flags_are_words_that_people_write(word: str, meant: bool) -> None:
    assert read([("speculative", word)]).speculative is meant
    assert read([("resume", word)]).resume is meant


def test_an_id_is_taken_only_where_it_looks_like_one() -> None:
    assert read([("ticket", "a" * 32)]).id == "a" * 32
    other = read([("ticket", "../../x")])
    assert len(other.id) == 32
    assert not other.proposed_id


@pytest.mark.parametrize(
    "restricted",
    [
        '"weighbridge":{"labels":["patient"]},"weighbridge":{}',
        '"weighbridge":{"labels":["patient"]},"weighbridge":null',
        '"weighbridge":{"labels":["patient"],"labels":[]}',
        '"weighbridge":{"placement":"only_edge","labels":[],"labels":["x"]},"x":' + "9" * 5_000,
    ],
)
def test_a_restriction_is_not_lost_to_the_same_word_a_second_time(restricted: str) -> None:
    body = f'{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{restricted}}}'
    with pytest.raises(ApiError, match="written twice") as raised:
        ChatProtocol().read(body.encode())
    assert (raised.value.status, raised.value.param) == (400, "weighbridge")


def test_texts_and_schemas_may_speak_of_it_as_often_as_they_like() -> None:
    text = json.dumps('"weighbridge": {"labels": []}, "weighbridge"')
    inner = '{"weighbridge":{"labels":1},"labels":2}'
    turns = f'[{{"role":"user","content":{text}}}]'
    ask = ChatProtocol().read(
        f'{{"model":"m","messages":{turns},"x":{inner},"weighbridge":{{"labels":["a"]}}}}'.encode()
    )
    assert ask.extension is not None
    assert ask.extension.labels == ["a"]
