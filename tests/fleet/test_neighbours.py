"""Servers that are not ours, spoken to as each of them wants it: paths, keys, limits, errors, silences."""

from __future__ import annotations

import asyncio
import json
from time import thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, all_served, fleet
from weighbridge.cli.fleet import plain_lines
from weighbridge.fleet.limits.remaining import LONGEST_REST, retry_after, seconds_of, used_up
from weighbridge.wire import answer as writing

CHAT = [{"role": "user", "content": "What does it weigh?"}]


def one_replica(url: str, entry: str) -> str:
    return f"health: {{interval: 0.05}}\nmodels:\n  m:\n    replicas:\n      - {{name: a, url: '{url}', {entry}}}\n"


async def asked_of(backend: Backend, entry: str, **fields: Any) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Path, headers and body of a chat as they reach a replica."""
    async with (
        all_served((backend,)),
        fleet(config=one_replica(backend.url, entry)) as front,
        front.post(messages=CHAT, **fields) as answer,
    ):
        assert answer.status == 200, await answer.text()
    return backend.paths[-1], backend.headers[-1], backend.calls[-1]


# -- paths, keys, fields ---------------------------------------------------------------------------------


async def test_azure_by_deployment_and_version() -> None:
    backend = Backend(pages={"/openai/models": {"data": []}})
    entry = "dialect: azure, model: my-gpt, key: k1, api_version: 2024-10-21"
    path, headers, _ = await asked_of(backend, entry)
    assert path == "/openai/deployments/my-gpt/chat/completions"
    assert headers["api-key"] == "k1"
    assert "authorization" not in headers


async def test_azure_without_a_version_has_openais_paths() -> None:
    backend = Backend(pages={"/openai/v1/models": {"data": []}})
    path, headers, body = await asked_of(backend, "dialect: azure, model: my-gpt, key: k1")
    assert (path, headers["api-key"], body["model"]) == ("/openai/v1/chat/completions", "k1", "my-gpt")


async def test_gemini_has_its_own_paths() -> None:
    gemini = Backend(pages={"/v1beta/openai/models": {"data": [{"id": "models/gemini-x"}]}})
    path, headers, _ = await asked_of(gemini, "dialect: gemini, model: gemini-x, key: k2")
    assert (path, headers["authorization"]) == ("/v1beta/openai/chat/completions", "Bearer k2")


async def test_a_server_that_knows_only_the_older_name_of_max_tokens_gets_that() -> None:
    ollama = Backend(pages={"/v1/models": {"data": [{"id": "m:latest"}]}})
    _, _, body = await asked_of(ollama, "dialect: ollama", max_completion_tokens=7)
    assert body["max_tokens"] == 7
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize(
    ("entry", "given", "sent"),
    [
        ("dialect: openai, model: o3-mini", {"max_tokens": 7}, {"max_completion_tokens": 7}),
        ("dialect: openai, model: openai/gpt-5.1", {"max_tokens": 7}, {"max_completion_tokens": 7}),
        (
            "dialect: openai, model: 'ft:o4-mini-2025-04-16:us::x'",
            {"max_tokens": 7},
            {"max_completion_tokens": 7},
        ),
        (
            "dialect: azure, model: gpt-5-mini",
            {"max_tokens": 9, "max_completion_tokens": 7},
            {"max_completion_tokens": 7},
        ),
        ("dialect: openai, model: gpt-4o", {"max_tokens": 7}, {"max_tokens": 7}),
        ("dialect: openai, model: gpt-50", {"max_tokens": 7}, {"max_tokens": 7}),
        ("dialect: openai, model: olmo-2", {"max_tokens": 7}, {"max_tokens": 7}),
        ("dialect: vllm, model: gpt-5", {"max_tokens": 7}, {"max_tokens": 7}),
    ],
)
async def test_openais_models_that_think_get_the_newer_name_of_max_tokens(
    entry: str, given: dict[str, int], sent: dict[str, int]
) -> None:
    listed = {"data": []}
    backend = Backend(pages={"/v1/models": listed, "/openai/v1/models": listed})
    _, _, body = await asked_of(backend, entry, **given)
    assert {name: value for name, value in body.items() if name.startswith("max_")} == sent


async def test_what_a_cloud_lacks_is_not_sent_there() -> None:
    claude, other = Backend("claude", dialect="anthropic"), Backend("other", dialect="openai")
    async with fleet(claude, other, model="    policy: round_robin") as front:
        for _ in range(4):
            async with front.post(logprobs=True) as answer:
                assert answer.status == 200
    assert (len(claude.calls), len(other.calls)) == (0, 4)


# -- limits ----------------------------------------------------------------------------------------------


async def test_a_replica_that_says_its_limit_is_used_up_is_left_alone_until_then() -> None:
    spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "40s"}
    limited, other = Backend("limited", answer_headers=spent), Backend("other")
    async with fleet(limited, other, model="    policy: round_robin") as front:
        for _ in range(6):
            async with front.post() as answer:
                assert answer.status == 200
                assert "x-ratelimit-remaining-requests" not in answer.headers
        assert (len(limited.calls), len(other.calls)) == (1, 5)
        member = front.gateway.member("limited")[1]
        assert 30.0 < member.held_until - front.gateway.clock() <= 40.0
        assert "limit of requests is used up" in member.held_why


async def test_googles_wish_to_be_left_alone_is_heeded() -> None:
    error = [{"error": {"code": 429, "message": "quota", "details": [{"retryDelay": "34s"}]}}]
    busy, other = Backend("busy", refuses=lambda path, call: (429, error)), Backend("other")
    async with fleet(busy, other, model="    policy: round_robin") as front:
        for _ in range(4):
            async with front.post() as answer:
                assert answer.status == 200
        assert len(busy.calls) == 1
        assert front.gateway.member("busy")[1].held_until - front.gateway.clock() > 25.0


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h2m3.5s", 3600.0),
        ("2m59.56s", 179.56),
        ("17", 17.0),
        ("1800000030", 30.0),
        ("1800000030000", 30.0),
        ("2027-01-15T08:00:05Z", 5.0),
        ("Fri, 15 Jan 2027 08:00:05 GMT", 5.0),
        ("later", None),
        ("", None),
        ("nan", None),
        ("-5", 0.0),
    ],
)
def test_resets_as_providers_write_them(reset: str, seconds: float | None) -> None:
    assert seconds_of(reset, 1_800_000_000.0) == (
        None if seconds is None else pytest.approx(seconds, abs=1e-3)
    )


def test_the_longest_rest_of_several_limits_counts() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    spent = used_up(headers, 0.0)
    assert spent is not None
    assert (spent.kind, spent.rest_s) == ("tokens", 360.0)
    assert used_up({**headers, "x-ratelimit-remaining-tokens": "1"}, 0.0).rest_s == 1.0  # type: ignore[union-attr]
    assert used_up({"x-ratelimit-remaining-requests": "0"}, 0.0) is None


@given(st.text(max_size=40))
def test_any_reset_is_a_bounded_rest(text: str) -> None:
    found = seconds_of(text, 1.8e9)
    assert found is None or 0.0 <= found <= LONGEST_REST


# -- silences --------------------------------------------------------------------------------------------


class Slow(Backend):
    """Sends its headers at once, and the first event after `first_delay`."""

    async def _answer(self, scope: Any, call: dict[str, Any], send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await asyncio.sleep(self.first_delay)
        for text, finish in ((" t0", None), ("", "stop")):
            await self._event(send, self._chunk(True, text, finish))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def test_the_first_event_may_take_as_long_as_the_first_byte() -> None:
    slow = Slow("slow", first_delay=0.5, timeouts="idle: 0.2, first_byte: 20")
    async with fleet(slow) as front:
        assert (await front.stream())[-1] == "[DONE]"
    assert len(slow.calls) == 1


async def test_an_idle_replica_that_is_well_is_asked_whatever_the_retry_budget_says() -> None:
    hangs = Backend("hangs", gate=asyncio.Event(), timeouts="first_byte: 0.2")
    well = Backend("well")
    top = "retry: {budget: 0, burst: 0}"
    async with fleet(hangs, well, model="    policy: round_robin", top=top) as front:
        for _ in range(4):
            assert (await front.stream())[-1] == "[DONE]"
        hangs.let_go()


async def test_a_spent_retry_budget_is_said() -> None:
    failing, busy = Backend("failing", statuses=[502] * 9), Backend("busy", gate=asyncio.Event())
    top = "retry: {budget: 0, burst: 0}"
    async with fleet(failing, busy, model="    policy: round_robin", top=top) as front:
        waiting = [asyncio.create_task(_status(front)) for _ in range(2)]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            assert [task.result() for task in done] == [502]
        finally:
            busy.let_go()
        await asyncio.gather(*waiting)


async def _status(front: Any) -> int:
    async with front.post() as answer:
        await answer.read()
        return int(answer.status)


async def test_who_answers_a_stream_that_was_kept_open_is_said_in_a_comment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing, "KEEP_ALIVE_SECONDS", 0.3)
    slow = Slow("slow", first_delay=0.9)
    async with fleet(slow) as front, front.post(stream=True) as answer:
        text = await answer.text()
        assert "x-weighbridge-replica" not in answer.headers
    assert text.index(": x-weighbridge-replica: slow\n") < text.index("data: {")


# -- the list --------------------------------------------------------------------------------------------


async def test_the_list_in_a_pipe_has_a_line_for_each_replica_with_its_whole_reason() -> None:
    wrong = Backend("wrong", dialect="vllm", page=b"vllm:num_requests_running 0\n")
    wrong.pages = {"/v1/models": {"data": [{"id": "quite-another-model-with-a-long-name"}]}}
    async with fleet(wrong, Backend("right")) as front:
        lines = plain_lines(await front.get("/v1/load"))
    assert [line.split("\t")[1:3] for line in lines] == [["wrong", "misconfigured"], ["right", "up"]]
    assert "serves 'quite-another-model-with-a-long-name' and not 'm', 'other'" in lines[0]
    assert json.dumps(lines[0]).count("\\n") == 0


@pytest.mark.parametrize("unit", ["1", "1.", "1m", "9" * 20 + "h", " 1"])
def test_a_reset_without_end_is_none_at_once(unit: str) -> None:
    """20,000 digits took ten seconds, in which nobody else was served."""
    began = thread_time()
    spent = used_up(
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": unit * (100_000 // len(unit))},
        0.0,
    )
    assert thread_time() - began < 0.5
    assert spent is None


@pytest.mark.parametrize(
    "given",
    ["Mon, 99 Foo 99999 99:99:99 GMT", "1 Jan 1000000000 0:0:0", "0 0 0 0 0", "Mon, " + "1" * 90_000, "nan"],
)
def test_when_to_come_back_is_not_believed_of_a_day_that_is_none(given: str) -> None:
    found = retry_after({"retry-after": given}, 0.0)
    assert found is None or 0.0 <= found <= 3600.0
