"""`weighbridge epp`: an endpoint picker for Envoy and Kubernetes gateways, over the fleet of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from weighbridge.cli.options import options
from weighbridge.cli.serve.fleet import serve_spec
from weighbridge.errors import BadInput
from weighbridge.knobs import knob
from weighbridge.routes.config import load_configuration
from weighbridge.server.door import Beside
from weighbridge.server.gateway.service import GatewayService
from weighbridge.server.lifecycle import bind, check_reach


@dataclass(frozen=True, slots=True, kw_only=True)
class PickerSettings:
    """Where Envoy asks, and what it is told."""

    host: str = knob("127.0.0.1", "Address to listen on for Envoy (gRPC).")
    port: int = knob(9002, "Port for Envoy.", min=1, max=65535)
    fallbacks: int = knob(
        2,
        "Further endpoints named behind the chosen one, for Envoy to try where that is out of reach.",
        min=0,
        max=8,
    )
    json_logs: bool = knob(False, "Log JSON lines.", flag="--json-logs")


@options
def epp(
    config: Annotated[
        Path, typer.Option(help="weighbridge.yaml with the replicas by their addresses.")
    ] = Path("weighbridge.yaml"),
    *,
    picker: PickerSettings,
) -> None:
    """Pick endpoints for Envoy (Gateway API inference extension): our policy, queue and limits; Envoy carries."""
    try:
        from weighbridge.server.picker.door import PickerDoor  # needs the extra
        from weighbridge.server.picker.endpoints import Endpoints, check_endpoints
        from weighbridge.server.picker.listening import PickerServer
    except ImportError as error:
        raise BadInput(
            f"{error.name or error} is not installed; install it with `pip install 'weighbridge[epp]'`"
        ) from error
    read = load_configuration(config)
    if read.routes.routes:
        raise BadInput(
            f"{config}: routes: a picker only says where requests go, and routes change what is sent; "
            "serve them with `weighbridge serve`",
            param="config",
        )
    spec = read.fleet
    check_endpoints(spec)
    listener = bind(picker.host, picker.port)  # a taken port is said at once
    check_reach(listener, spec, any(tenant.keys for tenant in spec.tenants))
    listener.close()
    pair = None if spec.tls_cert is None else (spec.tls_cert, spec.tls_key or spec.tls_cert)

    def beside(service: GatewayService) -> Beside:
        door = PickerDoor(service, Endpoints(service.gateway, picker.fallbacks))
        return PickerServer(door, picker.host, picker.port, max_body=spec.max_body, certificate=pair)

    serve_spec(spec, json_logs=picker.json_logs, beside=beside)
