"""An integer may be written with a fraction of nothing, wherever one is taken, and nowhere else."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from weighbridge.integers import MAX_PLACES
from weighbridge.wire.body import decode
from weighbridge.wire.errors import ApiError


class Inner(Struct):
    number: int | None = None
    inner: list[Inner] | None = None


class Body(Struct):
    bound: Annotated[int, Meta(ge=1)] | None = None
    numbers: list[Annotated[int, Meta(ge=0)]] | None = None
    by_name: dict[str, int] | None = None
    prompt: str | list[str | int | list[int]] | None = None
    inner: Inner | None = None
    kept: msgspec.Raw = msgspec.Raw(b"")
    share: float | None = None


NUMBERS = st.integers(0, 2**53)
INNER: Any = st.recursive(
    st.fixed_dictionaries({"number": NUMBERS}),
    lambda more: st.fixed_dictionaries({"number": NUMBERS, "inner": st.lists(more, max_size=3)}),
    max_leaves=4,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "bound": st.integers(1, 2**31),
        "numbers": st.lists(NUMBERS, max_size=40),
        "by_name": st.dictionaries(st.text("abc", min_size=1), NUMBERS, max_size=3),
        "prompt": st.lists(NUMBERS | st.lists(NUMBERS, max_size=3) | st.text("x1.0")),
        "inner": INNER,
    },
)


def as_fractions(value: Any) -> Any:
    match value:
        case int():
            return float(value)
        case list():
            return [as_fractions(one) for one in value]
        case dict():
            return {key: as_fractions(one) for key, one in value.items()}
    return value


@given(BODIES)
def test_a_body_says_the_same_with_integers_written_as_fractions(body: dict[str, Any]) -> None:
    written = as_fractions(body) | {"kept": {"as": [1.0, "1.0"]}}
    read = decode(json.dumps(written).encode(), Body)
    assert read == decode(json.dumps(body | {"kept": written["kept"]}).encode(), Body)


@pytest.mark.parametrize("text", ["16.0", "1.6e1", "160e-1", "16.000", "0.16E+2"])
def test_however_it_is_written(text: str) -> None:
    assert decode(b'{"bound": %b}' % text.encode(), Body).bound == 16


def test_what_is_kept_as_it_was_written_stays_so() -> None:
    body = b'{"kept": {"a": 1.0, "n": 12345678901234567890123, "a" : "\\u00e9"}, "bound": 2.0, "share": 1.0}'
    read = decode(body, Body)
    assert bytes(read.kept) == b'{"a": 1.0, "n": 12345678901234567890123, "a" : "\\u00e9"}'
    assert isinstance(read.share, float)


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (b'{"bound": 1.5}', "bound"),
        (b'{"bound": 0.0}', "bound"),
        (b'{"bound": "1.0"}', "bound"),
        (b'{"bound": 1e300}', "bound"),
        (b'{"bound": -1.0}', "bound"),
        (b'{"numbers": [1.0, 2.5]}', "numbers"),
        (b'{"numbers": [1.0, "2"]}', "numbers"),
        (b'{"by_name": {"a.b[0]": 0.5, "c": 1.0}}', "by_name"),
        (b'{"inner": {"inner": [{"number": 1.0}, {"number": 1.25}]}}', "inner"),
    ],
)
def test_what_is_no_integer_is_refused_by_its_name(text: bytes, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        decode(text, Body)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_the_places_of_one_body_have_a_bound() -> None:
    Many = msgspec.defstruct("Many", [(f"f{number}", int) for number in range(MAX_PLACES + 1)])
    most = {f"f{number}": 1.0 if number < MAX_PLACES else 1 for number in range(MAX_PLACES + 1)}
    assert decode(json.dumps(most).encode(), Many)
    with pytest.raises(ApiError):
        decode(json.dumps(dict.fromkeys(most, 1.0)).encode(), Many)
