"""`/v1/embeddings` as clients see it: the official `openai` client, chats that are embedded first, what is wrong."""

from __future__ import annotations

import base64
import json
import socket
import time
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from urllib.parse import urlparse

import httpx
import numpy as np
import openai
import pytest
import torch

from tests.server.running import serving
from tests.server.test_http_api import at_rest

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def expected(oracle: Any, ids: list[int]) -> list[float]:
    with torch.inference_mode():
        state = oracle(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    unit: list[float] = torch.nn.functional.normalize(state, dim=0).tolist()
    return unit


def tokens(server: str, **what: Any) -> list[int]:
    ids: list[int] = httpx.post(f"{server}/tokenize", json=what).json()["tokens"]
    return ids


def test_the_official_client_reads_both_encodings(server: str, client: openai.OpenAI, oracle: Any) -> None:
    """It asks for base64 by itself, and decodes it."""
    texts = ["weigh it", "another text, and longer", "weigh it"]
    decoded = client.embeddings.create(model="tiny", input=texts)
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    for answer in (decoded, plain):
        assert (answer.object, answer.model) == ("list", "tiny")
        assert [one.index for one in answer.data] == [0, 1, 2]
        assert (
            answer.usage.prompt_tokens
            == answer.usage.total_tokens
            == len(tokens(server, prompt="".join(texts)))
        )
        for text, one in zip(texts, answer.data, strict=True):
            assert one.embedding == pytest.approx(expected(oracle, tokens(server, prompt=text)), abs=1e-4)
            assert np.linalg.norm(one.embedding) == pytest.approx(1.0, abs=1e-4)


def test_all_four_kinds_of_input_and_the_bytes_of_base64(server: str, client: openai.OpenAI) -> None:
    ids = tokens(server, prompt="weigh it")
    text, several, flat, nested = (
        client.embeddings.create(model="tiny", input=given, encoding_format="float").data[-1].embedding
        for given in ("weigh it", ["one", "weigh it"], ids, [[1, 2, 3], ids])
    )
    assert several == pytest.approx(text, abs=1e-4)
    assert flat == pytest.approx(text, abs=1e-4)
    assert nested == pytest.approx(text, abs=1e-4)
    raw = httpx.post(server + PATH, json={"input": ids, "encoding_format": "base64", "dimensions": 64}).json()
    assert np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4") == pytest.approx(
        text, abs=1e-6
    )


def test_the_next_token_is_the_one_that_a_completion_would_report(server: str, client: openai.OpenAI) -> None:
    (one,) = httpx.post(server + PATH, json={"input": "weigh it"}).json()["data"]
    options: dict[str, Any] = {"model": "tiny", "prompt": "weigh it", "max_tokens": 1, "temperature": 0}
    logprobs = client.completions.create(logprobs=20, **options).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is not None
    best, second, *_ = sorted(logprobs.top_logprobs[0].values(), reverse=True)
    assert one["next_token"]["top_logprob"] == pytest.approx(best, abs=1e-3)
    assert one["next_token"]["margin"] == pytest.approx(best - second, abs=1e-3)
    assert 0.0 < one["next_token"]["entropy"] < np.log(512)


