"""Whose request it is: one table of all the ways to know a caller, asked by every door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weighbridge.wire.access import is_loopback
from weighbridge.wire.ask import LONGEST_NAME
from weighbridge.wire.errors import ApiError
from weighbridge.wire.identity.settings import IdentitySettings
from weighbridge.wire.keys import Keys


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
    """Knows a caller by a key, else by the certificate of the connection."""

    def __init__(self, keys: Keys, settings: IdentitySettings) -> None:
        self.keys = keys
        self._certificates = CertificateNames(settings) if settings.tls_client_ca is not None else None

    @property
    def are_asked(self) -> bool:
        """Whether a caller has to be known."""
        return self.keys.are_asked or self._certificates is not None

    async def tenant(self, headers: Mapping[str, str], peer: Peer) -> str | None:
        """Return the caller's tenant; None where callers need not be known. Raises ApiError 401.

        A key that is wrong does no harm beside a good certificate: many clients must send some key.
        """
        if not self.are_asked:
            return None
        refusal = ApiError(401, "a client certificate is needed here", code="invalid_api_key")
        if self.keys.are_asked:
            try:
                return self.keys.tenant(headers)
            except ApiError as error:
                refusal = error
        tenant = self._certificates.tenant(peer.names) if self._certificates is not None else None
        if tenant is None:
            raise refusal
        return tenant

    async def check_watcher(self, headers: Mapping[str, str], peer: Peer) -> None:
        """Let this machine, the operator and whoever is known see figures. Raises ApiError 401 for others."""
        if is_loopback(peer.address) or self.keys.is_admin(headers):
            return
        try:
            await self.tenant(headers, peer)
        except ApiError as error:
            message = "figures are shown to this machine and with a key; send one, or start with --open-pages"
            raise ApiError(error.status, message, code=error.code) from error


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
