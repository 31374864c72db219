"""Where traces go: the operator's word, then OpenTelemetry's variables."""

from __future__ import annotations

from typing import Any

import pytest

from weighbridge.errors import BadInput
from weighbridge.fleet.config.tracing import TraceSettings
from weighbridge.server.tracing.otlp import Encoding
from weighbridge.server.tracing.settings import ExportSettings, Sampling, export_settings

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def read(environ: dict[str, str] | None = None, **written: Any) -> ExportSettings:
    found = export_settings(TraceSettings(**written), environ or {})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("written", "environ", "url"),
    [
        ("http://c:4318", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/v1/traces", {}, "http://c:4318/v1/traces"),
        ("https://c/otlp", {}, "https://c/otlp/v1/traces"),
        ("http://own:1", {ENDPOINT: "http://other:2"}, "http://own:1/v1/traces"),
        (None, {ENDPOINT: "http://c:4318"}, "http://c:4318/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/own"}, "http://c:4318/own"),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
        ("http://c:1", {"OTEL_SDK_DISABLED": "true"}, "http://c:1/v1/traces"),
    ],
)
def test_the_address(written: str | None, environ: dict[str, str], url: str) -> None:
    assert read(environ, otlp_endpoint=written).collector.url == url


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://c:1", "OTEL_TRACES_EXPORTER": "none"},
        {ENDPOINT: "http://c:1", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"},
    ],
)
def test_without_an_address_nothing_is_traced(environ: dict[str, str]) -> None:
    assert export_settings(TraceSettings(), environ) is None


@pytest.mark.parametrize(
    "url",
    ["c:4318", "ftp://c", "http://", "http://ann:s3cret@c:1", "http://c:1?key=s3cret", "http://c:99999"],
)
def test_what_is_no_address_is_said_without_its_secrets(url: str) -> None:
    with pytest.raises(BadInput, match="write for example http://localhost:4318") as caught:
        export_settings(TraceSettings(otlp_endpoint=url), {})
    assert "ann:s3cret" not in str(caught.value)


def test_grpc_is_refused_with_the_remedy() -> None:
    environ = {ENDPOINT: "http://c:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(BadInput, match="use http/protobuf or http/json"):
        export_settings(TraceSettings(), environ)


def test_the_port_of_grpc_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    read({}, otlp_endpoint="http://c:4317")
    assert "4318" in caplog.text


def test_the_variables_of_the_standard() -> None:
    told = read(
        {
            ENDPOINT: "https://c",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s%3Dcret, x-team = a b",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
            "OTEL_BSP_MAX_QUEUE_SIZE": "7",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "512",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_SERVICE_NAME": "front door",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=lost,deployment.environment.name=test%20bed",
        }
    )
    headers = {name: value.reveal() for name, value in told.collector.headers.items()}
    assert headers == {"api-key": "s=cret", "x-team": "a b"}
    assert "s=cret" not in repr(told)
    assert (told.collector.encoding, told.collector.zipped) == (Encoding.JSON, True)
    assert (told.collector.timeout, str(told.collector.ca)) == (2.5, "/ca.pem")
    assert (told.batching.queue, told.batching.batch, told.batching.delay) == (7, 7, 0.1)
    assert told.resource["service.name"] == "front door"
    assert told.resource["deployment.environment.name"] == "test bed"


@pytest.mark.parametrize("text", ["nothing", "=x", "a b=c", "x=\x01", "é=1"])
def test_headers_that_cannot_be_sent_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="HEADERS"):
        export_settings(TraceSettings(), {ENDPOINT: "http://c", "OTEL_EXPORTER_OTLP_HEADERS": text})


@pytest.mark.parametrize(
    ("written", "environ", "sampling"),
    [
        (None, {}, Sampling(1.0, True)),
        (0.25, {"OTEL_TRACES_SAMPLER": "always_on"}, Sampling(0.25, True)),
        (None, {"OTEL_TRACES_SAMPLER": "always_off"}, Sampling(0.0, False)),
        (
            None,
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
            Sampling(0.1, True),
        ),
        (
            None,
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"},
            Sampling(1.0, False),
        ),
        (
            None,
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"},
            Sampling(1.0, False),
        ),
        (None, {"OTEL_TRACES_SAMPLER": "xray"}, Sampling(1.0, True)),
    ],
)
def test_the_sampler(written: float | None, environ: dict[str, str], sampling: Sampling) -> None:
    assert read({ENDPOINT: "http://c", **environ}, trace_ratio=written).sampling == sampling
