"""Entries of a model's `discover:` in weighbridge.yaml."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from weighbridge.fleet.config.reader import Section
from weighbridge.fleet.config.replica import Defaults, read_replica
from weighbridge.fleet.config.spec import DiscoverySpec

_PART = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS = re.compile(rf"(?P<name>(?=[^:]{{1,253}}(:|$)){_PART}(\.{_PART})*\.?)(:(?P<port>\d{{1,5}}))?")
_LABEL = r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?"
_SERVICE = re.compile(f"{_LABEL}/{_LABEL}")


def read_discovery(section: Section, name: str, defaults: Defaults) -> DiscoverySpec:
    """Read one entry; `name` begins the names of its replicas where it gives none."""
    dns, number = _dns(section)
    port: int | str | None = number
    kubernetes = section.text("kubernetes") or None
    if (dns is None) == (kubernetes is None):
        section.problem("dns", "give exactly one of `dns: HOST:PORT` and `kubernetes: NAMESPACE/SERVICE`")
    if kubernetes is not None:
        port = _port(section)
        if _SERVICE.fullmatch(kubernetes) is None:
            section.problem("kubernetes", f"{kubernetes!r} is no service; write NAMESPACE/SERVICE")
    own = section.text("name", name)
    spec = DiscoverySpec(
        name=own,
        template=read_replica(section.section("replica"), own, defaults, "http://found"),
        dns=dns,
        kubernetes=kubernetes,
        port=port,
        scheme=section.choice("scheme", "http", ("http", "https")),
        interval=section.number("interval", 30.0, least=1.0),
        server=_server(section),
        api=_api(section),
        account=section.path("account", defaults.base, must_exist=True),
    )
    section.done()
    return spec


def _dns(section: Section) -> tuple[str | None, int | None]:
    """A name and the port of all its addresses; of SRV records (`_service._proto.name`) the port is None."""
    text = section.text("dns")
    if not text:
        return None, None
    found = _DNS.fullmatch(text)
    port = int(found["port"]) if found is not None and found["port"] else None
    if found is None or (port is not None and not 0 < port < 65536):
        section.problem("dns", f"{text!r} is no name; write HOST:PORT, or _SERVICE._tcp.NAME for SRV records")
        return text, None
    if (port is None) != found["name"].startswith("_"):
        section.problem(
            "dns", "a name needs its port (HOST:PORT), unless it is that of SRV records (_SERVICE._tcp.NAME)"
        )
    return found["name"], port


def _port(section: Section) -> int | str | None:
    value = section.plain("port")
    if value is None:
        return None
    is_number = type(value) is int and 0 < value < 65536
    if not is_number and not (isinstance(value, str) and re.fullmatch("[a-z0-9-]{1,15}", value)):
        section.problem("port", "must be the name or the number of one of the service's ports")
        return None
    return value  # type: ignore[no-any-return]


def _server(section: Section) -> tuple[str, int] | None:
    text = section.text("server")
    if not text:
        return None
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "53")
    try:
        return str(ip_address(host.strip("[]"))), int(port)
    except ValueError:
        section.problem("server", f"{text!r} is no name server; write ADDRESS:PORT, such as 10.0.0.2:53")
        return None


def _api(section: Section) -> str | None:
    text = section.text("api").rstrip("/")
    if not text:
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        section.problem("api", "is no URL of an API server; write https://HOST:6443")
    return text
