"""Second copies of slow requests, and streams that go on at another replica."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.fleet.backends import Backend, events, fleet, text_of, until
from tests.server.running import free_port, wait_until_ready
from weighbridge.models.text.tokenizer import load_tokenizer

HEDGE = "    hedge: {enabled: true, extra_work: 1.0, minimum_samples: 5, minimum_delay: 2, quantile: 0.9}\n"


async def test_a_slow_first_token_gets_a_second_copy_and_the_loser_stops() -> None:
    slow, quick = Backend("slow"), Backend("quick")
    async with fleet(slow, quick, model=HEDGE + "    policy: round_robin") as front:
        for _ in range(8):  # learn what is usual
            await front.stream()
        slow.first_delay = 3600.0
        async with asyncio.timeout(60):
            for _ in range(2):
                assert text_of(await front.stream()) == " t0 t1 t2 t3 t4"
        await until(lambda: not slow.running and front.gateway.pools["m"].lost_copies["stopped"])
        ticket = next(one for one in (await front.get("/v1/tickets"))["data"] if one["hedged"])
        counts = front.gateway.pools["m"].members["quick"].counts
    assert slow.cancelled == counts.hedges >= 1
    assert ticket["replica"] == "quick"
    assert any("second copy went to quick" in line for line in ticket["decisions"])


async def test_hedges_stay_within_their_budget() -> None:
    slow, quick = Backend("slow"), Backend("quick")
    model = HEDGE.replace("extra_work: 1.0", "extra_work: 0.1") + "    policy: round_robin"
    model = model.replace("minimum_delay: 2", "minimum_delay: 0.05")
    async with fleet(slow, quick, model=model) as front:
        for _ in range(10):
            await front.stream()
        slow.first_delay = 3.0
        await asyncio.gather(*(front.stream() for _ in range(20)))
        hedges = sum(member.counts.hedges for member in front.gateway.pools["m"].members.values())
    assert 1 <= hedges <= 3  # a tenth of 30


async def test_no_hedge_without_another_replica() -> None:
    only = Backend("only")
    async with fleet(only, model=HEDGE.replace("minimum_delay: 2", "minimum_delay: 0.05")) as front:
        for _ in range(6):
            await front.stream()
        only.first_delay = 0.4
        await front.stream()
    assert len(only.calls) == 7


async def test_a_copy_that_fails_leaves_the_race_to_the_other() -> None:
    slow, broken = Backend("slow"), Backend("broken")
    quick_to_hedge = HEDGE.replace("minimum_delay: 2", "minimum_delay: 0.05")
    async with fleet(slow, broken, model=quick_to_hedge + "    policy: round_robin") as front:
        for _ in range(8):
            await front.stream()
        slow.first_delay, broken.statuses = 0.4, [500] * 9
        assert text_of(await front.stream()) == " t0 t1 t2 t3 t4"


async def test_a_completion_goes_on_at_another_replica() -> None:
    dying, heir = Backend("dying", tokens=5, break_after=2), Backend("heir", tokens=3)
    async with fleet(dying, heir, model="    resume: true\n    policy: round_robin") as front:
        stream = await front.stream("/v1/completions", prompt="It weighs", max_tokens=10)
        [ticket] = (await front.get("/v1/tickets"))["data"]
    assert text_of(stream) == " t0 t1" + " t0 t1 t2"
    assert stream[-1] == "[DONE]"
    assert heir.calls[0]["prompt"] == "It weighs t0 t1"
    assert heir.calls[0]["max_tokens"] == 8
    assert {one["id"] for one in stream if one != "[DONE]"} == {"from-dying"}
    assert (ticket["resumed"], ticket["replica"], ticket["finish_reason"]) == (1, "heir", "stop")


async def test_a_chat_goes_on_with_the_models_tokenizer(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    dying, heir = Backend("dying", tokens=5, break_after=2), Backend("heir", tokens=3)
    model = "    resume: true\n    policy: round_robin"
    async with fleet(dying, heir, model=model, tokenizers={"m": tokenizer}) as front:
        stream = await front.stream(stream_options={"include_usage": True}, max_tokens=20)
    chat = [{"role": "user", "content": "What does it weigh?"}]
    assert heir.paths == ["/v1/completions"]
    assert heir.calls[0]["prompt"] == tokenizer.encode(tokenizer.render_chat(chat) + " t0 t1", False)
    assert "messages" not in heir.calls[0]
    sent = len(tokenizer.encode(" t0 t1", False))
    assert heir.calls[0]["max_tokens"] == 20 - sent
    assert text_of(stream) == " t0 t1 t0 t1 t2"
    assert all(one["object"] == "chat.completion.chunk" for one in stream if one != "[DONE]")
    assert stream[-2]["usage"]["completion_tokens"] == sent + 3
    assert stream[-2]["usage"]["prompt_tokens"] == 11 - sent


async def test_what_cannot_be_continued_says_why() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    for fields, why in (({}, "tokenizer"), ({"tools": tools}, "tools"), ({"n": 2}, "n > 1")):
        dying, heir = Backend("dying", break_after=2), Backend("heir")
        async with fleet(dying, heir, model="    resume: true\n    policy: round_robin") as front:
            stream = await front.stream(**fields)
        assert why in stream[-1]["error"]["message"]
        assert not heir.calls


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tokenizer

    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path)
    return path


@contextmanager
def simulated(port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "weighbridge", "replica", "--simulated", "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(5)


CONFIG = """
health: {{interval: 0.1, slow_start: 0}}
models:
  m:
    policy: round_robin
    resume: {resume}
    replicas:
      - {{url: "http://127.0.0.1:{a}", name: a, dialect: weighbridge, model: simulated}}
      - {{url: "http://127.0.0.1:{b}", name: b, dialect: weighbridge, model: simulated}}
