"""Whose request it is: one table of all the ways to know a caller, asked by every door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weighbridge.wire.access import is_loopback
from weighbridge.wire.ask import LONGEST_NAME
from weighbridge.wire.errors import ApiError
from weighbridge.wire.extension import LOWEST_PRIORITY
from weighbridge.wire.identity.proxies import Proxies
from weighbridge.wire.identity.settings import IdentitySettings
from weighbridge.wire.keys import Keys, bearer

if TYPE_CHECKING:
    from weighbridge.wire.identity.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection: its address, and the names in the certificate that it showed."""

    address: str = ""
    names: tuple[str, ...] = ()


def peer_of(scope: Mapping[str, Any]) -> Peer:
    """The peer of an ASGI request."""
    client = scope.get("client")
    shown = scope.get("extensions", {}).get("tls", {}).get("client_names", ())
    return Peer(client[0] if client else "", shown)


class Callers:
    """Knows a caller by the word of a trusted proxy, else by a key or a token, else by the connection's certificate."""

    def __init__(
        self, keys: Keys, settings: IdentitySettings, priorities: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """`priorities`: each tenant's most urgent class. Raises BadInput for a file of settings that is no good."""
        self.keys = keys
        self._priorities = dict(priorities)
        self._proxies = Proxies(settings.trusted_proxies, settings.tenant_header)
        self._certificates = CertificateNames(settings) if settings.tls_client_ca is not None else None
        self._tokens = _tokens(settings)
        self.are_asked = keys.are_asked or settings.knows_callers  # whether a caller has to be known

    def start(self) -> None:
        """Begin to keep a provider's keys; called on the event loop that serves."""
        if self._tokens is not None:
            self._tokens.keys.start()

    def most_urgent(self, tenant: str) -> int:
        """Return the most urgent class that `tenant` may ask for: as configured, else 0 where callers are known."""
        return self._priorities.get(tenant, 0 if self.are_asked else LOWEST_PRIORITY)

    async def stop(self) -> None:
        if self._tokens is not None:
            await self._tokens.keys.stop()

    async def tenant(self, headers: dict[str, str], peer: Peer) -> str | None:
        """Return the caller's tenant; None where callers need not be known. Raises ApiError 401, seldom 503.

        The header of proxies is taken out of `headers`, whoever sent it. A key that is wrong does no harm beside a good
        certificate: many clients must send some key.
        """
        named = self._proxies.tenant(headers, peer.address)
        if named is not None or not self.are_asked:
            return named
        try:
            return await self._by_bearer(headers)
        except ApiError:
            tenant = self._certificates.tenant(peer.names) if self._certificates is not None else None
            if tenant is None:
                raise
            return tenant

    async def check_watcher(self, headers: dict[str, str], peer: Peer) -> None:
        """Let this machine, the operator and whoever is known see figures. Raises ApiError 401 for others."""
        if is_loopback(self._proxies.client(headers, peer.address)) or self.keys.is_admin(headers):
            return
        try:
            await self.tenant(headers, peer)
        except ApiError as error:
            message = "figures are shown to this machine and with a key; send one, or start with --open-pages"
            raise ApiError(error.status, message, code=error.code) from error

    async def _by_bearer(self, headers: Mapping[str, str]) -> str:
        try:
            tenant = self.keys.tenant(headers)
        except ApiError:
            tenant = await self._by_token(headers)
            if tenant is None:
                raise
            return tenant
        tenant = tenant or await self._by_token(headers)
        if tenant is None:
            message = "nothing says who calls: send a token or a certificate that is known here"
            raise ApiError(401, message, code="invalid_api_key")
        return tenant

    async def _by_token(self, headers: Mapping[str, str]) -> str | None:
        """The tenant in a token; None where the caller sent none, or none is read here."""
        sent = bearer(headers)
        if self._tokens is None or sent.reveal().count(".") != 2:  # three parts in base64
            return None
        return await self._tokens.tenant(sent)


def _tokens(settings: IdentitySettings) -> Tokens | None:
    """What checks tokens, where there are to be any."""
    if not settings.reads_tokens:
        return None
    from weighbridge.wire.identity.tokens import Tokens  # loads cryptography, which takes half a second

    return Tokens(settings)


class CertificateNames:
    """The tenants that names in client certificates stand for."""

    def __init__(self, settings: IdentitySettings) -> None:
        self._tenants = {_folded(one.name): one.tenant for one in settings.client_certificates}

    def tenant(self, names: tuple[str, ...]) -> str | None:
        """Return the tenant that a certificate's names stand for; None for none. Raises ApiError 401 for several."""
        if self._tenants:
            found = {self._tenants[name] for name in map(_folded, names) if name in self._tenants}
        else:
            found = {name.removeprefix("CN:") for name in names if name.startswith("CN:")}
        if len(found) > 1:
            message = "the client certificate has names of several tenants; show one that has one"
            raise ApiError(401, message, code="ambiguous_certificate")
        return found.pop()[:LONGEST_NAME] if found else None


def _folded(name: str) -> str:
    """Names of hosts have no case; others do."""
    return name.lower() if name.startswith("DNS:") else name
