"""From where a server may be asked: pages with figures, hosts that a browser names, sites whose scripts may call.

A server without keys on a loopback address trusts whoever is on this machine. A web page is not: the browser sends its
requests from here too. So there the Host must be a name of this machine, and an Origin one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from weighbridge.knobs import knob
from weighbridge.wire.errors import ApiError

ANY_ORIGIN = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """Who may see what without a key, and from where."""

    open_pages: bool = knob(
        False,
        "With keys on, show /metrics, /v1/load and the console to everybody, not only to this machine and keys.",
    )
    share_prefixes: bool = knob(
        False,
        "With keys on, share cached prompt beginnings between tenants; cached_tokens then tell of others' texts.",
    )
    allow_hosts: tuple[str, ...] = knob(
        (),
        "Host name under which a server without keys on a loopback address may be asked; may repeat.",
        flag="--allow-host",
    )
    allow_origins: tuple[str, ...] = knob(
        (),
        "Site whose scripts may call (CORS), beside those of this machine: https://chat.example, or *; may repeat.",
        flag=("--allow-origin", "--cors"),
    )


def no_host() -> ApiError:
    """The refusal of a request that does not say which host it is for (RFC 9112, section 3.2)."""
    message = "an HTTP/1.1 request names its host, once: send one Host header"
    return ApiError(400, message, code="no_host")


def check_one_host(headers: Mapping[str, str]) -> None:
    """Raise ApiError 400 for a request that names several hosts: two readers could take it for different ones."""
    if "," in headers.get("host", ""):  # as lines of one name are put together
        raise no_host()


def check_site(access: AccessSettings, server: str, headers: Mapping[str, str]) -> None:
    """Refuse a web page that reaches for a loopback server without keys. `server` is the address that was asked.

    Raises ApiError 403.
    """
    if not is_loopback(server):
        return
    host = host_of(headers.get("host", ""))
    if host and not is_this_machine(host) and host not in access.allow_hosts:
        message = (
            f"this server answers for this machine only, not for the host {host[:200]!r}; see --allow-host"
        )
        raise ApiError(403, message, code="host_not_allowed")
    origin = headers.get("origin")
    if origin is not None and not origin_allowed(access, origin):
        message = f"scripts of {origin[:200]!r} may not call this server; allow them with --allow-origin"
        raise ApiError(403, message, code="origin_not_allowed")


def origin_allowed(access: AccessSettings, origin: str) -> bool:
    if ANY_ORIGIN in access.allow_origins or origin in access.allow_origins:
        return True
    try:
        place = urlsplit(origin).netloc
    except ValueError:  # brackets without an address
        return False
    return "@" not in place and is_this_machine(host_of(place))


def host_of(text: str) -> str:
    """The host of `Host: name:port`, in lower case; an IPv6 address without its brackets."""
    text = text.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


@lru_cache(4096)
def is_this_machine(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost") or is_loopback(host)


@lru_cache(4096)
def is_address(host: str) -> bool:
    """Whether a host is given by its IP address, and not by a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def in_url(host: str) -> str:
    """A host as it stands before `:port`: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
