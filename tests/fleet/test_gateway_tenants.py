"""Keys, tenants, limits, fairness at the door, and replicas that come and go at run time."""

from __future__ import annotations

import asyncio

import pytest

from tests.fleet.backends import Backend, config_of, fleet, until

KEYS = """
admin_key: operator
tenants:
  alice:
    key: alices
    limits: {tokens_per_minute: 2000}
  bob:
    keys: [{key: bobs}, {key: old, expires: 2001-01-01}]
    priority: 5
"""


def key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_keys_name_tenants_and_expire() -> None:
    backend = Backend("a")
    async with fleet(backend, top=KEYS) as front:
        for headers, code in (
            ({}, "invalid_api_key"),
            (key("wrong"), "invalid_api_key"),
            (key("old"), "expired_api_key"),
        ):
            async with front.post(headers=headers) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == code
        async with front.post(headers=key("bobs"), weighbridge={"tenant": "alice", "priority": -7}) as answer:
            assert answer.status == 200
            ticket = answer.headers["x-weighbridge-ticket"]
        mine = await front.get(f"/v1/tickets/{ticket}", key("bobs"))
        assert (mine["tenant"], mine["priority"]) == ("bob", 5)
        assert "error" in await front.get(f"/v1/tickets/{ticket}", key("alices"))
        async with front.client.get(front.url + "/v1/models") as answer:
            assert answer.status == 401
    assert "authorization" not in backend.headers[0]


PROMPT = "the quick brown fox jumps over the lazy dog " * 40


