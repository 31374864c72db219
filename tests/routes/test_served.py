"""A file with routes only, served: real sockets, OpenAI's shapes and errors, and everything a gateway has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fleet.backends import check_drained, clients, events, until
from tests.fleet.backends import serving as serving_app
from tests.routes.stub import BROKEN, CUT, Stub, serving
from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import load_configuration
from weighbridge.routes.journey import RouteService
from weighbridge.routes.route import Route
from weighbridge.server.app import create_app
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService
from weighbridge.wire.identity import callers

#: Sides as they used to be written; they are read for one more release.
CONFIG = """
routes:
  auto:
    edge: {{url: "{edge}", model: small}}
    cloud: {{url: "{cloud}", model: big, price: {{input: 2.5, output: 10}}}}
    rules: [{{name: health, labels: [patient], residency: never_leaves}}]
budgets: {{usd_per_day: 5}}
{more}
"""


class Client:
    """A client of one route, and what serves it."""

    def __init__(self, url: str, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self.url, self.session, self.gateway = url, session, gateway

    @property
    def route(self) -> Route:
        service = self.gateway.routes["auto"]
        assert isinstance(service, RouteService)
        return service.route

    def post(self, text: str = "hello", headers: Any = None, **fields: Any) -> Any:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        return self.session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    async def stream(self, **fields: Any) -> list[Any]:
        async with self.post(stream=True, **fields) as answer:
            assert answer.status == 200, await answer.text()
            return events(await answer.read())

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.session.get(self.url + path) as answer:
            assert answer.status == status, await answer.text()
            is_json = "json" in answer.headers["content-type"]
            return await answer.json() if is_json else await answer.text()


@asynccontextmanager
async def front_over(edge: Stub, cloud: Stub, folder: Path, more: str = "") -> AsyncIterator[Client]:
    async with serving(edge, cloud) as (edge_url, cloud_url):
        path = folder / "weighbridge.yaml"
        path.write_text(CONFIG.format(edge=edge_url, cloud=cloud_url, more=more), encoding="utf-8")
        read = load_configuration(path)
        gateway = Gateway(read.fleet, build_replica)
        usage = add_routes(gateway, read.routes)
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway), usage))
        async with serving_app(app, "on") as url, clients() as session:
            yield Client(url, session, gateway)
            await until(lambda: not gateway.open_journeys)
            check_drained(gateway)


def said(text: str, **options: Any) -> Stub:
    return Stub(answer=lambda body: text, **options)


def text_of(chunks: list[Any]) -> str:
    choices = [choice for chunk in chunks if chunk != "[DONE]" for choice in chunk.get("choices") or ()]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def test_a_whole_answer_and_its_ticket(tmp_path: Path) -> None:
    async with front_over(said("local words", logprob=-0.01), said("remote"), tmp_path) as client:
        async with client.post() as answer:
            body = await answer.json()
            headers = answer.headers
        ticket = headers["x-weighbridge-ticket"]
        record = await client.get(f"/v1/tickets/{ticket}")
    assert (body["object"], body["model"]) == ("chat.completion", "auto")
    assert body["choices"][0]["message"]["content"] == "local words"
    assert body["choices"][0]["logprobs"] is None  # the judge asked for them, the client did not
    assert (headers["x-weighbridge-placement"], headers["x-weighbridge-degraded"]) == ("edge", "false")
    assert float(headers["x-weighbridge-cost"]) == record["cost_usd"] == 0.0
    assert record["decisions"]


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("pause", [0.0, 0.005])
async def test_a_stream_is_whole_and_in_order_whether_it_comes_at_once_or_bit_by_bit(
    usage: bool, pause: float, tmp_path: Path
) -> None:
    """Events that are there already go out together; that must not lose, double or reorder any."""
    text = " ".join(map(str, range(300)))
    async with front_over(said(text, logprob=-0.01, pause=pause), said("remote"), tmp_path) as client:
        chunks = await client.stream(stream_options={"include_usage": usage})
    assert chunks[-1] == "[DONE]"
    assert chunks.count("[DONE]") == 1
    assert text_of(chunks) == text
    told = [chunk for chunk in chunks[:-1] if chunk.get("usage")]
    assert len(told) == usage
    assert all(chunk["weighbridge"]["cost_usd"] == 0.0 for chunk in told)


async def test_a_stream_that_is_cut_ends_with_an_error_in_the_stream(tmp_path: Path) -> None:
    cloud = said("remote text of some length", fates=[CUT], pause=0.01)
    async with front_over(said("local"), cloud, tmp_path) as client:
        chunks = await client.stream(weighbridge={"placement": "prefer_cloud"})
    assert chunks[-1]["error"]["code"] == "side_failed"
    assert "remote text of some length".startswith(text_of(chunks[:-1]))
    assert text_of(chunks[:-1])


async def test_what_must_not_leave_is_refused_in_openais_shape(tmp_path: Path) -> None:
    cloud = said("remote")
    async with front_over(Stub(fates=[BROKEN] * 9), cloud, tmp_path) as client:
        async with client.post(weighbridge={"labels": ["patient"]}) as answer:
            assert answer.status == 503
            error = (await answer.json())["error"]
        async with client.post(weighbridge={"labels": ["patient"], "placement": "only_cloud"}) as answer:
            assert answer.status == 403
    assert (error["code"], cloud.log) == ("no_side_available", [])
    assert "health" in error["message"]


@pytest.mark.parametrize(
    ("fields", "said_of_it"),
    [
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "content: must be a string or a list"),
        ({"weighbridge": {"placement": "moon"}}, "placement"),
        ({"weighbridge": {"labels": [7]}}, "labels"),
        ({"weighbridge": {"max_usd": -1}}, "max_usd"),
    ],
)
async def test_bad_input_says_what_to_change(fields: dict[str, Any], said_of_it: str, tmp_path: Path) -> None:
    async with (
        front_over(said("local"), said("remote"), tmp_path) as client,
        client.post(**fields) as answer,
    ):
        assert answer.status == 400
        assert said_of_it in (await answer.json())["error"]["message"]


async def test_a_model_that_is_not_there_is_not_found_and_none_at_all_is_the_only_route(
    tmp_path: Path,
) -> None:
    async with front_over(said("local", logprob=-0.01), said("remote"), tmp_path) as client:
        for name in ("gpt-9", "auto.edge", "auto.cloud", "small"):
            async with client.post(model=name) as answer:
                assert answer.status == 404, name
                assert "this gateway has auto" in (await answer.json())["error"]["message"]
        async with client.post(model=None) as answer:
            assert answer.status == 200
            assert answer.headers["x-weighbridge-placement"] == "edge"


async def test_whoever_has_no_key_learns_from_health_that_there_is_health_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (
        "tenants: {alice: {key: alices-long-key}, watcher: {key: watchers-long-key}}\nwatchers: [watcher]\n"
    )
    monkeypatch.setattr(callers, "is_loopback", lambda host: False)
    edge, cloud = said("local"), said("remote")
    async with front_over(edge, cloud, tmp_path, more=keys + "admin_key: operators-long-key\n") as client:
        for path in ("/health", "/health/ready"):
            for key, sees in (
                ("", False),
                ("wrong", False),
                ("alice", False),
                ("watcher", True),
                ("operator", True),
            ):
                headers = {"authorization": f"Bearer {key}s-long-key"} if key else {}
                async with client.session.get(client.url + path, headers=headers) as answer:
                    assert answer.status == 200, key
                    told = await answer.json()
                    assert set(told) == (
                        {"status", "version", "routes"} if sees else {"status", "version"}
                    ), key
    async with front_over(edge, cloud, tmp_path) as client:  # without keys everybody may know
        assert "routes" in await client.get("/health")


async def test_routes_alone_have_what_every_gateway_has(tmp_path: Path) -> None:
    async with front_over(said("local", logprob=-0.01), said("remote"), tmp_path) as client:
        async with client.post() as answer:
            await answer.read()
        names = [model["id"] for model in (await client.get("/v1/models"))["data"]]
        assert names == ["auto"]
        assert (await client.get("/v1/models/auto"))["id"] == "auto"
        health = await client.get("/health")
        assert health["status"] == "ok"
        assert health["routes"] == {"auto": {"edge": True, "cloud": True}}
        load = await client.get("/v1/load")
        assert set(load["models"]) == {"auto.edge", "auto.cloud"}
        assert "<html" in await client.get("/")
        metrics = await client.get("/metrics")
        assert 'gateway_requests_finished_total{model="auto.edge",reason="stop"} 1.0' in metrics
        assert 'gateway_tenant_requests_total{tenant="default"} 1.0' in metrics
        [ticket] = (await client.get("/v1/tickets"))["data"]
        assert [leg["place"] for leg in ticket["legs"]] == ["edge"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_a_full_disk_for_tickets_fails_no_request(tmp_path: Path) -> None:
    more = "tickets: /dev/full"
    async with front_over(said("local", logprob=-0.01), said("remote"), tmp_path, more) as client:
        for _ in range(3):
            async with client.post(weighbridge={"placement": "prefer_cloud"}) as answer:
                assert answer.status == 200
        await until(lambda: client.gateway.tickets.lost == 3)
        assert 'gateway_tenant_requests_total{tenant="default"} 3.0' in await client.get("/metrics")
        assert client.route.cashier.ledger.spent().settled > 0


async def test_a_drain_refuses_what_comes_and_ends_what_is_there(tmp_path: Path) -> None:
    edge = said("local", logprob=-0.01, first=0.3)
    async with front_over(edge, said("remote"), tmp_path) as client:
        asked = asyncio.create_task(client.stream())
        await until(lambda: edge.log)
        drained = asyncio.create_task(client.gateway.drain(60.0))
        await until(lambda: client.gateway.draining)
        async with client.post() as late:
            assert late.status == 503
        assert text_of(await asked) == "local"
        assert await drained


async def test_a_client_that_goes_away_leaves_nothing_open(tmp_path: Path) -> None:
    async with front_over(said("local"), said("word " * 2000, pause=0.01), tmp_path) as client:
        _, cloud = client.gateway.member("auto.cloud")
        async with client.post(stream=True, weighbridge={"placement": "prefer_cloud"}) as answer:
            await answer.content.readany()
            assert cloud.state.requests == 1
            answer.close()
        await until(lambda: cloud.state.requests == 0)
        await until(lambda: client.gateway.tickets.recent(1)[0].finished is not None)
        assert client.gateway.tickets.recent(1)[0].finish_reason == "abort"
        assert client.route.cashier.ledger.spent().reserved == 0.0


@pytest.mark.parametrize("placement", ["only_edge", "only_cloud"])
async def test_a_client_that_goes_away_before_the_first_byte_has_made_no_error(
    placement: str, tmp_path: Path
) -> None:
    edge, cloud = said("local", first=60.0), said("remote", first=60.0)
    async with front_over(edge, cloud, tmp_path) as client:
        asked = asyncio.create_task(client.post(weighbridge={"placement": placement}).__aenter__())
        await until(lambda: edge.log or cloud.log)
        asked.cancel()
        await until(lambda: client.gateway.tickets.recent(1)[0].finished is not None)
        [ticket] = client.gateway.tickets.recent()
    assert (ticket.finish_reason, ticket.error) == ("abort", None)


async def test_keys_say_whose_request_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANN_KEY", "secret-of-ann")
    more = "keys: {ann: {key_env: ANN_KEY}}"
    async with front_over(said("local", logprob=-0.01), said("remote"), tmp_path, more) as client:
        async with client.post() as answer:
            assert answer.status == 401
        async with client.post(headers={"authorization": "Bearer secret-of-ann"}) as answer:
            assert answer.status == 200
        assert client.gateway.tickets.recent(1)[0].tenant == "ann"


async def test_old_settings_are_read_and_each_is_said_with_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANN_KEY", "secret-of-ann")
    path = tmp_path / "weighbridge.yaml"
    path.write_text(
        """\
