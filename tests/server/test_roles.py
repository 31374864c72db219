"""Who may do what, at every path of every application: a path that is not in this table has no test, and fails one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.backends import Backend, clients, fleet, serving
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)
from weighbridge.secret import Secret
from weighbridge.server import app as server_app
from weighbridge.server.endpoint import Endpoint, HttpService
from weighbridge.server.openapi.document import plain
from weighbridge.wire.identity import callers
from weighbridge.wire.keys import ApiKey
from weighbridge.wire.protocols import PROTOCOLS

ROLES = ("none", "tenant", "gateway", "watcher", "operator")
KEYS = {role: f"a-long-key-of-a-{role}" for role in ROLES[1:]}
CONFIG = f"admin_key: {KEYS['operator']}\ngateways: [gateway]\nwatchers: [watcher]\ntenants:\n" + "".join(
    f"  {role}: {{key: {KEYS[role]}}}\n" for role in ("tenant", "gateway", "watcher")
)

EVERYBODY = set(ROLES)
#: Whoever has a tenant's key of whatever kind; the operator's is none.
CALLERS = {"tenant", "gateway", "watcher"}
VISITORS = CALLERS | {"operator"}
WATCHERS = {"watcher", "operator"}
OPERATOR = {"operator"}

#: Which roles get an answer, from afar, where keys are on.
COMMON = {
    "GET /": EVERYBODY,
    "GET /console/{asset}": EVERYBODY,
    "GET /console/api/session": EVERYBODY,
    "GET /console/api/now": VISITORS,
    "POST /console/api/markdown": VISITORS,
    "POST /console/api/simulate": WATCHERS,
    "POST /console/api/plan": VISITORS,
    "GET /console/api/catalogue": VISITORS,
    "GET /docs": VISITORS,
    "GET /openapi.json": VISITORS,
    "GET /health": EVERYBODY,
    "GET /version": EVERYBODY,
    "GET /health/live": EVERYBODY,
    "GET /health/ready": EVERYBODY,
    "GET /health/startup": EVERYBODY,
    "GET /metrics": WATCHERS,
    "GET /v1/load": VISITORS,
    "GET /v1/models": CALLERS,
    "GET /v1/models/{model:path}": CALLERS,
    "POST /tokenize": CALLERS,
    "POST /detokenize": CALLERS,
    "GET /v1/usage": VISITORS,
    "GET /v1/tickets": VISITORS,
    "GET /v1/tickets/{ticket}": VISITORS,
    "POST /v1/chat/completions": CALLERS,
    "POST /v1/completions": CALLERS,
    "POST /v1/embeddings": CALLERS,
    "POST /v1/score": CALLERS,
    "POST /v1/rerank": CALLERS,
    "POST /v2/rerank": CALLERS,
    "POST /v1/classify": CALLERS,
    "POST /v1/decisions": CALLERS,
    "POST /v1/decisions/calibrations": CALLERS,
    "GET /v1/decisions/calibrations": CALLERS,
    "DELETE /v1/decisions/calibrations/{name}": CALLERS,
    "POST /v1/responses": CALLERS,
    "GET /v1/responses/{response}": CALLERS,
    "DELETE /v1/responses/{response}": CALLERS,
    "POST /v1/responses/{response}/cancel": CALLERS,
    "GET /v1/responses/{response}/input_items": CALLERS,
    "POST /v1/responses/input_tokens": CALLERS,
    **{
        f"{method} {path}": CALLERS
        for method, path in (
            ("POST", "/v1/files"),
            ("GET", "/v1/files"),
            ("GET", "/v1/files/{file}"),
            ("DELETE", "/v1/files/{file}"),
            ("GET", "/v1/files/{file}/content"),
            ("POST", "/v1/batches"),
            ("GET", "/v1/batches"),
            ("GET", "/v1/batches/{batch}"),
            ("POST", "/v1/batches/{batch}/cancel"),
            ("GET", "/v1/streams/{stream}"),
            ("DELETE", "/v1/streams/{stream}"),
        )
    },
    "POST /v1/messages": CALLERS,
    "POST /v1/messages/count_tokens": CALLERS,
    "POST /api/chat": CALLERS,
    "POST /api/generate": CALLERS,
    "POST /api/embed": CALLERS,
    "POST /api/embeddings": CALLERS,
    "GET /api/version": EVERYBODY,
    "GET /api/tags": CALLERS,
    "GET /api/ps": CALLERS,
    "POST /api/show": CALLERS,
    "POST /api/pull": VISITORS,
    "POST /api/create": CALLERS,
    "POST /api/copy": CALLERS,
    "POST /api/push": CALLERS,
    "DELETE /api/delete": CALLERS,
}
GATEWAY = COMMON | {
    "GET /admin/changes": OPERATOR,
    "POST /admin/reload": OPERATOR,
    "GET /admin/replicas": OPERATOR,
    "POST /admin/replicas": OPERATOR,
    "DELETE /admin/replicas/{replica}": OPERATOR,
    "POST /admin/replicas/{replica}/drain": OPERATOR,
    "POST /admin/replicas/{replica}/undrain": OPERATOR,
    "POST /v1/models/load": OPERATOR,
    "POST /v1/models/unload": OPERATOR,
    "GET /admin/tenants": OPERATOR,
    "POST /admin/tenants/{tenant:path}/keys": OPERATOR,
    "DELETE /admin/tenants/{tenant:path}/keys/{key}": OPERATOR,
    "PUT /admin/tenants/{tenant:path}/limits": OPERATOR,
    "DELETE /admin/tenants/{tenant:path}/limits": OPERATOR,
}
ENGINE = COMMON | {
    "GET /v1/experts": WATCHERS,
    "POST /v1/experts/reset": OPERATOR,
    "POST /v1/load_lora_adapter": OPERATOR,
    "POST /v1/unload_lora_adapter": OPERATOR,
    "GET /faults": OPERATOR,
    "POST /faults": OPERATOR,
}


@asynccontextmanager
async def gateway() -> AsyncIterator[str]:
    async with fleet(Backend("a"), top=CONFIG) as front:
        yield front.url


@asynccontextmanager
async def engine() -> AsyncIterator[str]:
    server = SimulatedServer(
        api_keys=tuple(ApiKey(role, Secret(KEYS[role])) for role in ("tenant", "gateway", "watcher")),
        admin_key=Secret(KEYS["operator"]),
        gateways=("gateway",),
        watchers=("watcher",),
    )
    simulated = assemble_simulated(SimulatedMachine(), ServedEngine(), server)
    async with serving(simulated.app, "on") as url:
        yield url


APPLICATIONS = {"gateway": (gateway, GATEWAY), "engine": (engine, ENGINE)}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The paths of the application that is made: all that its table of endpoints has, and the protocols."""
    found = {f"POST {one.path}" for one in PROTOCOLS}
    guarded = server_app._guarded

    def seen(row: Endpoint, service: HttpService) -> Any:
        found.add(f"{row.method} {row.path}")
        return guarded(row, service)

    monkeypatch.setattr(server_app, "_guarded", seen)
    monkeypatch.setattr(callers, "is_loopback", lambda host: False)
    return found


