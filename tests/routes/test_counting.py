"""Counting a prompt of a route: where nothing but a cloud could count it, it is not counted."""

from __future__ import annotations

import pytest

from tests.fleet.backends import Backend, fleet, serving

SECRET = "mara.lindqvist@example.org"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": SECRET}]}),
        ("/v1/responses/input_tokens", {"input": SECRET}),
        ("/tokenize", {"messages": [{"role": "user", "content": SECRET}]}),
        ("/tokenize", {"prompt": SECRET}),
    ],
)
async def test_a_prompt_that_may_leave_redacted_alone_is_not_sent_to_be_counted(
    path: str, fields: dict[str, object]
) -> None:
    cloud = Backend("cloud")
    async with serving(cloud) as url:
        place = f"{{name: far, level: cloud, url: '{url}', model: big, dialect: weighbridge}}"
        config = f"routes: {{away: {{places: [{place}], residency: redact_then_cloud}}}}\n"
        asked = {"model": "away", **fields}
        async with fleet(config=config) as front, front.client.post(front.url + path, json=asked) as answer:
            assert answer.status == 400
            assert "not sent beyond the edge" in await answer.text()
    assert cloud.calls == []
