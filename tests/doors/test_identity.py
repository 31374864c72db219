"""HTTPS and who calls, at every door: one engine, a gateway over it, a route in that gateway, routes alone."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.doors.doors import ENGINE, Loop, logged
from tests.doors.model import make_model
from tests.fleet.backends import serving
from tests.server.running import free_port
from tests.wire.certificates import Authority, Pair
from tests.wire.provider import AUDIENCE, ISSUER, Provider, jwk, jwks, token
from weighbridge.cli.app import app
from weighbridge.errors import BadInput
from weighbridge.flow import flow, llm
from weighbridge.flow.llm.client import LlmError

KEY = "a-key-of-a-client-that-has-one"


@dataclass
class SecureDoor:
    """A door over HTTPS. `model` is what its clients ask for."""

    port: int
    model: str
    log: Path

    def ask(
        self,
        context: ssl.SSLContext,
        key: str | None = None,
        method: str = "POST",
        path: str = "",
        more: dict[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> tuple[int, Any]:
        place = "127.0.0.1", self.port
        line = HTTPSConnection("localhost", self.port, context=context, timeout=60)
        line._create_connection = lambda *_: socket.create_connection(place, 60, (source, 0))  # type: ignore[attr-defined]
        body = {"model": self.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        headers |= more or {}
        text = json.dumps(body) if method == "POST" else None
        line.request(method, path or "/v1/chat/completions", text, headers)
        answer = line.getresponse()
        told = answer.read()
        self.ticket = answer.headers.get("x-weighbridge-ticket")
        line.close()
        return answer.status, json.loads(told) if told.startswith(b"{") else told

    def tenant(
        self,
        context: ssl.SSLContext,
        key: str | None = None,
        more: dict[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> str:
        """The tenant that a request counted as."""
        status, told = self.ask(context, key, more=more, source=source)
        assert status == 200, told
        status, ticket = self.ask(context, key, "GET", f"/v1/tickets/{self.ticket}", more, source)
        assert status == 200, ticket
        return str(ticket["tenant"])


@dataclass
class Secured:
    """The four doors, the authority that they believe, and certificates that it signed."""

    doors: dict[str, SecureDoor]
    authority: Authority
    batch: Pair
    nobody: Pair
    two: Pair


DOORS = ("single", "gateway", "route", "routes")


def _files(folder: Path, ports: dict[str, int], keys: str) -> None:
    behind = "tls_ca: tests-ca.pem, tls_cert: gateway.pem, tls_key: gateway-key.pem"
    shared = f"""\
tls_cert: server.pem
tls_key: server-key.pem
tls_client_ca: tests-ca.pem
client_certificates: {{"DNS:batch.example": batch, "CN:one": one, "CN:two": two}}
tenants: {{keyed: {{key: {KEY}}}}}
trusted_proxies: [127.0.0.1]
tenant_header: X-Weighbridge-Tenant
oidc_issuer: {ISSUER}
oidc_audiences: [{AUDIENCE}]
oidc_claim: team
watchers: [keyed]
"""
    (folder / "gateway.yaml").write_text(f"""\
listen: 127.0.0.1:{ports["gateway"]}
health: {{interval: 0.2, slow_start: 0}}
models: {{tiny: {{replicas: [{{url: 'https://localhost:{ports["single"]}', dialect: weighbridge, {behind}}}]}}}}
routes:
  auto: {{cascade: {{enabled: false}}, edge: {{model: tiny}}, cloud: {{url: 'http://127.0.0.1:9/v1', model: big}}}}
{shared}
oidc_jwks_url: {keys}/jwks
""")
    (folder / "routes.yaml").write_text(f"""\
