"""The endpoint of routes as a client sees it: a configuration file, real sockets, OpenAI's shapes and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fleet.backends import clients, events, until
from tests.fleet.backends import serving as serving_app
from tests.routes.stub import BROKEN, CUT, Stub, serving
from weighbridge.routes.build import build_front
from weighbridge.routes.config import load_hybrid
from weighbridge.routes.front import Front, create_app

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

    def __init__(self, url: str, session: aiohttp.ClientSession, front: Front) -> None:
        self.url, self.session, self.front = url, session, front

    def post(self, text: str = "hello", headers: Any = None, **fields: Any) -> Any:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        return self.session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    async def stream(self, **fields: Any) -> list[Any]:
        async with self.post(stream=True, **fields) as answer:
            assert answer.status == 200, await answer.text()
            return events(await answer.read())


@asynccontextmanager
async def front_over(edge: Stub, cloud: Stub, folder: Path, more: str = "") -> AsyncIterator[Client]:
    async with serving(edge, cloud) as (edge_url, cloud_url):
        path = folder / "weighbridge.yaml"
        path.write_text(CONFIG.format(edge=edge_url, cloud=cloud_url, more=more), encoding="utf-8")
        front = build_front(load_hybrid(path))
        async with serving_app(create_app(front), "on") as url, clients() as session:
            yield Client(url, session, front)


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
        async with client.session.get(f"{client.url}/v1/tickets/{ticket}") as found:
            record = await found.json()
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
        ({"model": "gpt-9"}, "auto"),
        ({"messages": "hello"}, "messages"),
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


async def test_a_client_that_goes_away_leaves_nothing_open(tmp_path: Path) -> None:
    async with front_over(said("local"), said("word " * 2000, pause=0.01), tmp_path) as client:
        router = client.front.routers["auto"]
        async with client.post(stream=True, weighbridge={"placement": "prefer_cloud"}) as answer:
            await answer.content.readany()
            assert router.cloud.in_flight == 1  # type: ignore[attr-defined]
            answer.close()
        await until(lambda: router.cloud.in_flight == 0, 60)  # type: ignore[attr-defined]
        await until(lambda: client.front.tickets.recent(1)[0].finished is not None, 60)
        assert client.front.tickets.recent(1)[0].finish_reason == "abort"
        assert router.ledger.spent().reserved == 0.0


@pytest.mark.parametrize("placement", ["only_edge", "only_cloud"])
async def test_a_client_that_goes_away_before_the_first_byte_has_made_no_error(
    placement: str, tmp_path: Path
) -> None:
    edge, cloud = said("local", first=60.0), said("remote", first=60.0)
    async with front_over(edge, cloud, tmp_path) as client:
        asked = asyncio.create_task(client.post(weighbridge={"placement": placement}).__aenter__())
        await until(lambda: edge.log or cloud.log)
        asked.cancel()
        await until(lambda: client.front.tickets.recent(1)[0].finished is not None)
        [ticket] = client.front.tickets.recent()
    assert (ticket.finish_reason, ticket.error) == ("abort", None)


async def test_keys_say_whose_request_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANN_KEY", "secret-of-ann")
    more = "keys: {ann: {key_env: ANN_KEY}}"
    async with front_over(said("local", logprob=-0.01), said("remote"), tmp_path, more) as client:
        async with client.post() as answer:
            assert answer.status == 401
        async with client.post(headers={"authorization": "Bearer secret-of-ann"}) as answer:
            assert answer.status == 200
        assert client.front.tickets.recent(1)[0].tenant == "ann"
