"""A Ray cluster of three nodes on this machine: replicas placed, adopted, moved, scaled. `make proof` runs it.

The engines are simulated ones, started by a command as any other engine is; they have the real scheduler and cache.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.engines.test_commands import gone
from tests.server.running import free_port

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]

SPACE = "weighbridge-test"
LINE = (
    "{python} -m weighbridge replica --simulated --host {host} --port {port} --api-key {key} "
    "--served-model-name {name} --max-sequences 8 --max-batch-tokens 512"
)
CONFIG = """
listen: 127.0.0.1:{port}
health: {{interval: 0.2, slow_start: 0, failures: 2}}
admin_key: operator
models:
  m:
    replicas:
{entries}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes: the head holds nothing of ours, two have seats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's workers step aside for everybody else's programs
        yield from _cluster()


def _cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    made.seats = [
        made.add_node(num_cpus=4, resources={"seat": 2, f"zone{n}": 1}, object_store_memory=80 << 20)
        for n in (1, 2)
    ]
    made.wait_for_nodes()
    ray.init(address=made.address, namespace=SPACE, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def entry(address: str, name: str, more: str = "", line: str = LINE) -> str:
    told = (
        f"name: {name}, ray: any, address: '{address}', namespace: {SPACE}, cpus: 0.5, dialect: weighbridge"
    )
    return f"      - {{{told}, command: '{line}'{', ' + more if more else ''}}}\n"


def ask(url: str, path: str, body: Any = None, timeout: float = 60.0, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Authorization": "Bearer operator"}, method=method)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def replicas(url: str) -> dict[str, dict[str, Any]]:
    with suppress(OSError):
        load = ask(url, "/v1/load")
        return {one["name"]: one for model in load["models"].values() for one in model["replicas"]}
    return {}


def until(condition: Any, seconds: float, what: str, log: Path | None = None) -> float:
    """Wait for a condition; return the seconds that it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if condition():
            return time.monotonic() - began
        time.sleep(0.05)
    told = "" if log is None else log.read_text()[-2000:]
    raise AssertionError(f"not within {seconds} s: {what} {told}")


@contextmanager
def gateway(folder: Path, entries: str, up: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    file = folder / f"fleet-{port}.yaml"
    file.write_text(CONFIG.format(port=port, entries=entries))
    command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(file)]
    with (folder / f"log-{port}").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        log = folder / f"log-{port}"
        took = until(lambda: stands(url, "up") >= up, 240, f"{up} replicas up", log)
        print(f"\n{up} replicas up after {took:.1f} s")
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


def stands(url: str, standing: str) -> int:
    return sum(one["standing"] == standing for one in replicas(url).values())


def actors() -> dict[str, dict[str, Any]]:
    """What the actors of this fleet say of themselves."""
    found = {}
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["namespace"] == SPACE:
            actor = ray.get_actor(one["name"], namespace=SPACE)
            with suppress(Exception):
                found[one["name"]] = ray.get(actor.told.remote(), timeout=10)
    return found


def complete(url: str, prompt: str, tokens: int = 4) -> dict[str, Any]:
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens}
    found: dict[str, Any] = ask(url, "/v1/completions", body)
    return found


def remove_all(url: str) -> None:
    for name in replicas(url):
        ask(url, f"/admin/replicas/{name}", method="DELETE")
    assert not actors()


def end_all() -> None:
    """End what gateways have left: an entry that scales would start again what is removed below its least."""
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["namespace"] == SPACE:
            actor = ray.get_actor(one["name"], namespace=SPACE)
            ray.get(actor.stop.remote(5.0), timeout=30)
            ray.kill(actor, no_restart=True)


def test_replicas_are_placed_by_resources_and_outlive_a_gateway_that_is_killed(
    cluster: Any, tmp_path: Path
) -> None:
    entries = "".join(entry(cluster.address, f"zone-{n}", f"resources: {{zone{n}: 1}}") for n in (1, 2))
    prompt = "all of these words are in the cache " * 40
    with gateway(tmp_path, entries, up=2) as (url, process):
        told = actors()
        nodes = [told[f"m/zone-{n}"]["node"] for n in (1, 2)]
        assert nodes == [node.node_id for node in cluster.seats]
        complete(url, prompt)
        warm = complete(url, prompt)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert warm > 100
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        began = time.monotonic()
        with gateway(tmp_path, entries, up=2) as (again, _):
            print(f"adopted by the next gateway {time.monotonic() - began:.1f} s after the kill")
            assert {name: one["pid"] for name, one in actors().items()} == {
                name: one["pid"] for name, one in told.items()
            }
            found = [
                complete(again, prompt)["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)
            ]
            assert max(found) == warm
            remove_all(again)
    assert all(gone(one["pid"]) for one in told.values())


def test_a_raylet_that_is_killed_ends_its_engine_and_the_replica_comes_back_elsewhere(
    cluster: Any, tmp_path: Path
) -> None:
    lost = cluster.add_node(num_cpus=4, resources={"moving": 1}, object_store_memory=80 << 20)
    with gateway(tmp_path, entry(cluster.address, "mover", "resources: {moving: 1}"), up=1) as (url, _):
        before = actors()["m/mover"]
        assert before["node"] == lost.node_id
        other = cluster.add_node(num_cpus=4, resources={"moving": 1}, object_store_memory=80 << 20)
        [raylet] = lost.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        assert gone(before["pid"], 15), "the engine outlived its raylet"
        took = until(lambda: replicas(url)["mover"]["standing"] != "up", 30, "down")
        took += until(lambda: replicas(url)["mover"]["standing"] == "up", 120, "up elsewhere")
        print(f"\nup on another node {took:.1f} s after its raylet was killed")
        after = actors()["m/mover"]
        assert after["node"] == other.node_id
        assert complete(url, "once more")["choices"]
        remove_all(url)
        with suppress(Exception):
            cluster.remove_node(lost)
        cluster.remove_node(other)


def test_what_no_node_has_is_said_at_once(cluster: Any, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(CONFIG.format(port=free_port(), entries=entry(cluster.address, "huge", "gpus: 8")))
    command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no node has GPU 8: the most that one has is 0" in done.stderr.replace("\n", " ")
    waits = entry(cluster.address, "huge", "gpus: 8, waits_for_nodes: true")
    with gateway(tmp_path, waits, up=0) as (url, _):
        until(lambda: "no node has GPU 8" in replicas(url).get("huge", {}).get("why", ""), 30, "said")
        remove_all(url)


def test_an_engine_that_cannot_start_says_why(cluster: Any, tmp_path: Path) -> None:
    line = "{python} -c \"import sys; sys.exit('the weights are not there')\" {port}"
    with gateway(tmp_path, entry(cluster.address, "broken", line=line.replace("'", "''")), up=0) as (url, _):
        until(
            lambda: "the weights are not there" in replicas(url).get("broken", {}).get("why", ""), 30, "said"
        )
        remove_all(url)


def test_slow_tokens_bring_another_replica_and_rest_takes_it_away(cluster: Any, tmp_path: Path) -> None:
    more = "resources: {seat: 1}, min: 1, max: 3, scaling: {itl: 0.03, up_after: 1, down_after: 3, settle: 2}"
    slow = LINE + " --time-scale 4"
    with gateway(tmp_path, entry(cluster.address, "scaled", more, slow), up=1) as (url, process):
        body = {"model": "m", "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
        clients = [
            subprocess.Popen(
                ["curl", "-sN", "-o", "/dev/null", "-d", json.dumps(body), f"{url}/v1/completions"]
            )
            for _ in range(6)
        ]
        took = until(lambda: stands(url, "up") >= 2, 90, "a second replica")
        print(f"\na second replica up {took:.1f} s after slow streams began, with nothing in line")
        started = set(actors())
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        for one in clients:
            one.wait(10)
        with gateway(tmp_path, entry(cluster.address, "scaled", more, slow), up=2) as (again, _):
            assert set(actors()) == started  # the one that was added as well
            took = until(lambda: len(replicas(again)) == 1 and len(actors()) == 1, 90, "one again")
            print(f"one again {took:.1f} s after there was nothing to do")
    end_all()


def test_bundles_are_reserved_together_and_given_back(cluster: Any, tmp_path: Path) -> None:
    bundles = "bundles: [{CPU: 1, seat: 1}, {CPU: 1, seat: 1}], strategy: STRICT_SPREAD"
    text = entry(cluster.address, "pair", bundles).replace("cpus: 0.5, ", "")
    with gateway(tmp_path, text, up=1) as (url, _):
        assert ray.available_resources().get("seat", 0.0) == pytest.approx(2.0)
        remove_all(url)
        until(lambda: ray.available_resources().get("seat", 0.0) == pytest.approx(4.0), 30, "given back")
