"""A secret shows as stars however it is printed, and its type lets nobody use it by accident."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from dataclasses import asdict, dataclass
from string import ascii_letters

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.secret import Secret, hidden, split_account, without_account

#: Texts that cannot be in `***`, in a type's name or in an address by chance.
VALUES = st.text(ascii_letters + "äß€0123456789_-/@:", min_size=8).map(lambda text: f"canary-{text}")


@dataclass(frozen=True, slots=True)
class Holder:
    name: str
    key: Secret


@given(VALUES)
def test_whatever_prints_it_shows_stars(value: str) -> None:
    secret = Secret(value)
    holder = Holder("h", secret)
    shown = [
        str(secret),
        repr(secret),
        f"{secret} {secret!s} {secret!r} {secret!a} {secret:>20}",
        "%s %r" % (secret, secret),  # noqa: UP031
        "{0} {0!r}".format(secret),  # noqa: UP032
        repr(holder),
        repr([secret, {secret: secret}]),
        str(asdict(holder)),
        json.dumps(asdict(holder), default=str),
        msgspec.json.encode(asdict(holder), enc_hook=str).decode(),
        str(ValueError(secret)),
        repr(ValueError("wrong", secret)),
        logging.Formatter().format(logging.LogRecord("x", 20, "f", 1, "%s %r", (secret, holder), None)),
    ]
    for text in shown:
        assert value not in text
        assert "***" in text
    assert secret.reveal() == value


@given(VALUES)
def test_a_traceback_with_its_variables_shows_stars(value: str) -> None:
    holder = Holder("h", Secret(value))
    del value
    try:
        raise KeyError(holder)
    except KeyError as error:
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "***" in told
    assert "canary" not in told


def test_it_is_no_text() -> None:
    secret = Secret("canary")
    for wrong in (
        lambda: "Bearer " + secret,  # type: ignore[operator]
        lambda: "".join([secret]),  # type: ignore[list-item]
        lambda: json.dumps({"key": secret}),
        lambda: msgspec.json.encode({"key": secret}),
        lambda: pickle.dumps(secret),
        lambda: bytes(secret),  # type: ignore[call-overload]
    ):
        with pytest.raises(TypeError) as caught:
            wrong()
        assert "canary" not in str(caught.value)
    assert not isinstance(secret, str)
    assert not hasattr(secret, "__dict__")


@given(VALUES, VALUES)
def test_it_equals_what_holds_the_same_and_never_a_text(one: str, other: str) -> None:
    assert (Secret(one) == Secret(other)) == (one == other)
    assert Secret(one) != one
    assert hash(Secret(one)) == hash(Secret(one))
    assert copy.deepcopy(Secret(one)) == copy.copy(Secret(one)) == Secret(one)
    assert bool(Secret(one))
    assert not Secret("")


@pytest.mark.parametrize(
    ("url", "bare", "account"),
    [
        ("http://h:81/v1", "http://h:81/v1", None),
        ("http://me:pass@h:81/v1", "http://h:81/v1", "me:pass"),
        ("https://me@[::1]:8000", "https://[::1]:8000", "me:"),
        ("http://me:p%40ss%2Fw@h", "http://h", "me:p@ss/w"),
        ("http://me:p@ss@h/", "http://h/", "me:p@ss"),
        ("redis://:pass@h:6379/0", "redis://h:6379/0", ":pass"),
    ],
)
def test_an_account_is_taken_out_of_a_url(url: str, bare: str, account: str | None) -> None:
    assert split_account(url) == (bare, None if account is None else Secret(account))


@pytest.mark.parametrize("text", ["http://u:canary@h", "http://u:can/canary@h/x", "u:canary@h", "canary@"])
def test_what_is_no_url_is_shown_without_an_account(text: str) -> None:
    assert "canary" not in without_account(text)
    assert without_account("http://h:1/v1") == "http://h:1/v1"


@given(VALUES, st.binary(), st.binary())
def test_an_echo_of_a_secret_is_hidden(value: str, before: bytes, behind: bytes) -> None:
    found = hidden(before + value.encode() + behind, [Secret(value), Secret("")])
    assert value.encode() not in found
    assert b"***" in found
    assert hidden(b"nothing of ours", [Secret(value), Secret("ours")]) == b"nothing of ours"
