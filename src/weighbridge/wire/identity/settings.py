"""What an operator can set about who calls and over which line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.wire.access import AccessSettings
from weighbridge.wire.ask import LONGEST_NAME

#: The parts of a certificate that a name may stand in: its subject's common name, and its alternative names.
KINDS = ("CN", "DNS", "URI", "EMAIL")


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
    insecure: bool = knob(
        False, "Listen beyond this machine although there are neither keys nor TLS.", flag="--insecure"
    )

    def __post_init__(self) -> None:
        if self.tls_cert is None:
            for name in ("tls_key", "tls_client_ca"):
                if getattr(self, name) is not None:
                    raise BadInput(f"{name} needs tls_cert, the server's own certificate", param=name)
        if self.client_certificates and self.tls_client_ca is None:
            raise BadInput(
                "client_certificates need tls_client_ca, whose certificates are believed",
                param="client_certificates",
            )

    @property
    def knows_callers(self) -> bool:
        """Whether there is a way to know a caller beside keys."""
        return self.tls_client_ca is not None