@pytest.mark.parametrize("name", APPLICATIONS)
async def test_each_path_answers_those_it_is_for_and_nobody_else(name: str, table: set[str]) -> None:
    running, wanted = APPLICATIONS[name]
    async with running() as url, clients() as client:
        assert table <= set(wanted), "a path is in no table of roles"
        assert {path for path in wanted if not path.endswith("/faults")} == table
        answered: dict[str, Any] = {path: set() for path in wanted}
        for path in wanted:
            method, place = path.split(" ")
            place = place.replace("{model:path}", "x").replace("{ticket}", "x").replace("{replica}", "x")
            place = place.replace("{tenant:path}", "x")
            for role in ROLES:
                headers = {"Authorization": f"Bearer {KEYS[role]}"} if role in KEYS else {}
                async with client.request(method, url + place, headers=headers) as answer:
                    if answer.status not in (401, 403):
                        answered[path].add(role)
        assert answered == wanted


@pytest.mark.parametrize("name", APPLICATIONS)
async def test_the_document_has_every_path_and_no_other(name: str, table: set[str]) -> None:
    running, _ = APPLICATIONS[name]
    async with running() as url, clients() as client:
        key = {"Authorization": f"Bearer {KEYS['operator']}"}
        async with client.get(f"{url}/openapi.json", headers=key) as answer:
            paths = (await answer.json())["paths"]
    written = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert written == {plain(path) for path in table}


async def test_a_tenants_word_resets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on this machine either, where keys are on: whoever has a tenant's key may well be here."""
    async with engine() as url, clients() as client:
        for key in (KEYS["tenant"], KEYS["watcher"], "wrong"):
            headers = {"Authorization": f"Bearer {key}"}
            async with client.post(url + "/v1/experts/reset", headers=headers) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == "invalid_admin_key"


@pytest.mark.parametrize(("believed", "tenant"), [(True, "ann"), (False, "default")])
async def test_a_user_is_a_tenant_only_where_that_is_configured(believed: bool, tenant: str) -> None:
    server = SimulatedServer(users_are_tenants=believed)
    simulated = assemble_simulated(SimulatedMachine(), ServedEngine(), server)
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "user": "ann"}
    async with serving(simulated.app, "on") as url, clients() as client:
        async with client.post(url + "/v1/chat/completions", json=body) as answer:
            name = answer.headers["x-weighbridge-ticket"]
        async with client.get(f"{url}/v1/tickets/{name}") as answer:
            assert (await answer.json())["tenant"] == tenant