routes:
  auto:
    edge: {url: "http://127.0.0.1:8081/v1", model: small, reports_load: true, context: 4096, step_cost: default}
    cloud:
      url: https://api.example.com/openai
      model: big
      price: {input: 2.5, output: 10, cached: 1}
      connect_timeout: 1
      first_chunk_timeout: 2
      idle_timeout: 3
keys: {ann: {key_env: ANN_KEY}}
""",
        encoding="utf-8",
    )
    fleet = load_configuration(path).fleet
    edge, cloud = (model.replicas[0] for model in fleet.models)
    assert (edge.dialect, edge.probe, edge.capacity.max_model_len) == ("weighbridge", True, 4096)
    assert edge.capacity.step_cost is not None
    assert (edge.timeouts.connect, edge.timeouts.first_byte, edge.timeouts.idle) == (5.0, 60.0, 30.0)
    assert (cloud.price.input_usd_per_million, cloud.price.cached_usd_per_million) == (2.5, 1)
    assert (cloud.timeouts.connect, cloud.timeouts.first_byte, cloud.timeouts.idle) == (1, 2, 3)
    assert (cloud.target, cloud.prefix, cloud.probe) == ("https://api.example.com/openai", "", False)
    assert [tenant.name for tenant in fleet.tenants] == ["ann"]
    said_of = [record.getMessage().removeprefix(str(path)) for record in caplog.records]
    assert said_of == [
        ":3: routes.auto.edge.step_cost: is read for one more release; write `capacity: {step_cost: ...}` instead",
        ":3: routes.auto.edge.context: is read for one more release; write `capacity: {max_model_len: ...}` instead",
        ":3: routes.auto.edge.reports_load: is read for one more release; write `dialect: ...` instead",
        ":5: routes.auto.cloud.url: is read as the whole base for one more release; write `prefix: ''` beside it",
        ":7: routes.auto.cloud.price.input: is read for one more release; write `input_usd_per_million: ...` instead",
        ":7: routes.auto.cloud.price.output: is read for one more release; write `output_usd_per_million: ...` instead",
        ":7: routes.auto.cloud.price.cached: is read for one more release; write `cached_usd_per_million: ...` instead",
        ":8: routes.auto.cloud.connect_timeout: is read for one more release; write `timeouts: {connect: ...}` instead",
        ":9: routes.auto.cloud.first_chunk_timeout: is read for one more release; "
        "write `timeouts: {first_byte: ...}` instead",
        ":10: routes.auto.cloud.idle_timeout: is read for one more release; write `timeouts: {idle: ...}` instead",
        ":11: keys: is read for one more release; write `tenants: ...` instead",
    ]


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ("keyes: {ann: {key: x}}", ":8: keyes: is not a setting"),
        ("budget: {usd_per_day: 1}", ":8: budget: is not a setting (did you mean 'budgets'?)"),
        ("tenants: {ann: {}}", ":8: tenants.ann.keys: a tenant needs a key"),
    ],
)
def test_what_nobody_knows_is_an_error_with_its_line(text: str, said_of_it: str, tmp_path: Path) -> None:
    path = tmp_path / "weighbridge.yaml"
    config = CONFIG.format(edge="http://127.0.0.1:1/v1", cloud="http://127.0.0.1:2/v1", more=text)
    path.write_text(config, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        load_configuration(path)
    [complaint] = str(caught.value).splitlines()
    assert complaint.startswith(f"{path}{said_of_it}")


async def test_a_gateway_is_not_ready_while_a_route_has_no_place_that_is_up(tmp_path: Path) -> None:
    async with front_over(said("local", logprob=-0.01), said("remote"), tmp_path) as client:
        places = client.route.places
        members = {name: next(iter(place.pool.members.values())) for name, place in places.items()}
        for up, status in ((("edge", "cloud"), 200), (("cloud",), 200), (("edge",), 200), ((), 503)):
            for name, member in members.items():
                member.state.healthy = name in up
            async with client.session.get(client.url + "/health/ready") as answer:
                assert answer.status == status, up
        async with client.session.get(client.url + "/health") as answer:
            assert (await answer.json())["status"] == "no place is up for some route"
        for member in members.values():
            member.state.healthy = True
