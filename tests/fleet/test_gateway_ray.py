"""Replicas as Ray actors, and the policy as a router of Ray Serve. Needs the extra `ray`; `make proof` runs it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.backends import fleet, text_of, until
from tests.tiny import make_tiny
from weighbridge.fleet.replicas.ray import RayReplica

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

pytestmark = [pytest.mark.proof, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("ray") / "tiny")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray with more CPUs than the machine may have: actors only reserve them."""
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        namespace="weighbridge",
        log_to_driver=False,
        ignore_reinit_error=True,
    )
    yield
    ray.shutdown()


CONFIG = """
health: {{interval: 0.2, slow_start: 0}}
models:
  tiny:
    tokenizer: {tiny}
    replicas:
      - ray: {tiny}
        name: actor
        model: tiny
        dialect: weighbridge
        min: {least}
        max: {most}
        keep: false
        cpus: 1
        threads: 1
        options: [--dtype, float32, --kv-cache-memory, 4MiB, --max-sequences, "4"]
        capacity: {{max_sequences: 4}}
        scaling: {{high: 0.02, up_after: 0.2, low: 0.005, down_after: 3, settle: 1}}
"""


def standing(front: Any) -> dict[str, str]:
    pool = front.gateway.pools["tiny"]
    return {name: member.standing(front.gateway.clock()).value for name, member in pool.members.items()}


async def test_actors_serve_and_are_started_again(cluster: None, tiny: Path, monkeypatch: Any) -> None:
    _with_makers(monkeypatch)
    async with fleet(config=CONFIG.format(tiny=tiny, least=2, most=2), wait=False) as front:
        await until(lambda: set(standing(front).values()) == {"up"}, 120)
        assert set(standing(front)) == {"actor-0", "actor-1"}
        first = await front.stream("/v1/completions", model="tiny", temperature=0, max_tokens=6)
        assert text_of(first)
        replica: Any = front.gateway.pools["tiny"].members["actor-0"].replica
        assert isinstance(replica, RayReplica)
        base = replica._http.endpoint.base
        async with front.client.post(base + "/v1/completions", json={"prompt": "x"}) as answer:
            assert answer.status == 401  # the port is open to the network, the replica is not
        os.kill(await replica.pid(), signal.SIGKILL)
        for _ in range(4):  # nobody notices
            again = await front.stream("/v1/completions", model="tiny", temperature=0, max_tokens=6)
            assert text_of(again) == text_of(first)
        await until(lambda: standing(front)["actor-0"] != "up", 20)
        await until(lambda: standing(front)["actor-0"] == "up", 120)
        assert replica._http.endpoint.base != base


async def test_queued_work_brings_another_actor_and_rest_takes_it_away(
    cluster: None, tiny: Path, monkeypatch: Any
) -> None:
    _with_makers(monkeypatch)
    async with fleet(config=CONFIG.format(tiny=tiny, least=1, most=2), wait=False) as front:
        await until(lambda: "up" in standing(front).values(), 120)
        assert len(standing(front)) == 1
        busy = True

        async def worker() -> None:
            while busy:
                await front.stream("/v1/completions", model="tiny", max_tokens=100, ignore_eos=True)

        workers = [asyncio.create_task(worker()) for _ in range(16)]
        await until(lambda: len(standing(front)) == 2, 60)
        await until(lambda: set(standing(front).values()) == {"up"}, 120)
        busy = False
        await asyncio.gather(*workers)
        await until(lambda: len(standing(front)) == 1, 60)
        assert text_of(await front.stream("/v1/completions", model="tiny", max_tokens=4))


def _with_makers(monkeypatch: Any) -> None:
    """The tests' gateway makes Ray replicas as the command line's does."""
    import tests.fleet.backends as backends
    from weighbridge.fleet.replicas.build import build_replica
    from weighbridge.fleet.replicas.ray import make_ray_replica

    monkeypatch.setattr(
        backends, "build_replica", lambda spec: build_replica(spec, {"ray": make_ray_replica})
    )


def test_weigh_routes_for_ray_serve(cluster: None) -> None:
    """A heavy request occupies one replica; light ones go to the other, which request counts would not see."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    @serve.deployment(
        num_replicas=2,
        max_ongoing_requests=100,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=RequestRouterConfig(
            request_router_class="weighbridge.fleet.ray_router:WeighRouter",
            request_router_kwargs={"policy": "least_tokens", "seed": 1},
        ),
    )
    class Model:
        async def __call__(self, request: dict[str, Any]) -> str:
            await asyncio.sleep(request.get("seconds", 0.0))
            return str(serve.get_replica_context().replica_id.unique_id)

    handle = serve.run(Model.bind(), name="weighed", route_prefix=None)
    try:
        assert {handle.remote({"prompt": f"{n}", "max_tokens": 8}).result() for n in range(20)}
        heavy = handle.remote({"prompt": "word " * 4000, "max_tokens": 1000, "seconds": 10.0})
        time.sleep(1.0)
        light = [handle.remote({"prompt": f"short {n}", "max_tokens": 4, "seconds": 0.5}) for n in range(8)]
        places = {one.result() for one in light}
        assert len(places) == 1
        assert heavy.result() not in places
    finally:
        serve.shutdown()
