"""`weighbridge replica --simulated`: a real process, real HTTP, faults on demand."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.server.running import free_port, running, wait_until_ready
from weighbridge.cost import StepCost

COST = StepCost(overhead=0.002, memory=0.006, per_token=2e-5, per_context_token=1e-8, per_sequence=1e-5)


@contextmanager
def simulated(directory: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    cost = directory / "cost.json"
    cost.write_text(json.dumps({"step_cost": COST.as_dict()}))
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", "replica", "--simulated", "--step-cost", str(cost)]
    url = f"http://127.0.0.1:{port}"
    with running([*command, "--port", str(port), *options], 10) as process:
        wait_until_ready(url, process)
        yield url, process


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with simulated(tmp_path_factory.mktemp("replica"), "--output-length", "lognormal:20:0.5") as (url, _):
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(timeout=timeout) as opened:
        yield opened


async def post(session: aiohttp.ClientSession, url: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with session.post(url, json=body) as answer:
        return answer.status, await answer.json()


async def until_running(session: aiohttp.ClientSession, url: str, number: int) -> dict[str, Any]:
    """The load, once that many requests run."""
    for _ in range(600):
        async with session.get(f"{url}/v1/load") as answer:
            load: dict[str, Any] = await answer.json()
        if load["running_requests"] == number:
            return load
        await asyncio.sleep(0.02)
    raise AssertionError(f"never were {number} requests running")


async def test_it_answers_as_asked_and_repeats_itself(replica: str, session: aiohttp.ClientSession) -> None:
    ask = {"prompt": "a prompt of some length", "max_tokens": 12, "ignore_eos": True}
    status, first = await post(session, f"{replica}/v1/completions", **ask)
    assert status == 200
    assert first["usage"] == {**first["usage"], "prompt_tokens": 8, "completion_tokens": 12}
    _, second = await post(session, f"{replica}/v1/completions", **ask)
    assert second["choices"][0]["text"] == first["choices"][0]["text"]


async def test_answers_end_by_themselves(replica: str, session: aiohttp.ClientSession) -> None:
    url = f"{replica}/v1/chat/completions"
    bodies = [
        {"messages": [{"role": "user", "content": f"question {n}"}], "max_tokens": 400} for n in range(24)
    ]
    answers = await asyncio.gather(*(post(session, url, **body) for body in bodies))
    lengths = [answer["usage"]["completion_tokens"] for _, answer in answers]
    assert {answer["choices"][0]["finish_reason"] for _, answer in answers} == {"stop"}
    assert len(set(lengths)) > 5
    assert 10 <= sorted(lengths)[12] <= 40  # the median asked for is 20


async def test_streams_take_the_time_of_their_iterations(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    with simulated(tmp_path, "--time-scale", "3") as (url, _):
        began = time.monotonic()
        body = {"prompt": list(range(1000, 1300)), "max_tokens": 30, "stream": True, "ignore_eos": True}
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            chunks = [line async for line in answer.content if line.startswith(b"data: {")]
        seconds = time.monotonic() - began
    steps = 3 * (COST.seconds(300, 1, 45_150) + sum(COST.seconds(1, 1, 301 + i) for i in range(29)))
    assert len(chunks) == 30
    assert steps <= seconds < steps * 10 + 20  # a busy machine takes longer, never less


async def test_load_counts_what_runs(replica: str, session: aiohttp.ClientSession) -> None:
    body = {"prompt": [5] * 640, "max_tokens": 400, "ignore_eos": True}
    running = asyncio.gather(*(post(session, f"{replica}/v1/completions", **body) for _ in range(3)))
    load = await until_running(session, replica, 3)
    assert load["kv_blocks_used"] > 20
    await running
    async with session.get(f"{replica}/v1/load") as answer:
        load = await answer.json()
    assert (load["running_requests"], load["kv_blocks_used"], load["running_tokens"]) == (0, 0, 0)


async def set_faults(session: aiohttp.ClientSession, url: str, **values: float) -> None:
    calm = dict.fromkeys(("error_rate", "slow_rate", "stall_rate", "disconnect_rate", "endless_rate"), 0.0)
    status, answer = await post(session, f"{url}/faults", **{**calm, "load_factor": 1.0, **values})
    assert status == 200, answer


async def test_faults_on_demand(replica: str, session: aiohttp.ClientSession) -> None:
    url = f"{replica}/v1/completions"
    ask: dict[str, Any] = {"prompt": "hello there", "max_tokens": 40, "stream": True, "ignore_eos": True}
    await set_faults(session, replica, error_rate=1.0, error_status=500, retry_after=3)
    async with session.post(url, json=ask) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (500, "3")
    await set_faults(session, replica, disconnect_rate=1.0)
    with pytest.raises(aiohttp.ClientError):
        async with session.post(url, json=ask) as answer:
            await answer.read()
    await set_faults(session, replica, stall_rate=1.0, stall_seconds=0.8)
    began = time.monotonic()
    async with session.post(url, json=ask) as answer:
        assert b"[DONE]" in await answer.read()
    assert time.monotonic() - began > 0.8
    await set_faults(session, replica, slow_rate=1.0, slow_seconds=0.6)
    began = time.monotonic()
    async with session.post(url, json=ask) as answer:
        assert time.monotonic() - began > 0.6
    await set_faults(session, replica, endless_rate=1.0)
    with pytest.raises(TimeoutError):
        async with session.post(url, json=ask, timeout=aiohttp.ClientTimeout(total=1.5)) as answer:
            await answer.read()
    await set_faults(session, replica)
    await until_running(session, replica, 0)


async def test_faults_are_checked(replica: str, session: aiohttp.ClientSession) -> None:
    for wrong in (
        {"error_rate": 2},
        {"no_such": 1},
        {"error_rate": 0.6, "slow_rate": 0.6},
        {"slow_rate": "x"},
    ):
        status, answer = await post(session, f"{replica}/faults", **wrong)
        assert status == 400
        assert answer["error"]["message"]


async def test_a_freeze_holds_every_stream(replica: str, session: aiohttp.ClientSession) -> None:
    await set_faults(session, replica, freeze_seconds=0.7)
    began = time.monotonic()
    await post(session, f"{replica}/v1/completions", prompt="hi", max_tokens=2, ignore_eos=True)
    assert time.monotonic() - began > 0.6


async def test_sigterm_drains(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    with simulated(tmp_path) as (url, process):
        body = {"prompt": [7] * 50, "max_tokens": 300, "ignore_eos": True}
        running = asyncio.create_task(post(session, f"{url}/v1/completions", **body))
        await until_running(session, url, 1)
        process.send_signal(signal.SIGTERM)
        status, answer = await running
        assert (status, answer["usage"]["completion_tokens"]) == (200, 300)
        assert await asyncio.to_thread(process.wait, 60) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--simulated"),
        (["--simulated", "--step-cost", "nowhere.json"], "nowhere.json cannot be read"),
        (["--simulated", "--output-length", "-3"], "is not a length"),
        (["--simulated", "--faults", "error_rate=7"], "share is from 0 to 1"),
        (["--simulated", "--batching", "magic"], "use continuous or static"),
    ],
)
def test_bad_input_is_one_line(options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "weighbridge", "replica", "--port", "0", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
