"""How traces are made and sent: what the operator wrote, else OpenTelemetry's environment variables.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and .../configuration/sdk-environment-variables/
"""

from __future__ import annotations

import logging
import math
import os
import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from weighbridge import __version__
from weighbridge.errors import BadInput
from weighbridge.fleet.config.tracing import TraceSettings
from weighbridge.secret import Secret, without_account
from weighbridge.server.tracing.otlp import Encoding

log = logging.getLogger("weighbridge.server")

_OTLP = "OTEL_EXPORTER_OTLP_"
_PATH = "/v1/traces"
#: Where collectors listen if nobody says otherwise, and their port for gRPC, which is not spoken here.
_USUAL, _GRPC_PORT = "http://localhost:4318", 4317
#: Samplers by their standard names: the share that they take (None: the argument), and whether a caller's word holds.
_SAMPLERS: dict[str, tuple[float | None, bool]] = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which requests are traced: a share of them, and, if `heeds_parent`, first those that their caller traces."""

    ratio: float = 1.0
    heeds_parent: bool = True


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans are sent. `timeout`: seconds for one batch. The files are PEM."""

    url: str
    headers: Mapping[str, Secret] = field(default_factory=dict)
    encoding: Encoding = Encoding.PROTOBUF
    zipped: bool = False
    timeout: float = 10.0
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Batching:
    """Requests that wait for the collector, those that are sent at once, and seconds between two sendings."""

    queue: int = 2048
    batch: int = 256
    delay: float = 5.0


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """All of it. `resource`: what is said of this server, once for all its spans."""

    collector: Collector
    sampling: Sampling = field(default_factory=Sampling)
    batching: Batching = field(default_factory=Batching)
    resource: Mapping[str, str | int] = field(default_factory=dict)


def export_settings(settings: TraceSettings, environ: Mapping[str, str]) -> ExportSettings | None:
    """None where no traces are wanted. Raises BadInput for a collector that cannot be sent to."""
    known = {name: value.strip() for name, value in environ.items() if name.startswith("OTEL_")}
    url = _url(settings.otlp_endpoint, known)
    if url is None:
        return None
    return ExportSettings(
        _collector(url, known), _sampling(settings, known), _batching(known), _resource(known)
    )


def _url(written: str | None, environ: Mapping[str, str]) -> str | None:
    """The address that spans are posted to; None where none is named."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "")
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none"
    if written is None and is_off:
        return None
    if written is None and environ.get(f"{_OTLP}TRACES_ENDPOINT"):
        return _checked(environ[f"{_OTLP}TRACES_ENDPOINT"])  # as it is: it is that of traces alone
    base = written or environ.get(f"{_OTLP}ENDPOINT") or (_USUAL if exporter == "otlp" else None)
    if not base:
        return None
    base = _checked(base).rstrip("/")
    return base if base.endswith(_PATH) else base + _PATH


def _checked(url: str) -> str:
    """Raises BadInput for what is no address of a collector."""
    try:
        parts = urlsplit(url)
        port = parts.port
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid, port = False, None
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        hint = f"write for example {_USUAL}; keys go into {_OTLP}HEADERS"
        raise BadInput(f"otlp_endpoint {without_account(url)!r}: {hint}", param="otlp_endpoint")
    if port == _GRPC_PORT:
        log.warning("traces: port %d of a collector is that of gRPC; OTLP over HTTP is usually at 4318", port)
    return url


def _collector(url: str, environ: Mapping[str, str]) -> Collector:
    def one(name: str) -> str:
        return environ.get(f"{_OTLP}TRACES_{name}") or environ.get(f"{_OTLP}{name}", "")

    def path(name: str) -> Path | None:
        return Path(one(name)) if one(name) else None

    protocol = one("PROTOCOL") or Encoding.PROTOBUF.value
    if protocol not in list(Encoding):
        what = f"{_OTLP}PROTOCOL {protocol!r} is not spoken here: use {Encoding.PROTOBUF} or {Encoding.JSON}"
        raise BadInput(what, param="otlp_endpoint")
    compression = one("COMPRESSION") or "none"
    if compression not in ("none", "gzip"):
        log.warning("traces: %sCOMPRESSION %r is not known, so nothing is compressed", _OTLP, compression)
    milliseconds = _number(environ, f"{_OTLP}TRACES_TIMEOUT", 0.0) or _number(
        environ, f"{_OTLP}TIMEOUT", 10_000.0
    )
    return Collector(
        url,
        _headers(one("HEADERS")),
        Encoding(protocol),
        compression == "gzip",
        max(milliseconds / 1e3, 0.1),
        path("CERTIFICATE"),
        path("CLIENT_CERTIFICATE"),
        path("CLIENT_KEY"),
    )


def _headers(text: str) -> dict[str, Secret]:
    """`name=value,name=value`, percent-encoded. Raises BadInput without showing a value."""
    found = {}
    for pair in filter(None, (one.strip() for one in text.split(","))):
        name, sign, value = pair.partition("=")
        name, value = unquote(name).strip(), unquote(value).strip()
        if not sign or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise BadInput(f"{_OTLP}HEADERS: write name=value, with commas between", param="otlp_endpoint")
        if not value.isprintable():
            raise BadInput(f"{_OTLP}HEADERS: {name} has a character in it that no header may have")
        found[name] = Secret(value)
    return found


def _sampling(settings: TraceSettings, environ: Mapping[str, str]) -> Sampling:
    if settings.trace_ratio is not None:
        return Sampling(settings.trace_ratio)
    name = environ.get("OTEL_TRACES_SAMPLER", "") or "parentbased_always_on"
    if name not in _SAMPLERS:
        log.warning("traces: OTEL_TRACES_SAMPLER %r is not known, so all requests are traced", name)
        return Sampling()
    ratio, heeds_parent = _SAMPLERS[name]
    if ratio is None:
        ratio = _number(environ, "OTEL_TRACES_SAMPLER_ARG", 1.0)
    return Sampling(min(ratio, 1.0), heeds_parent)


def _batching(environ: Mapping[str, str]) -> Batching:
    usual = Batching()
    queue = max(int(_number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", usual.queue)), 1)
    batch = max(int(_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", usual.batch)), 1)
    delay = _number(environ, "OTEL_BSP_SCHEDULE_DELAY", usual.delay * 1e3) / 1e3
    return Batching(queue, min(batch, queue), max(delay, 0.05))


def _number(environ: Mapping[str, str], name: str, usual: float) -> float:
    """A number that is not negative; what is none is warned of and left out."""
    text = environ.get(name, "")
    if not text:
        return usual
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1e12:
        log.warning("traces: %s %r is no number that can be used; it is %g", name, text, usual)
        return usual
    return value


def _resource(environ: Mapping[str, str]) -> dict[str, str | int]:
    """What all spans of this process share; the operator's words win over ours."""
    told: dict[str, str | int] = {
        "service.name": "weighbridge",
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "host.name": platform.node(),
        "process.pid": os.getpid(),
        "telemetry.sdk.name": "weighbridge",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
    }
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        name, sign, value = pair.partition("=")
        if sign and name.strip():
            told[unquote(name.strip())] = unquote(value.strip())
    if environ.get("OTEL_SERVICE_NAME"):
        told["service.name"] = environ["OTEL_SERVICE_NAME"]
    return told
