"""What goes in comes out: bytes, fields, headers, usage, tickets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from openai import AsyncOpenAI

from tests.fleet.backends import Backend, events, fleet, text_of, until


async def test_a_stream_passes_byte_for_byte() -> None:
    backend = Backend("a", tokens=3)
    async with fleet(backend) as front:
        async with front.post(stream=True, stream_options={"include_usage": True}) as answer:
            through = await answer.read()
            assert answer.headers["x-weighbridge-replica"] == "a"
            assert answer.headers["x-own"] == "kept"
            assert answer.headers["content-type"].startswith("text/event-stream")
        async with front.client.post(backend.url + "/v1/chat/completions", json=backend.calls[0]) as answer:
            direct = await answer.read()
    assert through == direct
    assert events(through)[-1] == "[DONE]"


async def test_usage_is_asked_for_and_taken_out_again() -> None:
    backend = Backend("a", tokens=4)
    async with fleet(backend) as front:
        stream = await front.stream()
        assert backend.calls[0]["stream_options"] == {"include_usage": True}
        assert all(one == "[DONE]" or one["choices"] for one in stream)
        assert text_of(stream) == " t0 t1 t2 t3"
        [ticket] = (await front.get("/v1/tickets"))["data"]
    assert (ticket["prompt_tokens"], ticket["output_tokens"], ticket["finish_reason"]) == (11, 4, "stop")


async def test_other_stream_options_stay() -> None:
    backend = Backend("a")
    async with fleet(backend) as front:
        await front.stream(stream_options={"continuous_usage_stats": True})
    assert backend.calls[0]["stream_options"] == {"continuous_usage_stats": True, "include_usage": True}


async def test_unknown_fields_pass_as_they_were_written() -> None:
    backend = Backend("a")
    written = (
        b'{"model": "m", "prompt": "x", "top_a": 0.10000000000000000001, "seed": 123456789012345678901234567890,'
        b' "odd": {"b": [1.0, 1e400]}}'
    )
    async with (
        fleet(backend) as front,
        front.client.post(front.url + "/v1/completions", data=written) as answer,
    ):
        assert answer.status == 200
    assert b"0.10000000000000000001" in backend.raw[0]
    assert b"123456789012345678901234567890" in backend.raw[0]
    assert b'{"b": [1.0, 1e400]}' in backend.raw[0]


async def test_a_whole_answer_and_its_headers() -> None:
    backend = Backend("a", tokens=2)
    async with (
        fleet(
            backend, replica=", price: {input_usd_per_million: 1000000, output_usd_per_million: 2000000}"
        ) as front,
        front.post() as answer,
    ):
        value = await answer.json()
        assert answer.headers["x-weighbridge-cost"] == "15"  # 11 + 2 * 2 dollars, with these prices
        ticket = await front.get("/v1/tickets/" + answer.headers["x-weighbridge-ticket"])
    assert value["choices"][0]["message"]["content"] == " t0 t1"
    assert ticket["cost_usd"] == 15.0
    assert ticket["replica"] == "a"
    assert any("chose a" in line for line in ticket["decisions"])


async def test_a_ticket_that_the_client_proposes_can_be_asked_for_before_anything_came() -> None:
    backend, proposed = Backend("a", gate=asyncio.Event()), "0123456789abcdef" * 2
    headers = {"x-weighbridge-ticket": proposed}
    async with fleet(backend) as front:
        job = asyncio.create_task(_read(front.post(stream=True, headers=headers)))
        await until(lambda: backend.running)
        waiting = await front.get(f"/v1/tickets/{proposed}")
        assert (waiting["id"], waiting["replica"], waiting["finished"]) == (proposed, "a", None)
        job.cancel()  # no byte of the answer has come; what became of it can be seen all the same
        await asyncio.gather(job, return_exceptions=True)
        await front.idle()
        ticket = await front.get(f"/v1/tickets/{proposed}")
        assert ticket["finished"] is not None
        assert ticket["finish_reason"] == "abort"
    assert backend.cancelled == 1


async def test_a_proposed_ticket_is_used_once_and_only_in_its_form() -> None:
    proposed = "0123456789abcdef" * 2
    async with fleet(Backend("a")) as front:
        names = []
        for wish in (proposed, proposed, "no ticket", proposed.upper(), proposed + "0"):
            async with front.post(headers={"x-weighbridge-ticket": wish}) as answer:
                assert answer.status == 200
                names.append(answer.headers["x-weighbridge-ticket"])
        at_once = "fedcba9876543210" * 2
        jobs = (_ticket_of(front.post(headers={"x-weighbridge-ticket": at_once})) for _ in range(8))
        names += await asyncio.gather(*jobs)
        tickets = {one["id"] for one in (await front.get("/v1/tickets"))["data"]}
    assert names[0] == proposed
    assert names.count(at_once) == 1
    assert len(set(names)) == len(names) == 13
    assert tickets == set(names)


async def _read(sent: Any) -> bytes:
    async with sent as answer:
        return await answer.read()


async def _ticket_of(sent: Any) -> str:
    async with sent as answer:
        assert answer.status == 200
        return str(answer.headers["x-weighbridge-ticket"])


async def test_embeddings_and_completions_pass() -> None:
    backend = Backend("a")
    async with fleet(backend) as front:
        for path in ("/v1/embeddings", "/v1/completions"):
            async with front.post(path) as answer:
                assert answer.status == 200
    assert backend.paths == ["/v1/embeddings", "/v1/completions"]


async def test_aliases_lead_to_the_replicas_own_name() -> None:
    backend = Backend("a")
    async with fleet(backend, replica=", model: upstream") as front:
        async with front.post(model="other") as answer:
            assert answer.status == 200
        async with front.post(model="nobody") as answer:
            assert answer.status == 404
            error = (await answer.json())["error"]
        names = [one["id"] for one in (await front.get("/v1/models"))["data"]]
    assert backend.calls[0]["model"] == "upstream"
    assert error["code"] == "model_not_found"
    assert "'nobody'" in error["message"]
    assert "m, other" in error["message"]
    assert names == ["m", "other"]


async def test_our_own_key_goes_to_weighbridge_replicas_only() -> None:
    ours, theirs = Backend("ours"), Backend("theirs")
    for backend, dialect in ((ours, "weighbridge"), (theirs, "openai")):
        async with fleet(backend) as front:
            front.gateway.pools["m"].members[backend.name].spec = _speaking(front, backend.name, dialect)
            async with front.post(
                weighbridge={"tenant": "t", "deadline_ms": 60000, "session": "s"}
            ) as answer:
                assert answer.status == 200
    known = ours.calls[0]["weighbridge"]
    assert (known["tenant"], known["priority"]) == ("t", 0)
    assert 0 < known["deadline_ms"] <= 60000
    assert "weighbridge" not in theirs.calls[0]


def _speaking(front, name, dialect):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(front.gateway.pools["m"].members[name].spec, dialect=dialect)


async def test_bad_bodies_are_told_by_name() -> None:
    async with fleet(Backend("a")) as front:
        for data, wanted in (
            (b"", "empty"),
            (b"{", "not valid JSON"),
            (b"[]", "expected"),
            (b'{"model": "m", "max_tokens": "many"}', "max_tokens"),
            (b'{"model": "m", "weighbridge": {"deadline_ms": -1}}', "weighbridge.deadline_ms"),
            (b'{"model": "m", "weighbridge": {"tenent": "x"}}', "tenent"),
        ):
            async with front.client.post(front.url + "/v1/chat/completions", data=data) as answer:
                assert answer.status == 400, data
                assert wanted in (await answer.json())["error"]["message"]


async def test_a_body_beyond_the_limit_is_refused() -> None:
    async with fleet(Backend("a"), top="max_body: 1KiB") as front, front.post(padding="x" * 2000) as answer:
        assert answer.status == 413


async def test_the_official_client_streams_through() -> None:
    async with fleet(Backend("a", tokens=3)) as front:
        client = AsyncOpenAI(base_url=front.url + "/v1", api_key="none")
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        await client.close()
    assert text == " t0 t1 t2"


async def test_a_stream_that_stays_open_behind_its_end_ends_for_the_client() -> None:
    backend = Backend("a", linger=3600.0)
    async with fleet(backend) as front:
        async with asyncio.timeout(60):
            assert (await front.stream())[-1] == "[DONE]"
            await front.idle()


async def test_metrics_and_console_and_load() -> None:
    async with fleet(Backend("a")) as front:
        await front.stream(weighbridge={"tenant": "alice"})
        await front.idle()
        async with front.client.get(front.url + "/metrics") as answer:
            page = await answer.text()
        async with front.client.get(front.url + "/") as answer:
            assert "<title>Weighbridge</title>" in await answer.text()
        load = await front.get("/v1/load")
    assert 'weighbridge_replica_requests_finished_total{model="m",replica="a"} 1.0' in page
    assert 'weighbridge_gateway_tenant_tokens_total{kind="output",tenant="alice"} 5.0' in page
    assert 'weighbridge_gateway_time_to_first_token_seconds_count{model="m",policy="weigh"} 1.0' in page
    assert load["models"]["m"]["replicas"][0]["standing"] == "up"
    assert json.dumps(load)
