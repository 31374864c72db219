"""What proxies say is believed from those that are trusted: whom they ask for, and whose request it is."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.errors import BadInput
from weighbridge.wire.errors import ApiError
from weighbridge.wire.identity.proxies import Proxies, parse_network
from weighbridge.wire.identity.settings import IdentitySettings

TRUSTED = Proxies([parse_network(text) for text in ("10.0.0.0/8", "127.0.0.1", "fd00::/8")], "X-Tenant")
NOBODY = Proxies()
ADDRESSES = st.ip_addresses().map(str)
WORDS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


@given(ADDRESSES, WORDS)
def test_a_tenant_is_believed_from_trusted_proxies_and_the_header_goes_in_any_case(
    peer: str, word: str
) -> None:
    headers = {"x-tenant": word, "other": "stays"}
    with contextlib.suppress(ApiError):
        tenant = TRUSTED.tenant(headers, peer)
        assert tenant is None or TRUSTED.trusts(peer)
        assert tenant is None or (tenant and "," not in tenant and tenant.isprintable())
    assert headers == {"other": "stays"}


@pytest.mark.parametrize("word", ["", " ", "alice, bob", "alice,", "al\x00ice", "a" * 201, "alice\x7f"])
def test_a_word_that_names_no_single_tenant_is_refused(word: str) -> None:
    with pytest.raises(ApiError) as caught:
        TRUSTED.tenant({"x-tenant": word}, "10.1.1.1")
    assert (caught.value.status, caught.value.code) == (401, "ambiguous_tenant")
    assert TRUSTED.tenant({"x-tenant": word}, "11.1.1.1") is None


def test_a_tenant_may_be_named_in_utf_8_and_headers_have_no_case() -> None:
    assert TRUSTED.tenant({"x-tenant": " größe ".encode().decode("latin-1")}, "::ffff:10.0.0.1") == "größe"
    assert TRUSTED.tenant({}, "10.0.0.1") is None
    assert NOBODY.tenant({"x-tenant": "alice"}, "127.0.0.1") is None


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("11.0.0.1", None, "11.0.0.1"),
        ("11.0.0.1", "127.0.0.1", ""),  # who is not trusted cannot say that it is this machine
        ("127.0.0.1", "127.0.0.1", ""),
        ("127.0.0.1", None, ""),  # a proxy that does not say for whom
        ("127.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "9.9.9.9, 10.0.0.2", "9.9.9.9"),
        ("10.0.0.1", "127.0.0.1, 9.9.9.9", "9.9.9.9"),  # what the client itself wrote is left of its address
        ("10.0.0.1", "::1, 9.9.9.9:1234, [fd00::1]:80", "9.9.9.9"),
        ("10.0.0.1", "[2001:db8::1]:99", "2001:db8::1"),
        ("10.0.0.1", "unknown", ""),
        ("10.0.0.1", "9.9.9.9, _hidden", ""),
        ("10.0.0.1", "9.9.9.9,", ""),
        ("10.0.0.1", ", ".join(["9.9.9.9"] + ["10.0.0.3"] * 100_000), ""),
        ("fd00::1", "9.9.9.9", "9.9.9.9"),
    ],
)
def test_the_client_is_the_last_one_that_a_trusted_proxy_saw(
    peer: str, forwarded: str | None, client: str
) -> None:
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    assert TRUSTED.client(headers, peer) == client


@given(ADDRESSES, st.lists(ADDRESSES | st.text(max_size=10), max_size=5))
def test_nobody_becomes_this_machine_by_what_it_writes(peer: str, written: list[str]) -> None:
    """What a stranger sends stands left of what the first trusted proxy adds: the stranger's address."""
    stranger = "203.0.113.9"
    said = ", ".join([*written, stranger, "10.0.0.7"])
    found = TRUSTED.client({"x-forwarded-for": said}, peer)
    assert found in ("", stranger)
    for name in ("forwarded", "x-real-ip", "x-forwarded-for"):
        assert NOBODY.client({name: said}, peer) == ""
    assert NOBODY.client({}, peer) == peer


def test_networks_that_are_none_or_everybody_are_refused() -> None:
    for wrong in ("", "10.0.0.1/8", "proxy.example", "10.0.0.0/33", "0.0.0.0/0", "::/0"):
        with pytest.raises(BadInput) as caught:
            parse_network(wrong)
        assert caught.value.param == "trusted_proxies"
    assert ip_address("10.1.2.3") in parse_network("10.1.2.3")


def test_a_header_needs_proxies_and_a_name() -> None:
    networks = (parse_network("10.0.0.0/8"),)
    with pytest.raises(BadInput, match="needs trusted_proxies"):
        IdentitySettings(tenant_header="X-Tenant")
    for wrong in ("", "X Tenant", "X-Tenant:", "größe"):
        with pytest.raises(BadInput, match="no header's name"):
            IdentitySettings(tenant_header=wrong, trusted_proxies=networks)
    assert IdentitySettings(tenant_header="X-Tenant", trusted_proxies=networks).knows_callers
    assert not IdentitySettings(trusted_proxies=networks).knows_callers