@pytest.mark.parametrize("dialect", ["weighbridge", "vllm", "sglang"])
async def test_each_tenant_has_a_cache_of_its_own(dialect: str) -> None:
    backend = Backend("a", dialect, page=b"", usage={"prompt_tokens_details": {"cached_tokens": 5}})
    async with fleet(backend, top=KEYS) as front:
        for secret in ("alices", "bobs", "alices"):
            async with front.post(
                "/v1/completions", headers=key(secret), prompt=PROMPT, max_tokens=1
            ) as answer:
                told = (await answer.json())["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert told == 5  # the replica keeps them apart, so what it says is of one's own
            await front.idle()
        async with front.post(headers=key("bobs"), prompt=PROMPT, cache_salt="mine"):
            pass
        alice, bob, again, mine = (call["cache_salt"] for call in backend.calls)
        assert alice == again
        assert len({alice, bob, mine}) == 3
        index = front.gateway.pools["m"]._index
        assert index.blocks("a") > 0
        index.check_integrity()


async def test_the_gateway_expects_no_hit_on_what_another_tenant_sent() -> None:
    async with fleet(Backend("a"), Backend("b"), top=KEYS) as front:
        scales = front.gateway.pools["m"].scales
        chains = []
        for secret in ("alices", "bobs", "alices"):
            async with front.post("/v1/completions", headers=key(secret), prompt=PROMPT) as answer:
                assert answer.status == 200
            await front.idle()
            chains = list(dict.fromkeys(weighed.chain for weighed in scales._known.values()))
        assert len(chains) == 2
        assert len(chains[0]) > 1
        assert not set(chains[0]) & set(chains[1])


@pytest.mark.parametrize("dialect", ["openai", "llama-server", "ollama"])
async def test_what_a_server_that_cannot_keep_tenants_apart_has_cached_is_not_shown(dialect: str) -> None:
    usage = {"prompt_tokens_details": {"cached_tokens": 5}, "prompt_cache_hit_tokens": 5}
    backend = Backend("a", dialect, page=b"", usage=usage)
    async with fleet(backend, top=KEYS) as front:
        async with front.post(headers=key("bobs"), cache_salt="mine") as answer:
            told = (await answer.json())["usage"]
        assert told["prompt_tokens"] == 11
        assert (told["prompt_tokens_details"], told["prompt_cache_hit_tokens"]) == ({"cached_tokens": 0}, 0)
        wanted = {"headers": key("bobs"), "stream_options": {"include_usage": True}}
        told = next(one["usage"] for one in await front.stream(**wanted) if one.get("usage"))
        assert told["prompt_tokens_details"] == {"cached_tokens": 0}
        assert all("cache_salt" not in call for call in backend.calls)
        await front.idle()
        tickets = (await front.get("/v1/tickets", key("bobs")))["data"]
        assert [one["cached_tokens"] for one in tickets] == [0, 0]
        for who, cached in (("bobs", 0), ("operator", 10)):
            [row] = (await front.get("/v1/usage", key(who)))["data"]
            assert (row["requests"], row["cached_tokens"]) == (2, cached), who
        assert (
            front.gateway.pools["m"].members["a"].counts.cached_tokens == 10
        )  # what the operator sees is true


async def test_sharing_is_a_setting() -> None:
    backend = Backend("a", "openai", usage={"prompt_tokens_details": {"cached_tokens": 5}})
    async with fleet(backend, top=KEYS + "share_prefixes: true") as front:
        hashes = set()
        for secret in ("alices", "bobs"):
            async with front.post(headers=key(secret)) as answer:
                told = (await answer.json())["usage"]["prompt_tokens_details"]["cached_tokens"]
                ticket = answer.headers["x-weighbridge-ticket"]
            assert told == 5
            hashes.add((await front.get(f"/v1/tickets/{ticket}", key(secret)))["prompt_hash"])
        assert len(hashes) == 1
    assert all("cache_salt" not in call for call in backend.calls)


async def test_tokens_per_minute_hold_under_concurrency() -> None:
    """litellm #5783: concurrent requests overshot a limit that each of them had checked alone."""
    backend = Backend("a", tokens=5, gate=asyncio.Event())
    async with fleet(backend, top=KEYS) as front:
        refused = 0

        async def one() -> int:
            nonlocal refused
            async with front.post(headers=key("alices"), max_tokens=100) as answer:
                await answer.read()
                if answer.status == 429:
                    refused += 1
                    assert 1 <= int(answer.headers["retry-after"]) <= 61
                return int(answer.status)

        jobs = [asyncio.create_task(one()) for _ in range(500)]
        await until(lambda: refused + backend.running == 500)  # none has given anything back yet
        backend.let_go()
        statuses = await asyncio.gather(*jobs)
        weighed = (await front.get("/v1/tickets", key("alices")))["data"][0]["weighed_tokens"]
    passed = statuses.count(200)
    assert passed == 2000 // (100 + weighed)  # one more would be beyond the limit: no overshoot at all
    assert statuses.count(429) == 500 - passed
    assert len(backend.calls) == passed


async def test_money_is_reserved_and_settled() -> None:
    top = "limits: {usd_per_day: 40}"
    price = ", price: {input_usd_per_million: 1000000, output_usd_per_million: 1000000}"
    async with fleet(Backend("a", tokens=5), top=top, replica=price) as front:
        statuses = []
        for _ in range(4):
            async with front.post(max_tokens=12) as answer:  # reserves about 20 dollars, costs 16
                statuses.append(answer.status)
            await front.idle()
    assert statuses == [200, 200, 429, 429]


async def test_what_was_not_used_is_given_back() -> None:
    backend = Backend("a", tokens=5)
    async with fleet(backend, top=KEYS) as front:
        for _ in range(30):  # each reserves 506 tokens and uses 16
            async with front.post(headers=key("alices"), max_tokens=500) as answer:
                assert answer.status == 200
            await front.idle()


async def test_a_request_larger_than_its_limit_is_told_so() -> None:
    async with (
        fleet(Backend("a"), top=KEYS) as front,
        front.post(headers=key("alices"), max_tokens=5000) as answer,
    ):
        assert answer.status == 400
        assert "tokens_per_minute" in (await answer.json())["error"]["message"]


async def test_a_heavy_tenant_does_not_keep_out_a_light_one() -> None:
    backend = Backend("a", gate=asyncio.Event())
    async with fleet(backend, replica=", limits: {concurrent_requests: 1}") as front:
        order: list[str] = []

        async def one(tenant: str) -> None:
            async with front.post(weighbridge={"tenant": tenant}) as answer:
                assert answer.status == 200
            order.append(tenant)

        heavy = [asyncio.create_task(one("heavy")) for _ in range(30)]
        await until(lambda: len(front.gateway.pools["m"].dispatcher.queue) == 29)
        light = [asyncio.create_task(one("light")) for _ in range(3)]
        await until(lambda: len(front.gateway.pools["m"].dispatcher.queue) == 32)
        backend.let_go()
        await asyncio.gather(*heavy, *light)
    assert max(index for index, tenant in enumerate(order) if tenant == "light") < 12


async def test_a_full_line_still_takes_a_tenant_that_has_little_in_it() -> None:
    backend = Backend("a", gate=asyncio.Event())
    top = "queue: {max_requests: 8}"
    async with fleet(backend, top=top, replica=", limits: {concurrent_requests: 1}") as front:
        queue = front.gateway.pools["m"].dispatcher.queue

        async def one(tenant: str) -> int:
            async with front.post(weighbridge={"tenant": tenant}) as answer:
                return int(answer.status)

        heavy = [asyncio.create_task(one("heavy")) for _ in range(30)]
        await until(lambda: len(queue) == 8 and sum(job.done() for job in heavy) == 21)
        assert {job.result() for job in heavy if job.done()} == {429}
        light = [asyncio.create_task(one("light")) for _ in range(6)]
        await until(lambda: len(queue) == 12 and sum(job.done() for job in light) == 2)
        backend.let_go()
        statuses = await asyncio.gather(*light)
        assert sorted(statuses) == [200] * 4 + [429] * 2
        await asyncio.gather(*heavy)


async def test_urgent_requests_go_first() -> None:
    backend = Backend("a", gate=asyncio.Event())
    async with fleet(backend, replica=", limits: {concurrent_requests: 1}") as front:
        order: list[int] = []

        async def one(priority: int) -> None:
            async with front.post(weighbridge={"priority": priority}) as answer:
                assert answer.status == 200
            order.append(priority)

        queue = front.gateway.pools["m"].dispatcher.queue
        jobs = [asyncio.create_task(one(9)) for _ in range(4)]
        await until(lambda: len(queue) == 3)
        jobs += [asyncio.create_task(one(-9)) for _ in range(2)]
        await until(lambda: len(queue) == 5)
        backend.let_go()
        await asyncio.gather(*jobs)
    assert order == [9, -9, -9, 9, 9, 9]


async def test_replicas_come_and_go_at_run_time() -> None:
    a, b = Backend("a"), Backend("b")
    admin = key("operator")
    async with fleet(b) as other, fleet(a, top="admin_key: operator") as front:
        assert other.gateway.ready
        async with front.client.post(front.url + "/admin/replicas", json={"url": b.url}) as answer:
            assert answer.status == 401
        entry = {"url": b.url, "name": "b", "dialect": "weighbridge"}
        async with front.client.post(front.url + "/admin/replicas", json=entry, headers=admin) as answer:
            assert answer.status == 201
        async with front.client.post(front.url + "/admin/replicas", json=entry, headers=admin) as answer:
            assert answer.status == 409
        wrong = {"url": "nowhere", "for": "m"}
        async with front.client.post(front.url + "/admin/replicas", json=wrong, headers=admin) as answer:
            assert answer.status == 400
            assert "is no URL" in (await answer.json())["error"]["message"]
        await until(lambda: front.gateway.pools["m"].members["b"].heard)
        async with front.client.post(front.url + "/admin/replicas/a/drain", headers=admin) as answer:
            assert (await answer.json())["standing"] == "draining"
        for _ in range(3):
            async with front.post() as answer:
                assert answer.headers["x-weighbridge-replica"] == "b"
        async with front.client.post(front.url + "/admin/replicas/a/undrain", headers=admin) as answer:
            assert (await answer.json())["standing"] == "up"
        async with front.client.delete(front.url + "/admin/replicas/b", headers=admin) as answer:
            assert await answer.json() == {"removed": "b", "drained": True}
        async with front.client.delete(front.url + "/admin/replicas/b", headers=admin) as answer:
            assert answer.status == 404
        names = [one["name"] for one in (await front.get("/admin/replicas", admin))["data"]]
    assert names == ["a"]


async def test_without_an_admin_key_nothing_can_be_changed() -> None:
    async with (
        fleet(Backend("a")) as front,
        front.client.get(front.url + "/admin/replicas", headers=key("x")) as answer,
    ):
        assert answer.status == 403
        assert "admin_key" in (await answer.json())["error"]["message"]


async def test_a_cloud_account_is_not_asked_for_more_than_it_may() -> None:
    """litellm #7669: a limit that the provider announces is kept on our side, not discovered by its refusals."""
    cloud, own = Backend("cloud"), Backend("own", tokens=3)
    async with fleet(cloud, own) as front:
        config = config_of([cloud, own]).replace(
            "{name: cloud", "{limits: {requests_per_minute: 2}, name: cloud"
        )
        async with fleet(config=config) as limited:
            for _ in range(8):
                async with limited.post() as answer:
                    assert answer.status == 200
        assert front.gateway.ready
    assert len(cloud.calls) <= 2
    assert len(own.calls) >= 6


@pytest.mark.parametrize("name", ["round_robin", "random", "least_requests", "power_of_two", "least_tokens"])
async def test_every_policy_serves(name: str) -> None:
    a, b = Backend("a"), Backend("b")
    async with fleet(a, b, model=f"    policy: {name}") as front:
        for _ in range(6):
            async with front.post() as answer:
                assert answer.status == 200
    assert len(a.calls) + len(b.calls) == 6


async def test_ten_times_as_many_requests_bring_no_more_service_through_the_gateway() -> None:
    """Sheng et al. 2024: over any time in which both are backlogged, |W_a - W_b| <= 2 max(w_p L_input, w_q M);
    M is here what four requests in flight produce."""
    backend = Backend("a", tokens=5, gate=asyncio.Event())
    produced = 2 * backend.tokens  # service of one answer

    async with fleet(backend, replica=", limits: {concurrent_requests: 4}") as front:

        async def one(tenant: str, number: int) -> None:
            prompt = [number + 1000 * token for token in range(1 + 37 * number % 300)]  # no two begin alike
            async with front.post("/v1/completions", prompt=prompt, weighbridge={"tenant": tenant}) as answer:
                assert answer.status == 200

        queue = front.gateway.pools["m"].dispatcher.queue
        jobs = [asyncio.create_task(one("greedy", number)) for number in range(1, 201)]
        jobs += [asyncio.create_task(one("modest", number)) for number in range(201, 221)]
        await until(lambda: len(queue) == 216 and backend.running == 4)
        backend.let_go()
        await asyncio.gather(*jobs)
    service, left, gaps = {"greedy": 0, "modest": 0}, {"greedy": 196, "modest": 20}, []
    for call in backend.calls[
        4:
    ]:  # the first four met no queue; the others came in the order of their dispatch
        tenant = call["weighbridge"]["tenant"]
        left[tenant] -= 1
        service[tenant] += len(call["prompt"]) + produced
        gaps.append(abs(service["greedy"] - service["modest"]))
        if not min(left.values()):
            break
    longest = max(len(call["prompt"]) for call in backend.calls)
    assert left["modest"] == 0  # it was served in turn, not behind 196 others
    assert left["greedy"] > 150
    assert max(gaps) <= 2 * max(longest, 4 * produced)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("told", [{"completion_tokens": 1 << 32}, {"prompt_tokens": 1 << 32}])
async def test_no_backends_word_uses_up_a_tenants_limits_and_money(
    told: dict[str, int], stream: bool
) -> None:
    """What a request can have taken is known from its weight and from what came; a model named directly included."""
    backend = Backend("a", tokens=5, usage={**told, "total_tokens": 1 << 32})
    price = ", price: {input_usd_per_million: 1, output_usd_per_million: 1}"
    tenants = "tenants: {bob: {key: bobs, limits: {tokens_per_minute: 10000, usd_per_day: 0.01}}}"
    async with fleet(backend, top=tenants, replica=price) as front:
        for _ in range(3):
            async with front.post(headers=key("bobs"), max_tokens=20, stream=stream) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
                ticket = answer.headers["x-weighbridge-ticket"]
            await front.idle()
        mine = await front.get(f"/v1/tickets/{ticket}", key("bobs"))
        assert mine["prompt_tokens"] < 1000
        assert mine["output_tokens"] <= 20
        assert any("which cannot be" in line for line in mine["decisions"])
        assert mine["cost_estimated"]
        assert mine["cost_usd"] < 1e-3
        usage = (await front.get("/v1/usage", key("bobs")))["data"][0]
        assert usage["prompt_tokens"] + usage["output_tokens"] < 1000


async def test_thinking_beyond_max_tokens_is_believed_where_the_model_is_said_to_think() -> None:
    backend = Backend("a", tokens=5, usage={"completion_tokens": 3000, "total_tokens": 3011})
    for thinks, charged in ((0, 20), (4096, 3000)):
        async with fleet(backend, model=f"    thinking_tokens: {thinks}") as front:
            async with front.post(max_tokens=20, stream=True) as answer:
                await answer.read()
                ticket = answer.headers["x-weighbridge-ticket"]
            await front.idle()
            assert (await front.get(f"/v1/tickets/{ticket}"))["output_tokens"] == charged
