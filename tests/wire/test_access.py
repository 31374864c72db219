"""A web page is not this machine, although its requests come from here."""

from __future__ import annotations

import pytest

from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.identity.access import AccessSettings, check_one_host, check_site, host_of

OPEN = AccessSettings()


@pytest.mark.parametrize(
    "host", ["localhost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "app.localhost", "LOCALHOST", ""]
)
@pytest.mark.parametrize("origin", [None, "http://localhost:3000", "http://127.0.0.1:8080", "https://[::1]"])
def test_names_of_this_machine_are_served(host: str, origin: str | None) -> None:
    headers = {"host": host} | ({"origin": origin} if origin else {})
    check_site(OPEN, "127.0.0.1", headers)
    check_site(OPEN, "::1", headers)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:8080",
        "evil.example:8080",
        "10.0.0.7",
        "[::2]",
    ],
)
def test_a_name_that_was_bound_to_this_machine_is_refused(host: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_site(OPEN, "127.0.0.1", {"host": host})
    assert (caught.value.status, caught.value.code) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "https://localhost.evil.example", "file://"]
)
def test_scripts_of_other_sites_are_refused(origin: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_site(OPEN, "127.0.0.1", {"host": "localhost", "origin": origin})
    assert caught.value.code == "origin_not_allowed"


def test_what_the_operator_allows_is_allowed_and_no_more() -> None:
    access = AccessSettings(allow_hosts=("llm.internal",), allow_origins=("https://chat.example",))
    check_site(access, "127.0.0.1", {"host": "llm.internal:443", "origin": "https://chat.example"})
    with pytest.raises(ApiError):
        check_site(access, "127.0.0.1", {"host": "other.internal"})
    with pytest.raises(ApiError):
        check_site(access, "127.0.0.1", {"origin": "http://chat.example"})
    check_site(AccessSettings(allow_origins=("*",)), "127.0.0.1", {"origin": "null"})


def test_a_server_on_another_address_is_meant_for_others() -> None:
    check_site(OPEN, "192.168.0.3", {"host": "anything", "origin": "http://elsewhere"})


def test_hosts_lose_their_port_and_brackets() -> None:
    assert [host_of(text) for text in ("A:1", "[::1]:8", " b ", "[::1")] == ["a", "::1", "b", "::1"]


def test_several_hosts_are_refused_wherever_the_server_listens() -> None:
    """On loopback without keys by the rule above: what stands there together is no name of this machine."""
    both = headers_of([(b"host", b"localhost"), (b"host", b"localhost")])
    with pytest.raises(ApiError) as refused:
        check_site(OPEN, "127.0.0.1", both)
    assert (refused.value.status, refused.value.code) == (403, "host_not_allowed")
    check_site(OPEN, "192.0.2.1", both)
    with pytest.raises(ApiError) as refused:
        check_one_host(both)
    assert (refused.value.status, refused.value.code) == (400, "no_host")
    check_one_host({"host": "localhost"})
    check_one_host({})