def test_a_chat_that_was_embedded_is_not_computed_again(
    server: str, client: openai.OpenAI, oracle: Any
) -> None:
    """`messages` is the very prompt of a chat completion: only its last, unfinished block is left to do."""
    messages: list[Any] = [{"role": "user", "content": "What weighs more? " * 16}]
    first = httpx.post(server + PATH, json={"messages": messages, "model": "tiny"}).json()
    prompt = first["usage"]["prompt_tokens"]
    assert first["usage"] == {
        "prompt_tokens": prompt,
        "total_tokens": prompt,
        "prompt_tokens_details": {"cached_tokens": ANY},
    }
    begun = first["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert begun < 32  # the template's beginning may be of another test
    ids = tokens(server, messages=messages)
    assert first["data"][0]["embedding"] == pytest.approx(expected(oracle, ids), abs=1e-4)
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == prompt
    assert chat.usage.prompt_tokens_details is not None
    assert chat.usage.prompt_tokens_details.cached_tokens == prompt - 1 > 100
    again = httpx.post(server + PATH, json={"messages": messages}).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == prompt - 1
    assert again["data"][0]["embedding"] == pytest.approx(first["data"][0]["embedding"], abs=1e-4)
    open_end = httpx.post(server + PATH, json={"messages": messages, "add_generation_prompt": False}).json()
    assert open_end["usage"]["prompt_tokens"] < prompt


def test_the_ticket_and_the_metrics_of_an_embedding(server: str) -> None:
    body = {"input": "weigh it", "weighbridge": {"tenant": "red", "priority": 3}}
    answer = httpx.post(server + PATH, json=body)
    ticket = httpx.get(f"{server}/v1/tickets/{answer.headers['x-weighbridge-ticket']}").json()
    assert (ticket["tenant"], ticket["priority"], ticket["finish_reason"]) == ("red", 3, "stop")
    assert (ticket["output_tokens"], ticket["max_tokens"], ticket["first_token"]) == (0, 0, None)
    assert ticket["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    metrics = httpx.get(f"{server}/metrics").text
    assert 'weighbridge_http_requests_total{route="/v1/embeddings",status="200"}' in metrics


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "input"),
    ({"input": None}, 400, "input"),
    ({"input": ""}, 400, "input: must not be empty"),
    ({"input": []}, 400, "input"),
    ({"input": ["a", ""]}, 400, "input[1]"),
    ({"input": [[5], []]}, 400, "input[1]"),
    ({"input": [1, "a"]}, 400, "input"),
    ({"input": [True]}, 400, "input"),
    ({"input": [512]}, 400, "input: 512 is not a token id"),
    ({"input": [[1], [-1]]}, 400, "input[1]: -1 is not a token id"),
    ({"input": 5}, 400, "input"),
    ({"input": {"text": "a"}}, 400, "input"),
    ({"input": ["a"] * 2049}, 400, "input: has 2049 texts, but one request takes at most 2048"),
    ({"input": [7] * 1025}, 400, "input: has 1025 tokens"),
    ({"input": [[7], [7] * 1025]}, 400, "input[1]: has 1025 tokens"),
    ({"messages": [{"role": "user", "content": "long " * 900}]}, 400, "messages: has"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a"}], "input": "a"}, 400, "input"),
    ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    ({"input": "a", "dimensions": 32}, 400, "dimensions"),
    ({"input": "a", "dimensions": 0}, 400, "dimensions"),
    ({"input": "a", "dimensions": "64"}, 400, "dimensions"),
    ({"input": "a", "model": "other"}, 404, "other"),
    ({"input": "a", "weighbridge": {"deadline_ms": 0.0001}}, 504, "deadline"),
]


@pytest.mark.parametrize(("body", "status", "names"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused_by_name(server: str, body: dict[str, Any], status: int, names: str) -> None:
    answer = httpx.post(server + PATH, json=body, timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error.keys()) == (status, {"message", "type", "param", "code"})
    assert names in error["message"]
    if status == 400:
        assert error["param"] == names.split(":")[0].split("[")[0]


def test_the_client_raises_what_it_raises_for_openai(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]: must not be empty"):
        client.embeddings.create(model="tiny", input=["a", ""])


def test_a_prompt_may_fill_the_whole_context(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="tiny", input=[7] * 1024)
    assert answer.usage.prompt_tokens == 1024


def test_two_thousand_inputs_come_back_in_order(server: str, client: openai.OpenAI) -> None:
    inputs = [[number // 500 + 3, number % 500 + 3, 5] for number in range(2048)]
    answer = client.embeddings.create(model="tiny", input=inputs)
    assert [one.index for one in answer.data] == list(range(2048))
    assert answer.usage.prompt_tokens == 3 * 2048
    for number in (0, 1000, 2047):
        (alone,) = client.embeddings.create(model="tiny", input=inputs[number]).data
        assert answer.data[number].embedding == pytest.approx(alone.embedding, abs=1e-4)
    at_rest(server)


@pytest.mark.parametrize("after", [0.0, 0.02, 0.2])
def test_clients_that_go_away_leave_nothing_behind(server: str, after: float) -> None:
    data = json.dumps({"input": [[number % 500 + 3] * 600 for number in range(100)]}).encode()
    address = urlparse(server)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as raw:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        raw.sendall(head.encode() + data)
        time.sleep(after)
    at_rest(server)
    assert httpx.post(server + PATH, json={"input": "weigh it"}, timeout=30).status_code == 200


def test_an_input_that_the_queue_refuses_takes_the_others_with_it(tiny_model: Path) -> None:
    """All or nothing: no half of a request stays behind in the queue."""
    with serving(tiny_model, "--max-queue", "2", "--max-sequences", "1", "--max-model-len", "128") as (
        url,
        _,
    ):
        answer = httpx.post(url + PATH, json={"input": [[3] * 128] * 50}, timeout=30)
        assert answer.status_code == 400  # it never fits: more than the whole queue
        assert "queue" in answer.json()["error"]["message"]
        at_rest(url)
