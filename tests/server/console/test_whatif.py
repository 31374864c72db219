"""Questions of the console that are worked out beside serving: what another replica would bring, what fits where."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fleet.backends import STEP_COST, Backend, clients, fleet, serving, until
from tests.server.test_roles import CONFIG, KEYS
from weighbridge import aside
from weighbridge.cli.serve.simulated import (
    ServedEngine,
    SimulatedMachine,
    SimulatedServer,
    assemble_simulated,
)
from weighbridge.cost.step import StepCost
from weighbridge.errors import BadInput
from weighbridge.planner.question import PlanAsked
from weighbridge.planner.question import answer as planned
from weighbridge.server.console.aside import Aside
from weighbridge.simulator.whatif import Came, ReplicaNow, WhatIf, answer
from weighbridge.wire.errors import ApiError

COST = asdict(StepCost(**STEP_COST))


def question(count: int, more: int, rate: float = 1.0, requests: int = 60) -> WhatIf:
    """So many replicas, and requests that two a second are more than one of them computes."""
    replica = ReplicaNow(cost=COST, kv_tokens=20_000, usd_per_hour=2.0)
    came = [Came(0.1 * number, 800, 40, 100, f"tenant {number % 3}") for number in range(requests)]
    return WhatIf([replica] * count, came, more=more, rate=rate)


def test_a_replica_more_shortens_the_wait_and_one_fewer_lengthens_it() -> None:
    more, fewer = answer(question(2, 1, 4.0)), answer(question(2, -1, 4.0))
    same = answer(question(2, 0, 4.0))["changed"]
    assert (more["changed"]["replicas"], fewer["changed"]["replicas"]) == (3, 1)
    assert more["as_is"] == fewer["as_is"], "the same run, whatever is changed"
    for name in ("ttft_ms", "e2e_ms"):
        waits = [run[name]["p95"] for run in (more["changed"], same, fewer["changed"])]
        assert waits == sorted(waits)
        assert waits[0] < waits[2]
    assert more["changed"]["requests"] == 60
    assert more["changed"]["failed"] == 0
    assert same["usd"] < more["changed"]["usd"]


def test_what_is_not_changed_comes_to_the_same() -> None:
    told = answer(question(3, 0))
    assert told["as_is"] == told["changed"]


@given(
    st.lists(
        st.builds(
            Came,
            st.floats(0.0, 20.0),
            st.integers(0, 3000),
            st.integers(0, 50),
            st.integers(0, 5000),
            st.sampled_from("ab"),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(-3, 3),
    st.floats(0.05, 20.0),
)
@settings(max_examples=30)
def test_every_question_has_an_answer_with_all_its_requests(came: list[Came], more: int, rate: float) -> None:
    replica = ReplicaNow(cost=COST, kv_tokens=8_192, max_model_len=4_096)
    asked = WhatIf([replica, replica], came, more=more, rate=rate)
    if more < -1:
        with pytest.raises(BadInput, match="1 to 64"):
            answer(asked)
        return
    told = answer(asked)
    assert told["as_is"]["requests"] == told["changed"]["requests"] == len(came)
    json.dumps(told, allow_nan=False)


def test_a_plan_by_name_says_what_fits_and_no_file_is_a_name(tmp_path: Any) -> None:
    told = planned(PlanAsked("qwen3-8b", "H100-80GB"))
    assert told["fits"]
    assert told["speed"][0]["batch"] == 1
    assert told["command"].startswith("vllm serve")
    assert not planned(PlanAsked("llama-3.1-70b", "RTX-4090"))["fits"]
    own = tmp_path / "config.json"
    own.write_text("{}")
    with pytest.raises(BadInput, match="not in the catalogue"):
        planned(PlanAsked(str(own), "H100-80GB"))


def test_a_question_is_read_and_refused_in_its_own_process_too() -> None:
    with pytest.raises(BadInput, match="is no question"):
        aside.answered("steal", b"{}")
    assert aside.answered("catalogue", b"")["engines"]


async def post(front: Any, name: str, body: Any, key: str = "") -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{front.url}/console/api/{name}"
    async with front.client.post(url, data=data, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_the_last_requests_of_a_gateway_run_again_with_one_replica_more() -> None:
    async with fleet(Backend("a"), Backend("b"), top=CONFIG) as front:
        status, told = await post(front, "simulate", {})
        assert (status, told["error"]["code"]) == (409, "too_few_requests")
        for _ in range(8):
            headers = {"authorization": f"Bearer {KEYS['tenant']}"}
            async with front.post(stream=True, headers=headers) as answer:
                await answer.read()
        await front.idle()
        status, told = await post(front, "simulate", {"more": 1, "rate": 2}, KEYS["watcher"])
        assert (status, told["requests"], told["model"]) == (200, 8, "m")
        assert (told["as_is"]["replicas"], told["changed"]["replicas"]) == (2, 3)
        assert told["measured"]["ttft_ms"]["of"] == 8
        for body in (b"{", b'{"more": 99}', b'{"rate": 0}', b'{"path": "/"}', b"[]", b"[" * 8000):
            assert (await post(front, "simulate", body))[0] == 400, body
        assert (await post(front, "simulate", {"model": "none"}))[0] == 404
        assert (await post(front, "simulate", b" " * 9000))[0] == 413
        status, told = await post(front, "plan", {"model": "qwen3-8b", "device": "h100", "tp": 2})
        assert (status, told["error"]["code"]) == (400, "cannot_be_answered")


async def test_a_single_server_can_be_asked_too() -> None:
    running = assemble_simulated(SimulatedMachine(time_scale=0.01), ServedEngine(), SimulatedServer())
    async with serving(running.app, "on") as url, clients() as client:
        for _ in range(6):
            body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
            async with client.post(f"{url}/v1/chat/completions", json=body) as answer:
                await answer.read()
        async with client.post(f"{url}/console/api/simulate", json={"more": 2}) as answer:
            told = await answer.json()
            assert (answer.status, told["changed"]["replicas"]) == (200, 3)
    running.engine.stop()


async def test_what_takes_too_long_is_ended_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient = Aside(patience=0.001)
    with pytest.raises(ApiError, match="so much to do") as caught:
        await impatient.ask("catalogue", b"")
    assert (caught.value.status, caught.value.code) == (503, "machine_busy")
    monkeypatch.setattr("weighbridge.server.console.aside.MOST_WAITING", 1)
    busy = Aside()
    many = await asyncio.gather(*(busy.ask("none", b"") for _ in range(3)), return_exceptions=True)
    assert [getattr(one, "code", one) for one in many] == ["cannot_be_answered", "busy", "busy"]


async def test_a_process_that_used_its_time_says_so_however_long_the_clock_would_wait(tmp_path: Any) -> None:
    spinning = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{spinning}'\n")
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", str(program))
        with pytest.raises(ApiError, match="takes more time") as caught:
            await Aside().ask("plan", b"")
    assert (caught.value.status, caught.value.code) == (503, "too_much")


async def test_the_process_of_a_client_that_went_away_ends_and_the_next_has_its_turn(tmp_path: Any) -> None:
    program, here = tmp_path / "python", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {here}.new; mv {here}.new {here}; exec sleep 600\n")
    program.chmod(0o755)
    aside, left = Aside(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", str(program))
        asked = asyncio.create_task(aside.ask_for(receive, "plan", b""))
        await until(here.exists)
        left.set()
        with pytest.raises(ApiError, match="nobody waits"):
            await asked
    with pytest.raises(ProcessLookupError):
        os.kill(int(here.read_text()), 0)
    assert (await aside.ask("catalogue", b""))["engines"]