"""


@pytest.mark.parametrize("resume", ["true", "false"])
async def test_a_replica_killed_in_mid_stream(resume: str) -> None:
    """kill -9: streams that had begun end with an error event, or go on; requests without a byte go elsewhere."""
    a, b = free_port(), free_port()
    slow = ("--time-scale", "2", "--max-sequences", "4")
    with simulated(a, *slow) as victim, simulated(b, *slow) as heir:
        for port, process in ((a, victim), (b, heir)):
            await asyncio.to_thread(wait_until_ready, f"http://127.0.0.1:{port}", process)
        async with fleet(config=CONFIG.format(a=a, b=b, resume=resume)) as front:
            jobs = [asyncio.create_task(_completion(front.url)) for _ in range(16)]
            dying = front.gateway.pools["m"].members["a"].state
            await until(lambda: dying.decoding >= 2 and dying.requests > dying.decoding)
            victim.send_signal(signal.SIGKILL)
            async with asyncio.timeout(120):
                streams = await asyncio.gather(*jobs)
            await front.idle()
            tickets = (await front.get("/v1/tickets"))["data"]
    whole = [one for one in streams if one[-1] == "[DONE]"]
    broken = [one for one in streams if one[-1] != "[DONE]"]
    if resume == "true":
        assert len(whole) == 16
        assert sum(one["resumed"] for one in tickets) >= 2
    else:
        assert 1 <= len(broken) <= 8
        assert all(one[-1]["error"]["code"] == "replica_lost" and text_of(one) for one in broken)
        assert all(one["resumed"] == 0 for one in tickets)
    assert any(one["attempts"] > 1 and one["finish_reason"] == "length" for one in tickets)
    assert all(text_of(one).strip() for one in whole)


async def _completion(url: str) -> list[object]:
    body = {"model": "m", "prompt": "weigh this", "max_tokens": 40, "stream": True}
    async with aiohttp.ClientSession() as client, client.post(url + "/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return events(await answer.read())
