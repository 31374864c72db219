"""`/v1/embeddings` of an encoder: a server of its own, and a gateway with it inside and elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests.server.running import free_port, running, serving
from tests.server.test_embeddings_gateway import ready
from tests.tiny import TEXT
from tests.tiny_encoder import make_tiny_encoder
from weighbridge.models.readers.bert import BertReader
from weighbridge.models.readers.form import Pooling, VectorForm
from weighbridge.models.text.tokenizer import load_tokenizer

DOORS = ("server", "inside", "elsewhere")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("served") / "encoder")


@pytest.fixture(scope="module")
def urls(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URLs of a server, and of a gateway with a model in it and one at that server."""
    config = tmp_path_factory.mktemp("gateway") / "weighbridge.yaml"
    with serving(encoder, "--max-batch-tokens", "16") as (elsewhere, _):
        config.write_text(
            "models:\n"
            f"  inside:\n    replicas: [{{engine: {encoder}, name: inside, model: tiny}}]\n"
            f"  elsewhere:\n    replicas: [{{url: {elsewhere}, dialect: weighbridge, name: elsewhere, model: tiny}}]\n"
        )
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "weighbridge", "serve", "--config", str(config), "--port", str(port)]
        with running(command, 20) as process:
            until = time.monotonic() + 120
            while not ready(url):
                assert process.poll() is None, f"the gateway ended with code {process.returncode}"
                assert time.monotonic() < until, "the gateway did not start in time"
                time.sleep(0.1)
            yield elsewhere, url


def place(urls: tuple[str, str], door: str) -> tuple[str, str]:
    return (urls[0], "tiny") if door == "server" else (urls[1], door)


@pytest.mark.parametrize("door", DOORS)
def test_the_official_client_gets_the_encoder_s_vectors(
    urls: tuple[str, str], encoder: Path, door: str
) -> None:
    url, model = place(urls, door)
    texts = [*TEXT[:3], "a"]  # longer than a step, and not: a prompt in pieces is read as a whole
    tokenizer = load_tokenizer(encoder)
    ids = [tokenizer.encode(text)[:60] for text in texts]
    expected = BertReader(encoder, VectorForm(Pooling.MEAN, True))(ids)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    for _ in range(2):  # nothing is kept from the first time
        answer = client.embeddings.create(model=model, input=ids)
        np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-5)
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    [one] = client.embeddings.create(model=model, input=texts[3]).data
    np.testing.assert_allclose(one.embedding, expected[3], atol=1e-5)
    whole = httpx.post(f"{url}/v1/embeddings", json={"model": model, "input": "a"}, timeout=60).json()
    assert list(whole["data"][0]) == ["object", "index", "embedding"]
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ("/v1/completions", {"prompt": "hello"}),
    ],
)
def test_what_would_be_written_is_refused_in_words(
    urls: tuple[str, str], door: str, path: str, body: object
) -> None:
    url, model = place(urls, door)
    assert isinstance(body, dict)
    answer = httpx.post(url + path, json={"model": model, **body}, timeout=60)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "/v1/embeddings" in message or "no replica" in message


def test_a_text_beyond_the_positions_is_refused_and_the_rest_of_the_door_answers(
    urls: tuple[str, str],
) -> None:
    url = urls[0]
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": "fox " * 70}, timeout=60)
    assert answer.status_code == 400
    assert "64" in answer.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["max_model_len"] == 64
    told = httpx.post(f"{url}/tokenize", json={"prompt": "the lazy dog"}, timeout=60).json()
    assert told["count"] > 3
    load = httpx.get(f"{url}/v1/load", timeout=60).json()
    assert load["abilities"]["chat"] is False
    assert load["kv_blocks_used"] == 0
