"""Routes in weighbridge.yaml of a gateway: two fleet models behind one name, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fleet.backends import Backend, Front, events, serving, text_of, until
from weighbridge.errors import BadInput
from weighbridge.fleet.gateway import Gateway
from weighbridge.fleet.replicas.build import build_replica
from weighbridge.routes.build import add_routes
from weighbridge.routes.config import parse_configuration
from weighbridge.server.app import create_app
from weighbridge.server.gateway.metrics import GatewayMetrics
from weighbridge.server.gateway.service import GatewayService

PRICE = "price: {input_usd_per_million: 2.5, output_usd_per_million: 10}"
SECRET = "jane@example.com"


def config(edge: str, cloud: str, route: str = "", top: str = "") -> str:
    return f"""\
{top}
health: {{interval: 0.05, slow_start: 0}}
models:
  small:
    replicas: [{{name: near, url: '{edge}', dialect: weighbridge}}]
  big:
    replicas: [{{name: far, url: '{cloud}', dialect: weighbridge, {PRICE}}}]
routes:
  auto:
    edge: {{model: small}}
    cloud: {{model: big}}
    cloud_attempts: 1
{route}
"""


NEVER_ESCALATE = "    cascade: {enabled: false}"
ESCALATE = "    cascade: {threshold: 0.5}"


class Unsure(Backend):
    """Gives its answers little probability, so that a cascade does not keep them."""

    def _chunk(self, chat: bool, text: str, finish: str | None) -> dict[str, Any]:
        chunk = super()._chunk(chat, text, finish)
        if text:
            content = [{"token": text, "logprob": -6.0, "top_logprobs": []}]
            chunk["choices"][0]["logprobs"] = {"content": content}
        return chunk


@asynccontextmanager
async def routed(
    edge: Backend, cloud: Backend, route: str = NEVER_ESCALATE, top: str = "", edge_url: str | None = None
) -> AsyncIterator[Front]:
    """A gateway with the route `auto`; every counter must be at zero when the block ends."""
    async with serving(edge) as near, serving(cloud) as far:
        text = config(edge_url or near, far, route, top)
        read = parse_configuration(text, "weighbridge.yaml", Path("."))
        gateway = Gateway(read.fleet, build_replica, seed=1)
        usage = add_routes(gateway, read.routes)
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway), usage))
        async with serving(app, "on") as url, aiohttp.ClientSession() as client:
            front = Front(url, gateway, client)
            if edge_url is None:
                await until(lambda: gateway.ready)
            else:
                await until(lambda: gateway.member("far")[1].heard)
            yield front
            await front.idle()


async def ticket_of(front: Front, answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = await front.get(f"/v1/tickets/{answer.headers['x-weighbridge-ticket']}")
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_the_edge_answers_and_one_ticket_says_so(stream: bool) -> None:
    edge, cloud = Backend("edge"), Backend("cloud")
    async with (
        routed(edge, cloud) as front,
        front.post(model="auto", stream=stream) as answer,
    ):
        assert answer.status == 200, await answer.text()
        if stream:
            found = events(await answer.read())
            assert text_of(found) == " t0 t1 t2 t3 t4"
            assert found[-1] == "[DONE]"
            assert {one["model"] for one in found[:-1]} == {"auto"}
            assert not any(one.get("usage") for one in found[:-1])
        else:
            whole = await answer.json()
            assert whole["choices"][0]["message"]["content"] == " t0 t1 t2 t3 t4"
            assert (whole["model"], whole["usage"]["completion_tokens"]) == ("auto", 5)
        assert answer.headers["x-weighbridge-placement"] == "edge"
        await front.idle()
        ticket = await ticket_of(front, answer)
        assert (ticket["model"], ticket["placement"], ticket["rule"]) == ("auto", "edge", "default")
        assert (ticket["prompt_tokens"], ticket["output_tokens"], ticket["cost_usd"]) == (11, 5, 0.0)
        [leg] = ticket["legs"]
        assert (leg["model"], leg["replica"], leg["place"]) == ("small", "near", "edge")
        assert (leg["outcome"], leg["tries"], leg["output_tokens"]) == ("stop", 1, 5)
        assert [one["id"] for one in (await front.get("/v1/tickets"))["data"]] == [ticket["id"]]
        assert (len(edge.calls), len(cloud.calls)) == (1, 0)
        assert edge.calls[0]["model"] == "small"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_answer_escalates_and_costs_what_the_replica_charges(stream: bool) -> None:
    edge, cloud = Unsure("edge", tokens=3), Backend("cloud", tokens=7)
    async with (
        routed(edge, cloud, ESCALATE) as front,
        front.post(model="auto", stream=stream, weighbridge={"tenant": "jane"}) as answer,
    ):
        body = await answer.read()
        assert answer.status == 200, body
        await front.idle()
        ticket = await ticket_of(front, answer)
        assert (ticket["placement"], ticket["output_tokens"]) == ("cloud", 7)
        assert ticket["cost_usd"] == pytest.approx((11 * 2.5 + 7 * 10) / 1e6)
        assert ticket["confidence"] is not None
        weak, leg = ticket["legs"]
        assert (weak["replica"], weak["placement"], weak["usd"]) == ("near", "edge", 0.0)
        assert (leg["replica"], leg["place"], leg["placement"]) == ("far", "cloud", "cloud")
        assert leg["usd"] == pytest.approx(ticket["cost_usd"])
        assert ticket["tenant"] == "jane"
        assert len((await front.get("/v1/tickets"))["data"]) == 1
        assert (len(edge.calls), len(cloud.calls)) == (1, 1)
        assert edge.calls[0]["weighbridge"]["tenant"] == "jane"
        assert "jane" not in cloud.raw[0].decode()  # the account is kept here; who asks is not told


@pytest.mark.parametrize("placement", [{"placement": "only_edge"}, {"labels": ["patient"]}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_edge_is_an_error_and_never_the_cloud(placement: Any, stream: bool) -> None:
    rules = "    rules: [{name: health, labels: [patient], residency: never_leaves}]"
    edge, cloud = Backend("edge"), Backend("cloud")
    async with routed(edge, cloud, rules, edge_url="http://127.0.0.1:9") as front:
        async with front.post(model="auto", stream=stream, weighbridge=placement) as answer:
            assert answer.status == 503
            error = (await answer.json())["error"]
            assert "edge" in error["message"]
            assert error["code"] == "no_side_available"
        assert cloud.calls == []


async def test_an_edge_that_breaks_before_its_first_byte_is_no_reason_to_leave() -> None:
    edge, cloud = Backend("edge", statuses=[500] * 9), Backend("cloud")
    async with routed(edge, cloud) as front:
        async with front.post(model="auto", weighbridge={"placement": "only_edge"}) as answer:
            assert answer.status == 503
            assert "500" in (await answer.json())["error"]["message"]
        assert cloud.calls == []
        async with front.post(model="auto") as answer:  # free to leave: the cloud answers
            assert answer.status == 200
            assert answer.headers["x-weighbridge-placement"] == "cloud"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("placement", ["only_edge", "only_cloud"])
async def test_a_client_that_goes_away_frees_the_replica(stream: bool, placement: str) -> None:
    edge, cloud = Backend("edge", gap=0.05, tokens=400), Backend("cloud", gap=0.05, tokens=400)
    working, replica = (edge, "near") if placement == "only_edge" else (cloud, "far")
    async with routed(edge, cloud) as front:
        sent = front.post(model="auto", stream=stream, weighbridge={"placement": placement})
        call = asyncio.create_task(_read_some(sent))
        await until(lambda: front.gateway.member(replica)[1].state.decoding)
        call.cancel()
        await until(lambda: working.cancelled == 1)
        await front.idle()
        [ticket] = (await front.get("/v1/tickets"))["data"]
        assert (ticket["model"], ticket["finish_reason"], ticket["error"]) == ("auto", "abort", None)
        assert [(leg["replica"], leg["outcome"]) for leg in ticket["legs"]] == [(replica, "abort")]


async def _read_some(sent: Any) -> None:
    async with sent as answer:
        async for _ in answer.content.iter_any():
            pass


async def test_a_race_frees_the_loser() -> None:
    edge, cloud = Backend("edge", first_delay=3600.0), Backend("cloud")
    async with routed(edge, cloud, "    cascade: {race: true}") as front:
        async with front.post(model="auto", stream=True) as answer:
            assert answer.headers["x-weighbridge-placement"] == "cloud"
            await answer.read()
        await until(lambda: edge.cancelled == 1)


async def test_many_at_once_some_going_away_leave_nothing() -> None:
    edge, cloud = Unsure("edge", gap=0.002, tokens=20), Backend("cloud", gap=0.002, tokens=20)
    async with routed(edge, cloud, ESCALATE) as front:

        async def one(number: int) -> None:
            name = "auto" if number % 3 else "small"
            timeout = aiohttp.ClientTimeout(total=0.03 if number % 5 == 0 else 120)
            fields = {"model": name, "messages": [{"role": "user", "content": f"number {number}"}]}
            url = f"{front.url}/v1/chat/completions"
            sent = front.client.post(url, json={**fields, "stream": number % 2 == 0}, timeout=timeout)
            try:
                async with sent as answer:
                    await answer.read()
                    assert answer.status == 200
            except TimeoutError:
                assert number % 5 == 0

        await asyncio.gather(*(one(number) for number in range(60)))
        await front.idle()


async def test_redaction_and_its_undoing() -> None:
    edge, cloud = Backend("edge"), Backend("cloud")
    async with routed(edge, cloud, "    residency: redact_then_cloud") as front:
        messages = [{"role": "user", "content": f"write to {SECRET}"}]
        async with front.post(
            model="auto", messages=messages, weighbridge={"placement": "only_cloud"}
        ) as answer:
            assert answer.status == 200, await answer.text()
        assert len(cloud.raw) == 1
        assert SECRET not in cloud.raw[0].decode()


async def test_a_spent_budget_means_local_and_is_marked() -> None:
    edge, cloud = Backend("edge"), Backend("cloud")
    async with routed(edge, cloud, NEVER_ESCALATE, top="budgets: {usd_per_day: 0}") as front:
        async with front.post(model="auto", weighbridge={"placement": "prefer_cloud"}) as answer:
            assert answer.status == 200
            assert answer.headers["x-weighbridge-placement"] == "edge"
            assert answer.headers["x-weighbridge-degraded"] == "true"
        assert cloud.calls == []


async def test_one_set_of_keys_and_limits() -> None:
    top = "tenants: {alice: {keys: [{key: secret}], limits: {requests_per_minute: 2}}}"
    edge, cloud = Backend("edge"), Backend("cloud")
    async with routed(edge, cloud, top=top) as front:
        async with front.post(model="auto") as answer:
            assert answer.status == 401
        headers = {"Authorization": "Bearer secret"}
        for _ in range(2):
            async with front.post(headers=headers, model="auto", user="bob") as answer:
                assert answer.status == 200
                ticket = await front.get(f"/v1/tickets/{answer.headers['x-weighbridge-ticket']}", headers)
                assert ticket["tenant"] == "alice"
        async with front.post(headers=headers, model="auto") as answer:
            assert answer.status == 429
            assert (await answer.json())["error"]["code"] == "rate_limit_exceeded"
            assert int(answer.headers["retry-after"]) >= 1
        assert cloud.calls == []


async def test_plain_models_and_lists() -> None:
    edge, cloud = Backend("edge"), Backend("cloud")
    async with routed(edge, cloud) as front:
        names = [one["id"] for one in (await front.get("/v1/models"))["data"]]
        assert names == ["small", "big", "auto"]
        assert (await front.get("/v1/models/auto"))["id"] == "auto"
        async with front.post(model="big") as answer:
            assert answer.headers["x-weighbridge-replica"] == "far"
        async with front.post("/v1/completions", model="auto") as answer:
            assert answer.status == 400
            assert "routes answer chats" in (await answer.json())["error"]["message"]
        async with front.post(model="auto", messages=[]) as answer:
            assert answer.status == 400
        async with front.client.post(f"{front.url}/v1/chat/completions", data=b'{"model": "auto"') as answer:
            assert answer.status == 400
        async with front.post(model="nobody") as answer:
            assert answer.status == 404


async def test_a_drain_waits_for_routes_and_lets_them_escalate() -> None:
    edge, cloud = Unsure("edge", first_delay=0.2), Backend("cloud", first_delay=0.2)
    async with routed(edge, cloud, ESCALATE) as front:
        call = asyncio.create_task(_whole(front.post(model="auto")))
        await until(lambda: edge.running == 1)
        drained = asyncio.create_task(front.gateway.drain(60.0))
        await until(lambda: front.gateway.draining)
        async with front.post(model="auto") as late:
            assert late.status == 503
        status, placement = await call
        assert (status, placement) == (200, "cloud")
        assert await drained


async def _whole(sent: Any) -> tuple[int, str]:
    async with sent as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-weighbridge-placement", "")


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (("{model: big}", "{model: bug}"), 11, "'bug' is no model of this file; there is small, big"),
        (("{model: big}", "{model: small}"), 11, "edge and cloud are both the model 'small'"),
        (("  auto:", "  small:"), 10, "a name of the model 'small' too"),
        (("    cloud: {model: big}\n", ""), 10, "routes.auto.cloud: is missing"),
        (("{model: big}", "{model: big, prise: 1}"), 11, "prise: is not a setting"),
        (("routes:", "keys: {a: {key: b}}\nroutes:"), 8, "keys of `tenants` hold"),
    ],
)
def test_what_is_wrong_has_its_line(change: tuple[str, str], line: int, said: str) -> None:
    text = config("http://127.0.0.1:1", "http://127.0.0.1:2").replace(*change)
    with pytest.raises(BadInput) as caught:
        parse_configuration(text, "weighbridge.yaml", Path("."))
    [complaint] = str(caught.value).splitlines()
    assert complaint.startswith(f"weighbridge.yaml:{line}: ")
    assert said in complaint


def test_settings_of_routes_without_routes_are_refused() -> None:
    text = config("http://127.0.0.1:1", "http://127.0.0.1:2", top="budgets: {usd_per_day: 1}")
    with pytest.raises(BadInput, match="budgets: is not a setting"):
        parse_configuration(text.split("routes:")[0], "weighbridge.yaml", Path("."))


async def test_metrics_count_a_request_once_and_each_leg_for_its_model() -> None:
    edge, cloud = Unsure("edge", tokens=3), Backend("cloud", tokens=7)
    async with routed(edge, cloud, ESCALATE) as front:
        async with front.post(model="auto", weighbridge={"tenant": "jane"}) as answer:
            assert answer.status == 200
        await front.idle()
        async with front.client.get(f"{front.url}/metrics") as page:
            told = dict(
                line.rsplit(" ", 1) for line in (await page.text()).splitlines() if not line.startswith("#")
            )
    assert told['weighbridge_gateway_tenant_requests_total{tenant="jane"}'] == "1.0"
    assert told['weighbridge_gateway_tenant_tokens_total{kind="prompt",tenant="jane"}'] == "22.0"
    assert told['weighbridge_gateway_tenant_tokens_total{kind="output",tenant="jane"}'] == "10.0"
    usd = float(told['weighbridge_gateway_tenant_usd_total{tenant="jane"}'])
    assert usd == pytest.approx((11 * 2.5 + 7 * 10) / 1e6)
    for model in ("small", "big"):
        name = f'weighbridge_gateway_requests_finished_total{{model="{model}",reason="stop"}}'
        assert told[name] == "1.0"
        assert told[f'weighbridge_gateway_request_seconds_count{{model="{model}",policy="weigh"}}'] == "1.0"


async def test_a_model_beyond_the_boundary_never_says_edge() -> None:
    edge, cloud = Backend("edge"), Backend("cloud")
    async with routed(edge, cloud) as front:
        async with front.post(model="big", weighbridge={"placement": "only_edge"}) as answer:
            assert answer.status == 403
            assert (await answer.json())["error"]["code"] == "residency_forbids"
        assert cloud.calls == []
        async with front.post(model="big") as answer:
            assert answer.headers["x-weighbridge-placement"] == "cloud"
            assert (await ticket_of(front, answer))["placement"] == "cloud"
        async with front.post(model="small", weighbridge={"placement": "only_edge"}) as answer:
            assert answer.status == 200
            assert answer.headers["x-weighbridge-placement"] == "edge"


async def test_a_model_may_be_there_for_routes_only() -> None:
    text = config("{edge}", "{cloud}").replace("  big:\n", "  big:\n    only_routes: true\n")
    edge, cloud = Backend("edge"), Backend("cloud")
    async with serving(edge) as near, serving(cloud) as far:
        filled = text.replace("{edge}", near).replace("{cloud}", far)
        read = parse_configuration(filled, "weighbridge.yaml", Path("."))
        gateway = Gateway(read.fleet, build_replica, seed=1)
        usage = add_routes(gateway, read.routes)
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway), usage))
        async with serving(app, "on") as url, aiohttp.ClientSession() as client:
            front = Front(url, gateway, client)
            await until(lambda: gateway.member("far")[1].heard)
            assert [one["id"] for one in (await front.get("/v1/models"))["data"]] == ["small", "auto"]
            async with front.post(model="big") as answer:
                assert answer.status == 404
            async with front.post(model="auto", weighbridge={"placement": "only_cloud"}) as answer:
                assert answer.status == 200
            await front.idle()


PLACES = """\
health: {{interval: 0.05, slow_start: 0}}
models:
  small: {{replicas: [{{name: near, url: '{near}', dialect: weighbridge}}]}}
