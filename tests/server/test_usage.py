"""`GET /v1/usage` of a single server: tokens by tenant and day, kept in memory."""

from __future__ import annotations

from typing import Any

import httpx


def test_a_server_counts_what_its_tenants_use(server: str) -> None:
    before = told(server)
    answers = []
    for stream in (False, False, True):
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 4,
            "weighbridge": {"tenant": "meter"},
        }
        body |= {"stream": True} if stream else {}
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200
        answers.append(answer)
    prompt = answers[0].json()["usage"]["prompt_tokens"]
    after = told(server)
    assert "meter" not in before
    [row] = [row for row in after.values() if row["tenant"] == "meter"]
    assert (row["model"], row["requests"], row["prompt_tokens"]) == ("tiny", 3, 3 * prompt)
    assert 3 <= row["output_tokens"] <= 12
    assert (row["nano_usd"], row["cost_usd"]) == (0, 0.0)
    assert "x-ratelimit-limit-requests" not in answers[0].headers


def told(server: str) -> dict[str, Any]:
    rows = httpx.get(f"{server}/v1/usage").json()["data"]
    return {row["tenant"]: row for row in rows}