routes:
  auto:
    cascade: {{enabled: false}}
    edge: {{url: 'https://localhost:{ports["single"]}/v1', model: tiny, {behind}}}
    cloud: {{url: 'http://127.0.0.1:9/v1', model: big}}
{shared}
oidc_jwks: jwks.json
""")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    server, model = authority.server(), make_model(folder / "tiny")
    authority.sign("gateway", "gateway")
    ports = {name: free_port() for name in ("single", "gateway", "routes")}
    (folder / "jwks.json").write_bytes(jwks(jwk("ES256", "one"), jwk("RS256", "two")))
    tls = [
        "--tls-cert",
        str(server.cert),
        "--tls-key",
        str(server.key),
        "--tls-client-ca",
        str(authority.file),
    ]
    names = ["DNS:batch.example=batch", "CN:one=one", "CN:two=two", "CN:gateway=gateway"]
    names = [word for name in names for word in ("--client-certificate", name)]
    names += ["--trusted-proxy", "127.0.0.1", "--tenant-header", "x-weighbridge-tenant"]
    names += ["--oidc-jwks", str(folder / "jwks.json"), "--oidc-issuer", ISSUER, "--oidc-audience", AUDIENCE]
    names += ["--oidc-claim", "team", "--watcher", "keyed"]
    commands = {
        "single": ["serve", str(model), *ENGINE.split(), *tls, *names, "--api-key", f"keyed={KEY}"],
        "gateway": ["serve", "--config", str(folder / "gateway.yaml")],
        "routes": ["route", "serve", "--config", str(folder / "routes.yaml")],
    }
    processes: dict[str, Any] = {}
    with ExitStack() as stack:
        keys = stack.enter_context(Loop(serving(Provider((folder / "jwks.json").read_bytes()))))
        _files(folder, ports, keys)
        for name, words in commands.items():
            log = folder / f"{name}.log"
            processes[name] = stack.enter_context(logged([*words, "--port", str(ports[name])], log))
        for name, process in processes.items():
            _wait(SecureDoor(ports[name], "", folder / f"{name}.log"), authority, process)
        doors = {
            name: SecureDoor(ports[name], "tiny" if name != "routes" else "auto", folder / f"{name}.log")
            for name in ports
        }
        doors["route"] = SecureDoor(ports["gateway"], "auto", doors["gateway"].log)
        yield Secured(
            doors,
            authority,
            batch=authority.sign("batch", "whoever", "DNS:Batch.Example"),
            nobody=authority.sign("nobody", "nobody", "DNS:nobody.example"),
            two=authority.sign("both", "one", "DNS:batch.example"),
        )


def _wait(door: SecureDoor, authority: Authority, process: Any) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, door.log.read_text()
        try:
            status, _ = door.ask(authority.context(), None, "GET", "/health")
        except (OSError, HTTPException):
            status = 0
        if status == 200:
            return
        time.sleep(0.1)
    raise AssertionError(door.log.read_text())


@pytest.mark.parametrize("name", DOORS)
def test_a_caller_is_known_by_key_or_certificate(secured: Secured, name: str) -> None:
    door, authority = secured.doors[name], secured.authority
    batch = authority.context(secured.batch)
    assert door.tenant(authority.context(), KEY) == "keyed"
    assert door.tenant(batch) == "batch"
    assert door.tenant(batch, "none") == "batch"  # as libraries send that must send some key
    assert door.tenant(batch, KEY) == "keyed"


@pytest.mark.parametrize("name", DOORS)
def test_everybody_else_is_refused(secured: Secured, name: str) -> None:
    door, authority = secured.doors[name], secured.authority
    for context, code in (
        (authority.context(), "invalid_api_key"),
        (authority.context(secured.nobody), "invalid_api_key"),
        (authority.context(secured.two), "ambiguous_certificate"),
    ):
        for method, path in (("POST", ""), ("GET", "/v1/models"), ("GET", "/v1/tickets")):
            status, told = door.ask(context, None, method, path)
            assert (status, told["error"]["code"]) == (401, code)
    with pytest.raises((ssl.SSLError, OSError, HTTPException)):
        door.ask(ssl.create_default_context())
    plain = ssl.create_default_context(cafile=authority.file)
    stranger = Authority(secured.batch.cert.parent, "stranger").sign("stranger", "one")
    plain.load_cert_chain(stranger.cert, stranger.key)
    with pytest.raises((ssl.SSLError, OSError, HTTPException)):
        door.ask(plain)


@pytest.mark.parametrize("name", ["gateway", "routes"])
def test_the_request_behind_comes_with_our_certificate(secured: Secured, name: str) -> None:
    """The engine asks for one too, and knows the gateway by it."""
    door, single = secured.doors[name], secured.doors["single"]
    assert door.tenant(secured.authority.context(), KEY) == "keyed"
    gateway = Pair(secured.batch.cert.parent / "gateway.pem", secured.batch.cert.parent / "gateway-key.pem")
    _, told = single.ask(secured.authority.context(gateway), None, "GET", "/v1/tickets")
    assert {one["tenant"] for one in told["data"]} == {"gateway"}


def test_an_answer_that_streams_comes_whole_while_the_certificate_changes(secured: Secured) -> None:
    door, folder = secured.doors["single"], secured.batch.cert.parent
    context = secured.authority.context()
    line = HTTPSConnection("localhost", door.port, context=context, timeout=60)
    line.connect()
    before = line.sock.getpeercert(binary_form=True)
    other = secured.authority.server("other")
    (folder / "server.pem").write_bytes(other.cert.read_bytes())
    (folder / "server-key.pem").write_bytes(other.key.read_bytes())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with ssl.create_default_context(cafile=secured.authority.file).wrap_socket(
            socket.create_connection(("127.0.0.1", door.port)), server_hostname="localhost"
        ) as new:
            if new.getpeercert(binary_form=True) != before:
                break
        time.sleep(0.1)
    else:
        raise AssertionError("the new certificate is not served")
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    line.request("POST", "/v1/completions", json.dumps(body), headers)
    assert line.getresponse().read().endswith(b"data: [DONE]\n\n")
    assert "new connections use them" in door.log.read_text()


@pytest.mark.parametrize("name", DOORS)
def test_the_tenants_header_is_believed_from_a_trusted_proxy_alone(secured: Secured, name: str) -> None:
    """The other end of these connections is 127.0.0.1, which is trusted, or 127.0.0.2, which is not."""
    door, context, said = secured.doors[name], secured.authority.context(), {"X-Weighbridge-Tenant": "ann"}
    assert door.tenant(context, None, said) == "ann"
    assert door.tenant(context, KEY, said) == "ann"
    assert door.tenant(context, KEY, said, source="127.0.0.2") == "keyed"
    status, told = door.ask(context, None, more=said, source="127.0.0.2")
    assert (status, told["error"]["code"]) == (401, "invalid_api_key")
    status, told = door.ask(context, KEY, more={"X-Weighbridge-Tenant": "ann, bob"})
    assert (status, told["error"]["code"]) == (401, "ambiguous_tenant")
    for forged in ({"X-Weighbridge_Tenant": "ann"}, {"X_Weighbridge_Tenant": "ann"}):
        assert door.ask(context, None, more=forged)[0] == 401


@pytest.mark.parametrize("name", DOORS)
def test_figures_are_for_this_machine_and_not_for_whom_it_asks(secured: Secured, name: str) -> None:
    door, context = secured.doors[name], secured.authority.context()
    afar = {"X-Forwarded-For": "203.0.113.9"}
    for path in ("/metrics", "/v1/load"):
        assert door.ask(context, None, "GET", path, source="127.0.0.2")[0] == 200
        for source, more in (
            ("127.0.0.1", afar),
            ("127.0.0.2", afar),
            ("127.0.0.2", {"X-Forwarded-For": "127.0.0.1"}),
            ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}),
            ("127.0.0.2", {"Forwarded": "for=127.0.0.1"}),
        ):
            assert door.ask(context, None, "GET", path, more, source)[0] == 401, (source, more)
            assert door.ask(context, KEY, "GET", path, more, source)[0] == 200
    batch = secured.authority.context(secured.batch)
    assert door.ask(batch, None, "GET", "/metrics", afar)[0] == 403


@pytest.mark.parametrize("name", DOORS)
def test_a_token_of_the_provider_is_read(secured: Secured, name: str) -> None:
    door, context = secured.doors[name], secured.authority.context()
    assert door.tenant(context, token(team="team-a")) == "team-a"
    assert door.tenant(context, token("RS256", "two", team="team-b"), source="127.0.0.2") == "team-b"
    batch = secured.authority.context(secured.batch)
    assert door.tenant(batch, token(team="team-a")) == "team-a"
    for wrong, code in (
        (token(team="team-a", exp=1), "expired_token"),
        (token(team="team-a", aud="another"), "invalid_token"),
        (token("ES256", "one", 1, team="team-a"), "invalid_token"),
        (token(), "invalid_token"),
        (token(team="team-a", more="x" * (16 << 10)), "invalid_token"),
        ("a.b.c", "invalid_token"),
    ):
        for method, path in (("POST", ""), ("GET", "/v1/models")):
            status, told = door.ask(context, wrong, method, path)
            assert (status, told["error"]["code"]) == (401, code)
        assert wrong not in str(told)


def test_our_own_clients_believe_a_private_authority(secured: Secured) -> None:
    url, ca = f"https://localhost:{secured.doors['single'].port}", str(secured.authority.file)
    load = [
        "--requests",
        "2",
        "--warm-up",
        "0",
        "--concurrency",
        "1",
        "--prompt-tokens",
        "4",
        "--output-tokens",
        "2",
    ]
    words = ["bench", "serve", "--url", url, "--api-key", KEY, *load, "--text-prompts", "--json"]
    good = CliRunner().invoke(app, [*words, "--tls-ca", ca])
    assert good.exit_code == 0, good.output
    assert "certificate" in str(CliRunner().invoke(app, words).exception)

    @flow
    async def ask(tls_ca: str | None) -> str:
        return str(await llm(url, api_key=KEY, tls_ca=tls_ca, retries=0).text("hi", max_tokens=2))

    assert isinstance(ask.run(ca), str)
    with pytest.raises(LlmError, match="certificate"):
        ask.run(None)


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "no-such-model", "--host", "0.0.0.0"],
        ["serve", "--config", "FILE", "--host", "0.0.0.0"],
        ["serve", "--config", "WORLD"],
        ["route", "serve", "--config", "ROUTES", "--host", "0.0.0.0"],
        ["replica", "--simulated", "--host", "0.0.0.0"],
    ],
)
def test_no_door_is_open_to_the_world_by_accident(tmp_path: Path, words: list[str]) -> None:
    models = "models: {m: {replicas: [{url: 'http://127.0.0.1:9'}]}}\n"
    edge = "routes: {r: {edge: {url: 'http://127.0.0.1:9', model: a}, cloud: {url: 'http://127.0.0.1:9', model: b}}}"
    for name, text in (
        ("FILE", models),
        ("WORLD", models + "listen: 0.0.0.0:0\n"),
        ("ROUTES", edge),
    ):
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / word) if word.isupper() else word for word in words]
    port = [] if "WORLD" in words else ["--port", "0"]
    result = CliRunner().invoke(app, [*files, *port])
    assert isinstance(result.exception, BadInput)
    assert "everybody who reaches this machine could call; give --api-key and --tls-cert" in str(
        result.exception
    )
    assert "--insecure" in str(result.exception)
