"""One prompt on its way: engine, gateway and route name it alike in their tickets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fleet.backends import fleet, until

CONFIG = """
models:
  tiny: {{replicas: [{{name: engine, url: "{url}", dialect: weighbridge, model: tiny}}]}}
routes:
  auto:
    edge: {{model: tiny}}
    cloud: {{url: "http://127.0.0.1:9/v1", model: big}}
    cascade: {{enabled: false}}
"""


@pytest.mark.parametrize("model", ["tiny", "auto"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_can_be_followed_through_all_tickets(model: str, stream: bool, server: str) -> None:
    async with fleet(config=CONFIG.format(url=server), wait=False) as front:
        await until(lambda: front.gateway.member("engine")[1].heard)
        messages = [{"role": "user", "content": f"weigh {model} {stream}"}]
        async with front.post(model=model, messages=messages, max_tokens=2, stream=stream) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
            name = answer.headers["x-weighbridge-ticket"]
        await front.idle()
        ticket: dict[str, Any] = await front.get(f"/v1/tickets/{name}")
        [leg] = ticket["legs"]
        async with front.client.get(f"{server}/v1/tickets/{leg['replica_ticket']}") as found:
            below = await found.json()
    assert below["prompt_hash"] == ticket["prompt_hash"]
    assert below["prompt_tokens"] == leg["prompt_tokens"] == ticket["prompt_tokens"]
    assert [one["replica"] for one in below["legs"]] == ["local"]
