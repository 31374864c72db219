"""A key that ends, or limits that are lowered, while something of their tenant is under way: whoever was let in is
answered and pays, and nobody is let in any more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import FormData

from tests.fleet.backends import Backend, Front, all_served, fleet

ADMIN, ANN = "a-long-key-of-the-operator", "a-long-key-of-ann-alone"
CHAT = "/v1/chat/completions"
#: Ends the key of the configuration, and returns what its next request is told.
End = Callable[[Front, pytest.MonkeyPatch], Awaitable[tuple[int, str]]]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def gateway(backend: Backend) -> AsyncIterator[Front]:
    tenants = (
        f"{{ann: {{keys: [{{key: {ANN}, expires: 2100-01-01}}], limits: {{requests_per_minute: 100}}}}}}"
    )
    text = f"admin_key: {ADMIN}\ntenants: {tenants}\nhealth: {{interval: 0.05, slow_start: 0}}\n"
    async with all_served((backend,)):
        entry = f"{{name: first, url: '{backend.url}', dialect: weighbridge}}"
        async with fleet(config=f"{text}models: {{m: {{replicas: [{entry}]}}}}\n") as front:
            yield front


async def operator(front: Front, method: str, path: str, body: Any = None) -> Any:
    url = f"{front.url}/admin/tenants/ann{path}"
    async with front.client.request(method, url, json=body, headers=bearer(ADMIN)) as answer:
        assert answer.status < 300, await answer.text()
        return await answer.json()


async def standing(front: Front) -> dict[str, Any]:
    url = f"{front.url}/admin/tenants"
    async with front.client.get(url, headers=bearer(ADMIN)) as answer:
        return next(dict(one) for one in (await answer.json())["data"] if one["tenant"] == "ann")


async def refused(front: Front) -> tuple[int, str]:
    async with front.post(headers=bearer(ANN)) as answer:
        return answer.status, (await answer.json()).get("error", {}).get("code", "")


async def revoke(front: Front, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    for key in (await standing(front))["keys"]:
        if key["expires"] is not None:  # the others are the operator's
            await operator(front, "DELETE", f"/keys/{key['id']}")
    return 401, "revoked_api_key"


async def expire(front: Front, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 100 * 366 * 86_400.0)
    return 401, "expired_api_key"


WAYS = pytest.mark.parametrize("end", [revoke, expire])


@WAYS
async def test_a_stream_goes_on_to_its_end(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(gate=asyncio.Event(), hold_after=2)
    async with gateway(backend) as front, front.post(headers=bearer(ANN), stream=True) as stream:
        await stream.content.readline()
        wanted = await end(front, monkeypatch)
        assert await refused(front) == wanted
        backend.let_go()
        assert (await stream.read()).rstrip().endswith(b"data: [DONE]")


@WAYS
async def test_what_waits_in_the_queue_is_answered(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(gate=asyncio.Event())
    async with gateway(backend) as front:
        asked = [asyncio.create_task(whole(front)) for _ in range(6)]
        await asyncio.sleep(0.3)
        wanted = await end(front, monkeypatch)
        assert await refused(front) == wanted
        backend.let_go()
        assert await asyncio.gather(*asked) == [200] * 6


async def whole(front: Front) -> int:
    async with front.post(headers=bearer(ANN)) as answer:
        await answer.read()
        return answer.status


@WAYS
async def test_a_stream_that_is_kept_is_given_to_no_key_that_has_ended(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(gate=asyncio.Event(), hold_after=2)
    async with gateway(backend) as front:
        async with front.post(
            headers={**bearer(ANN), "x-weighbridge-resume": "true", "x-request-id": "kept"}, stream=True
        ) as stream:
            await stream.content.readline()
        wanted = await end(front, monkeypatch)
        for method in ("GET", "DELETE"):
            url = f"{front.url}/v1/streams/kept"
            async with front.client.request(method, url, headers=bearer(ANN)) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == wanted
        backend.let_go()


@WAYS
async def test_a_batch_goes_on_and_another_key_of_its_tenant_has_it(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(gate=asyncio.Event(), hold_after=0)
    async with gateway(backend) as front:
        other = (await operator(front, "POST", "/keys"))["key"]
        made = await batch(front, ANN, 3)
        await asyncio.sleep(0.3)
        wanted = await end(front, monkeypatch)
        async with front.client.get(f"{front.url}/v1/batches/{made}", headers=bearer(ANN)) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == wanted
        backend.let_go()
        assert (await over(front, other, made))["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


@WAYS
async def test_a_batch_of_a_tenant_that_has_lost_a_key_is_ended_with_another(
    end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(gate=asyncio.Event(), hold_after=0)
    async with gateway(backend) as front:
        other = (await operator(front, "POST", "/keys"))["key"]
        made = await batch(front, ANN, 50)
        await end(front, monkeypatch)
        async with front.client.post(
            f"{front.url}/v1/batches/{made}/cancel", headers=bearer(other)
        ) as answer:
            assert answer.status == 200
        backend.let_go()
        assert (await over(front, other, made))["status"] == "cancelled"


async def batch(front: Front, key: str, lines: int) -> str:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    each = ({"custom_id": str(n), "method": "POST", "url": CHAT, "body": chat} for n in range(lines))
    form = FormData({"purpose": "batch"})
    form.add_field("file", "\n".join(map(json.dumps, each)), filename="lines.jsonl")
    async with front.client.post(f"{front.url}/v1/files", data=form, headers=bearer(key)) as answer:
        name = (await answer.json())["id"]
    wanted = {"input_file_id": name, "endpoint": CHAT, "completion_window": "1h"}
    async with front.client.post(f"{front.url}/v1/batches", json=wanted, headers=bearer(key)) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["id"])


async def over(front: Front, key: str, name: str) -> dict[str, Any]:
    for _ in range(600):
        async with front.client.get(f"{front.url}/v1/batches/{name}", headers=bearer(key)) as answer:
            found = dict(await answer.json())
        if found["status"] in ("completed", "cancelled", "failed", "expired"):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(found)


# -- limits ------------------------------------------------------------------------------------------------


async def test_limits_that_are_lowered_hold_for_the_next_and_leave_what_runs_alone() -> None:
    backend = Backend(gate=asyncio.Event(), hold_after=2)
    async with gateway(backend) as front, front.post(headers=bearer(ANN), stream=True) as stream:
        await stream.content.readline()
        lowest = {"requests_per_minute": 1, "tokens_per_minute": 1, "concurrent_tokens": 1}
        await operator(front, "PUT", "/limits", lowest)
        assert (await refused(front))[0] in (400, 429)
        backend.let_go()
        assert (await stream.read()).rstrip().endswith(b"data: [DONE]")
        used = (await standing(front))["used"]
        assert used["concurrent_tokens"] == 0
        front.gateway.limiter.check_integrity()


async def test_a_batch_under_limits_that_are_lowered_waits_for_room_and_loses_no_line() -> None:
    backend = Backend(gate=asyncio.Event(), hold_after=0)
    async with gateway(backend) as front:
        made = await batch(front, ANN, 6)
        await asyncio.sleep(0.3)
        await operator(front, "PUT", "/limits", {"requests_per_minute": 1})
        backend.let_go()
        await asyncio.sleep(1.5)
        await operator(front, "DELETE", "/limits")
        found = await over(front, ANN, made)
        assert (found["status"], found["request_counts"]["failed"]) == ("completed", 0)
