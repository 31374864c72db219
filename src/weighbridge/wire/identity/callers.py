"""Whose request it is: one table of all the ways to know a caller, asked by every door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from weighbridge.wire.ask import LONGEST_NAME
from weighbridge.wire.errors import ApiError
from weighbridge.wire.extension import LOWEST_PRIORITY, KnownCaller
from weighbridge.wire.identity.access import is_loopback
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


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who looks at a page. `sees_all`: also what others do here. `believes_tenants`: it is taken at its word
    on whose a request is, as gateways are, and everybody where callers need not be known."""

    caller: KnownCaller | None = None
    sees_all: bool = False
    believes_tenants: bool = False

    def check_sees_all(self) -> None:
        """Raises ApiError 403 for a tenant like any other."""
        if not self.sees_all:
            message = (
                "these figures are of all tenants: ask from this machine, with the operator's key, or with that of a "
                "tenant that is started with --watcher TENANT (watchers: in weighbridge.yaml); /v1/tickets has your own"
            )
            raise ApiError(403, message, code="figures_of_others")


def peer_of(scope: Mapping[str, Any]) -> Peer:
    """The peer of an ASGI request."""
    client, extensions = scope.get("client"), scope.get("extensions")
    address = client[0] if client else ""
    return Peer(address, extensions.get("tls", {}).get("client_names", ())) if extensions else Peer(address)


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
        self._gateways, self._watchers = frozenset(settings.gateways), frozenset(settings.watchers)
        self._open_pages = settings.open_pages
        self.users_are_tenants = settings.users_are_tenants
        self.are_asked = keys.are_asked or settings.knows_callers  # whether a caller has to be known

    def start(self) -> None:
        """Begin to keep a provider's keys; called on the event loop that serves."""
        if self._tokens is not None:
            self._tokens.keys.start()

    def most_urgent(self, tenant: str, caller: KnownCaller | None) -> int:
        """Return the most urgent class that a request of `tenant` may ask for: as configured, else 0 where callers
        are known. A gateway has held its tenants to their bounds, and is held to one only where it has one itself."""
        if caller is None:
            return self._priorities.get(tenant, LOWEST_PRIORITY)
        others = self._priorities.get(caller.tenant, LOWEST_PRIORITY) if caller.is_gateway else 0
        return self._priorities.get(tenant, others)

    async def stop(self) -> None:
        if self._tokens is not None:
            await self._tokens.keys.stop()

    async def caller(self, headers: dict[str, str], peer: Peer) -> KnownCaller | None:
        """Return who calls; None where callers need not be known. Raises ApiError 401, seldom 503.

        The header of proxies is taken out of `headers`, whoever sent it. A key that is wrong does no harm beside a good
        certificate: many clients must send some key.
        """
        tenant = self._proxies.tenant(headers, peer.address)
        if tenant is None and self.are_asked:
            tenant = await self._by_proof(headers, peer)
        if tenant is None:
            return None
        return KnownCaller(tenant, tenant in self._gateways, tenant in self._watchers)

    def check_operator(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 or 403 for whoever is not the operator, where callers have to be known."""
        if self.are_asked:
            self.keys.check_admin(headers)

    async def visitor(self, headers: dict[str, str], peer: Peer) -> Visitor:
        """Who looks at a page, and how much of it is for them. Raises ApiError 401 for those whom nobody knows."""
        here = is_loopback(self._proxies.client(headers, peer.address))
        sees_all = self._open_pages or not self.are_asked or here or self.keys.is_admin(headers)
        try:
            caller = await self.caller(headers, peer)
        except ApiError as error:
            if not sees_all:
                message = (
                    "figures are shown to this machine and with a key; send one, or start with --open-pages"
                )
                raise ApiError(error.status, message, code=error.code) from error
            return Visitor(sees_all=True)
        if caller is None:
            return Visitor(sees_all=True, believes_tenants=True)
        return Visitor(caller, sees_all or caller.is_watcher, caller.is_gateway)

    async def _by_proof(self, headers: Mapping[str, str], peer: Peer) -> str:
        try:
            return await self._by_bearer(headers)
        except ApiError:
            tenant = self._certificates.tenant(peer.names) if self._certificates is not None else None
            if tenant is None:
                raise
            return tenant

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
