"""What a proxy says of the client behind it, believed from those that are trusted and from nobody else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from weighbridge.errors import BadInput
from weighbridge.wire.ask import LONGEST_NAME
from weighbridge.wire.errors import ApiError

Network = IPv4Network | IPv6Network

#: Headers by which a proxy says that it asks for somebody else.
FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")
#: Proxies of one request that are looked through.
MOST_HOPS = 32


def parse_network(text: str) -> Network:
    """Read `10.0.0.0/8` or one address. Raises BadInput, also for a network that is everybody."""
    try:
        network = ip_network(text)
    except ValueError:
        hint = "write an address or a network without host bits, such as 10.1.2.3 or 10.0.0.0/8"
        raise BadInput(f"trusted proxy {text[:LONGEST_NAME]!r}: {hint}", param="trusted_proxies") from None
    if network.prefixlen == 0:
        raise BadInput(
            f"trusted proxy {text}: everybody would be believed; name the proxies", param="trusted_proxies"
        )
    return network


class Proxies:
    """The proxies that are trusted, and the header in which they name a tenant."""

    def __init__(self, networks: Iterable[Network] = (), tenant_header: str | None = None) -> None:
        self._networks = tuple(networks)
        self.tenant_header = tenant_header.lower() if tenant_header else None
        self.trusts = lru_cache(4096)(self._trusts)

    def _trusts(self, address: str) -> bool:
        found = _address(address)
        return found is not None and any(
            found in network for network in self._networks if network.version == found.version
        )

    def tenant(self, headers: dict[str, str], address: str) -> str | None:
        """Take the tenant's header out of `headers`, and return its word if a trusted proxy sent it.

        Raises ApiError 401 where a trusted proxy's header names no single tenant: a client may have sent one too.
        """
        if self.tenant_header is None:
            return None
        word = headers.pop(self.tenant_header, None)
        if word is None or not self.trusts(address):
            return None
        word = _as_utf8(word).strip()
        if not 0 < len(word) <= LONGEST_NAME or "," in word or not word.isprintable():
            message = (
                f"the header {self.tenant_header} does not name one tenant; a proxy must replace what it gets"
            )
            raise ApiError(401, message, code="ambiguous_tenant")
        return word

    def client(self, headers: Mapping[str, str], address: str) -> str:
        """Return the address of the client behind proxies that are trusted; empty where nobody trusted says it.

        Who sends the headers of a proxy and is none of ours asks for somebody else, who is not on this machine.
        """
        if not self.trusts(address):
            return "" if any(name in headers for name in FORWARDED) else address
        hops = headers.get("x-forwarded-for", "").rsplit(",", MOST_HOPS)[-MOST_HOPS:]
        for hop in map(_bare, reversed(hops)):
            if not self.trusts(hop):
                return hop if _address(hop) is not None else ""
        return ""


def _as_utf8(word: str) -> str:
    """A header's value, whose bytes were read as Latin-1, as the UTF-8 that it most likely is."""
    try:
        return word.encode("latin-1").decode()
    except UnicodeError:
        return word


def _bare(hop: str) -> str:
    """An address without the port and the brackets that some proxies write."""
    hop = hop.strip()
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
