"""What an operator can set about who calls and over which line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.secret import without_account
from weighbridge.wire.ask import LONGEST_NAME
from weighbridge.wire.identity.access import AccessSettings, is_this_machine
from weighbridge.wire.identity.proxies import Network, parse_network
from weighbridge.wire.prompts.care import TenantRules, parse_tenant_rules

#: The parts of a certificate that a name may stand in: its subject's common name, and its alternative names.
KINDS = ("CN", "DNS", "URI", "EMAIL")

_HEADER = re.compile("[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True)
class CertificateName:
    """A name in a client's certificate, such as `DNS:batch.example`, and the tenant it stands for."""

    name: str
    tenant: str


def parse_certificate_name(text: str) -> CertificateName:
    """Read `KIND:NAME=TENANT`; the name may have a `=` in it. Raises BadInput."""
    name, _, tenant = text.rpartition("=")
    kind, _, rest = name.partition(":")
    if kind not in KINDS or not rest or not 0 < len(tenant) <= LONGEST_NAME:
        hint = f"write KIND:NAME=TENANT, such as DNS:batch.example=batch, where KIND is one of {', '.join(KINDS)}"
        raise BadInput(f"client certificate {text[:LONGEST_NAME]!r}: {hint}", param="client_certificates")
    return CertificateName(name, tenant)


def parse_tenant(text: str) -> str:
    """Read a tenant's name. Raises BadInput for what can be none."""
    if not 0 < len(text) <= LONGEST_NAME:
        raise BadInput(f"tenant {text[:LONGEST_NAME]!r}: a name has 1 to {LONGEST_NAME} characters")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings(AccessSettings):
    """How callers are known beside keys, and whether the line to them is private."""

    tls_cert: Path | None = knob(
        None, "Certificate chain (PEM) to serve HTTPS with; read again whenever it changes."
    )
    tls_key: Path | None = knob(None, "Its private key (PEM); none: it is in the certificate's file.")
    tls_client_ca: Path | None = knob(
        None, "Authorities (PEM) whose client certificates stand for tenants; callers without one need a key."
    )
    client_certificates: tuple[CertificateName, ...] = knob(
        (),
        "KIND:NAME=TENANT, such as DNS:batch.example=batch (CN, DNS, URI, EMAIL); may repeat. "
        "None: the common name is the tenant.",
        flag="--client-certificate",
        parse=parse_certificate_name,
    )
    trusted_proxies: tuple[Network, ...] = knob(
        (),
        "Address or network of a proxy whose word on its clients is believed; may repeat.",
        flag="--trusted-proxy",
        parse=parse_network,
    )
    tenant_header: str | None = knob(
        None, "Header in which a trusted proxy names the tenant; dropped where anybody else sends it."
    )
    oidc_jwks: Path | None = knob(None, "File with the public keys (JWKS) that tokens are checked with.")
    oidc_jwks_url: str | None = knob(None, "The same from a URL, read again every five minutes.")
    oidc_tls_ca: Path | None = knob(None, "Authorities (PEM) that this URL is believed by.")
    oidc_issuer: str | None = knob(None, "The issuer that tokens must be from.")
    oidc_audiences: tuple[str, ...] = knob(
        (), "An audience that tokens may be for; may repeat.", flag="--oidc-audience"
    )
    oidc_claim: str = knob("sub", "The claim of a token that is its tenant.")
    users_are_tenants: bool = knob(
        False,
        "Where callers need not be known, take OpenAI's `user` for the tenant.",
        flag="--users-are-tenants",
    )
    gateways: tuple[str, ...] = knob(
        (),
        "Tenant that is a gateway: whose request it says one is, is believed; may repeat.",
        flag="--gateway",
        parse=parse_tenant,
    )
    watchers: tuple[str, ...] = knob(
        (),
        "Tenant that sees everybody's figures in /metrics and /v1/load, such as Prometheus; may repeat.",
        flag="--watcher",
        parse=parse_tenant,
    )
    prompt_rules: tuple[TenantRules, ...] = knob(
        (),
        "[TENANT=]RULE+RULE: what is moved or sorted in prompts so that they stay cached (billing, dates, git_status, "
        "whitespace, tools, all, none); may repeat.",
        flag="--prompt-rules",
        parse=parse_tenant_rules,
    )
    insecure: bool = knob(
        False, "Listen beyond this machine although there are neither keys nor TLS.", flag="--insecure"
    )

    def __post_init__(self) -> None:
        if self.tls_cert is None:
            for name in ("tls_key", "tls_client_ca"):
                if getattr(self, name) is not None:
                    raise BadInput(f"{name} needs tls_cert, the server's own certificate", param=name)
        if self.tenant_header is not None and not self.trusted_proxies:
            raise BadInput("tenant_header needs trusted_proxies that may send it", param="tenant_header")
        if self.tenant_header is not None and _HEADER.fullmatch(self.tenant_header) is None:
            raise BadInput(f"tenant_header {self.tenant_header!r} is no header's name", param="tenant_header")
        self._check_oidc()
        if self.client_certificates and self.tls_client_ca is None:
            raise BadInput(
                "client_certificates need tls_client_ca, whose certificates are believed",
                param="client_certificates",
            )

    @property
    def knows_callers(self) -> bool:
        """Whether there is a way to know a caller beside keys."""
        return self.tls_client_ca is not None or self.tenant_header is not None or self.reads_tokens

    @property
    def reads_tokens(self) -> bool:
        """Whether callers may send tokens of an identity provider."""
        return self.oidc_jwks is not None or self.oidc_jwks_url is not None

    def _check_oidc(self) -> None:
        if self.oidc_jwks is not None and self.oidc_jwks_url is not None:
            raise BadInput("oidc_jwks is given beside oidc_jwks_url; keep one of them", param="oidc_jwks")
        if self.reads_tokens != bool(self.oidc_issuer) or self.reads_tokens != bool(self.oidc_audiences):
            together = "oidc_issuer, oidc_audiences and one of oidc_jwks and oidc_jwks_url go together"
            raise BadInput(f"tokens are checked for all of it or not at all: {together}", param="oidc_issuer")
        url = self.oidc_jwks_url
        if url is not None and not _is_private(url):
            hint = "the keys must come over https (or http from this machine), from a URL without an account"
            raise BadInput(f"oidc_jwks_url {without_account(url)!r}: {hint}", param="oidc_jwks_url")


def _is_private(url: str) -> bool:
    """Whether nobody between here and a URL can change what comes from it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    here = parts.scheme == "http" and is_this_machine(host)
    return bool(host) and "@" not in parts.netloc and (parts.scheme == "https" or here)
