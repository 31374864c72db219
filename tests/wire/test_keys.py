"""Keys: opaque, compared by digest, never printed."""

from __future__ import annotations

import pytest

from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire.errors import ApiError
from weighbridge.wire.keys import ApiKey, Keys, bearer, parse_key


def test_the_padding_of_base64_names_no_tenant() -> None:
    assert parse_key("c2VjcmV0a2V5==") == ApiKey("default", Secret("c2VjcmV0a2V5=="))
    assert parse_key("team=c2VjcmV0a2V5==") == ApiKey("team", Secret("c2VjcmV0a2V5=="))
    assert parse_key("plain") == ApiKey("default", Secret("plain"))
    for wrong in ("", "team=", "=key"):
        with pytest.raises(BadInput, match="TENANT=KEY"):
            parse_key(wrong)


def test_a_key_does_not_show_when_it_is_printed() -> None:
    assert "s3cret" not in repr(parse_key("team=s3cret"))


@pytest.mark.parametrize("header", ["Bearer k==", "bearer  k== ", "BEARER k=="])
def test_the_scheme_is_read_in_any_case_and_the_key_as_it_is(header: str) -> None:
    assert Keys([ApiKey("t", Secret("k=="))]).tenant({"authorization": header}) == "t"


@pytest.mark.parametrize(
    "header", ["k==", "Basic k==", "Bearer", "Bearer ", "Bearer k", "Bearer =", "Bearer k== x", "Token k=="]
)
def test_everything_else_is_refused(header: str) -> None:
    with pytest.raises(ApiError) as caught:
        Keys([ApiKey("t", Secret("k=="))]).tenant({"authorization": header})
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_without_keys_everybody_may_call_and_an_expired_one_is_said() -> None:
    assert Keys().tenant({}) is None
    with pytest.raises(ApiError, match="expired"):
        Keys([ApiKey("t", Secret("k"), expires=1.0)]).tenant({"authorization": "Bearer k"})


def test_the_operators_key_is_another_one() -> None:
    keys = Keys([ApiKey("t", Secret("k"))], admin=Secret("root"))
    keys.check_admin({"authorization": "Bearer root"})
    for secret, refusing in (("k", keys), ("", keys), ("root", Keys())):
        with pytest.raises(ApiError):
            refusing.check_admin({"authorization": f"Bearer {secret}"})
    assert not bearer({})
