"""Keys: opaque, compared by digest, never printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire import keys as keys_module
from weighbridge.wire.errors import ApiError
from weighbridge.wire.keys import (
    ApiKey,
    Keys,
    bearer,
    digest_of,
    hash_of,
    is_short,
    new_key,
    parse_key,
    parse_tenant_priority,
)

SECRETS = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs")), min_size=1)


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


def sent(key: str) -> dict[str, str]:
    """The header as a server reads it: each byte of the UTF-8 a character."""
    return {"authorization": "Bearer " + key.encode().decode("latin-1")}


@given(SECRETS)
def test_a_hash_stands_for_its_key_and_is_none_itself(text: str) -> None:
    key = Secret(text)
    written = hash_of(key)
    keys = Keys([ApiKey("t", Secret(written))], admin=Secret(written.upper().replace("SHA", "sha")))
    assert digest_of(Secret(written)) == digest_of(key) or text.startswith("sha256:")
    assert keys.tenant(sent(text)) == "t"
    assert keys.is_admin(sent(text))
    keys.check_admin(sent(text))
    for wrong in (written, written.removeprefix("sha256:"), text + "x"):
        with pytest.raises(ApiError):
            keys.tenant(sent(wrong))
        with pytest.raises(ApiError):
            keys.check_admin(sent(wrong))
    assert text not in repr(keys.__dict__) or len(text) < 16


@pytest.mark.parametrize("wrong", ["sha256:", "sha256:abc", "sha256:" + "g" * 64, "t=sha256:" + "0" * 63])
def test_a_hash_that_is_none_is_refused_and_not_repeated(wrong: str) -> None:
    with pytest.raises(BadInput, match="64 hexadecimal digits; `weighbridge keys hash`") as caught:
        parse_key(wrong)
    assert "ggg" not in str(caught.value)


def test_two_keys_of_one_tenant_are_good_at_the_same_time_until_one_expires() -> None:
    old, new = new_key(), new_key()
    both = Keys([ApiKey("t", old), ApiKey("t", Secret(hash_of(new)), expires=4e9)])
    assert both.tenant(sent(old.reveal())) == both.tenant(sent(new.reveal())) == "t"
    later = Keys([ApiKey("t", Secret(hash_of(old)), expires=1.0), ApiKey("t", new)])
    with pytest.raises(ApiError, match="expired"):
        later.tenant(sent(old.reveal()))
    assert later.tenant(sent(new.reveal())) == "t"


def test_a_new_key_is_long_and_another_each_time() -> None:
    keys = {new_key().reveal() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) >= 43 and not is_short(Secret(key)) for key in keys)


def test_a_short_key_is_warned_of_by_its_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(keys_module.log, "warning", lambda text, *values: warned.append(text % values))
    Keys([ApiKey("fine", new_key()), ApiKey("hashed", Secret(hash_of(Secret("short"))))], admin=new_key())
    assert not warned
    Keys([ApiKey("ann", Secret("guess-me"))], admin=Secret("root"))
    [said] = warned
    assert "'ann', the operator (admin_key)" in said
    assert "weighbridge keys new" in said
    assert "guess-me" not in said


@given(st.text(min_size=1), st.integers(-5000, 5000))
def test_a_tenants_class_is_read_as_it_is_written(tenant: str, priority: int) -> None:
    read = parse_tenant_priority(f"{tenant}={priority}")
    assert read == (tenant, priority)
    assert parse_tenant_priority(str(read)) == read


@pytest.mark.parametrize("text", ["", "a", "=5", "a=", "a=high", "a=1.5", "a=--5", "a= 5", "a=²"])
def test_a_class_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="TENANT=CLASS"):
        parse_tenant_priority(text)
