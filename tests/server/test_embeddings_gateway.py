"""Embeddings through a gateway: an engine inside it, a process that it started, and a server elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.server.running import free_port, running, serving

PATH = "/v1/embeddings"
KINDS = ("inside", "beside", "elsewhere")


@pytest.fixture(scope="module")
def gateway(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a gateway with one model over each kind of replica, and one over all of them."""
    config = tmp_path_factory.mktemp("gateway") / "weighbridge.yaml"
    with serving(tiny_model) as (elsewhere, _):
        replicas = {
            "inside": f"engine: {tiny_model}",
            "beside": f"process: {tiny_model}, options: [--dtype, float32]",
            "elsewhere": f"url: {elsewhere}, dialect: weighbridge",
        }
        lines = ["models:"]
        for kind, how in replicas.items():
            lines += [f"  {kind}:", f"    tokenizer: {tiny_model}", "    replicas:"]
            lines.append(f"      - {{{how}, name: {kind}, model: tiny}}")
        config.write_text("\n".join(lines) + "\n")
        port = free_port()
        command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(config), "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        with running(command, 20) as process:
            until = time.monotonic() + 120
            while not ready(url):
                assert process.poll() is None, f"the gateway ended with code {process.returncode}"
                assert time.monotonic() < until, "the gateway did not start in time"
                time.sleep(0.1)
            yield url


def ready(url: str) -> bool:
    try:
        models = httpx.get(f"{url}/v1/load", timeout=5).json()["models"].values()
    except (httpx.HTTPError, KeyError):
        return False
    return all(one["standing"] == "up" for model in models for one in model["replicas"])


@pytest.fixture(scope="module")
def expected(server: str) -> list[float]:
    embedding: list[float] = httpx.post(server + PATH, json={"input": "weigh it"}).json()["data"][0][
        "embedding"
    ]
    return embedding


@pytest.mark.parametrize("kind", KINDS)
def test_the_official_client_embeds_through_a_gateway(gateway: str, kind: str, expected: list[float]) -> None:
    """An engine inside computes as it likes best on this machine (bfloat16), so it is close, not equal."""
    client = openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0, timeout=60)
    closeness = 0.95 if kind == "inside" else 0.999999
    for encoding in ({}, {"encoding_format": "float"}):
        answer: Any = client.embeddings.create(model=kind, input=["weigh it", "and this"], **encoding)
        assert [one.index for one in answer.data] == [0, 1]
        assert np.dot(answer.data[0].embedding, expected) > closeness
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
        assert answer.data[0].next_token["entropy"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_is_weighed_embedded_and_then_answered_from_the_cache(gateway: str, kind: str) -> None:
    messages = [{"role": "user", "content": f"What weighs more, {kind}? " * 16}]
    answer = httpx.post(gateway + PATH, json={"model": kind, "messages": messages}, timeout=60)
    used = answer.json()["usage"]["prompt_tokens"]
    ticket = httpx.get(f"{gateway}/v1/tickets/{answer.headers['x-weighbridge-ticket']}").json()
    assert (ticket["replica"], ticket["prompt_tokens"], ticket["output_tokens"]) == (kind, used, 0)
    assert ticket["predicted_output_tokens"] == 0
    assert ticket["weighed_tokens"] == used
    body = {"model": kind, "messages": messages, "max_tokens": 2}
    chat = httpx.post(f"{gateway}/v1/chat/completions", json=body, timeout=60).json()
    assert chat["usage"]["prompt_tokens"] == used
    assert chat["usage"]["prompt_tokens_details"]["cached_tokens"] == used - 1 > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_replicas_refusal_reaches_the_client(gateway: str, kind: str) -> None:
    wrong = httpx.post(gateway + PATH, json={"model": kind, "input": "a", "dimensions": 3}, timeout=30)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "dimensions"


def test_a_simulated_replica_says_that_it_has_nothing_to_embed(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", "replica", "--simulated", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, 15) as process:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None
            assert time.monotonic() < until
            try:
                answer = httpx.post(url + PATH, json={"input": "a"}, timeout=5)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
    assert answer.status_code == 400
    assert "simulated" in answer.json()["error"]["message"]