routes:
  auto:
    cloud_attempts: 1
    places:
      - {{name: here, level: edge, model: small}}
      - {{name: site, level: edge, url: '{site}', model: m, dialect: weighbridge}}
      - {{name: far, level: cloud, url: '{far}', model: m, {price}}}
    cascade: {{threshold: 0.5}}
    rules: [{{name: health, labels: [patient], residency: never_leaves}}]
"""


async def test_three_places_are_tried_in_the_order_of_trust() -> None:
    """The device, the site, the cloud: a weak answer goes one place further, and what must stay never goes beyond."""
    here, site, far = Unsure("here", tokens=2), Unsure("site", tokens=3), Backend("far", tokens=4)
    async with serving(here) as a, serving(site) as b, serving(far) as c:
        text = PLACES.format(near=a, site=b, far=c, price=PRICE)
        read = parse_configuration(text, "weighbridge.yaml", Path("."))
        gateway = Gateway(read.fleet, build_replica, seed=1)
        usage = add_routes(gateway, read.routes)
        app = create_app(GatewayService(gateway, GatewayMetrics(gateway), usage))
        async with serving(app, "on") as url, aiohttp.ClientSession() as client:
            front = Front(url, gateway, client)
            await until(lambda: all(gateway.routes["auto"].health().values()))
            async with front.post(model="auto") as answer:
                await front.idle()
                ticket = await ticket_of(front, answer)
                assert answer.headers["x-weighbridge-placement"] == "cloud"
                assert answer.headers["x-weighbridge-replica"] == "far:m"
            assert [leg["place"] for leg in ticket["legs"]] == ["here", "site", "far"]
            async with front.post(model="auto", weighbridge={"labels": ["Patient"]}) as answer:
                await front.idle()
                ticket = await ticket_of(front, answer)
                assert answer.headers["x-weighbridge-placement"] == "edge"
                assert answer.headers["x-weighbridge-replica"] == "site:m"
            assert [leg["place"] for leg in ticket["legs"]] == ["here", "site"]
            assert len(far.calls) == 1
            await front.idle()
