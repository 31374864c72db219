"""Prompts that are told again with how likely each token was: transformers' numbers, whole and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

TEXT = "The quick brown fox, 日本 and \U0001f680 jump: naïve"


@pytest.fixture(scope="module")
def oracle(tiny_model: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def complete(server: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server}/v1/completions", json={"temperature": 0, **body}, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def streamed(server: str, **body: Any) -> list[dict[str, Any]]:
    answer = httpx.post(
        f"{server}/v1/completions", json={"temperature": 0, **body, "stream": True}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return [choice for line in lines for choice in json.loads(line)["choices"]]


def ids_of(server: str, text: str) -> list[int]:
    ids: list[int] = httpx.post(f"{server}/tokenize", json={"prompt": text}).json()["tokens"]
    return ids


def logprobs_of(oracle: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = torch.log_softmax(oracle(torch.tensor([ids])).logits[0].float(), -1)
    return found


def test_a_prompt_alone_is_scored_as_transformers_scores_it(server: str, oracle: Any) -> None:
    ids = ids_of(server, TEXT)
    expected = logprobs_of(oracle, ids)
    answer = complete(server, prompt=TEXT, echo=True, logprobs=3, max_tokens=0)
    [choice] = answer["choices"]
    logs = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert logs["token_logprobs"][0] is logs["top_logprobs"][0] is None
    own = expected[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert logs["token_logprobs"][1:] == pytest.approx(own.tolist(), abs=1e-3)
    best = expected[:-1].max(dim=-1).values.tolist()
    assert [max(top.values()) for top in logs["top_logprobs"][1:]] == pytest.approx(best, abs=1e-3)
    assert all(3 <= len(top) <= 4 for top in logs["top_logprobs"][1:])
    for one, top in zip(logs["token_logprobs"][1:], logs["top_logprobs"][1:], strict=True):
        assert one in top.values()  # to the last bit: clients compare them


def test_offsets_are_those_of_the_text_also_where_a_character_has_several_tokens(server: str) -> None:
    ids = ids_of(server, TEXT)
    [choice] = complete(server, prompt=TEXT, echo=True, logprobs=1, max_tokens=6)["choices"]
    logs, text = choice["logprobs"], choice["text"]
    assert text.startswith(TEXT)
    assert {len(items) for items in logs.values()} == {len(ids) + 6}
    ends = [*logs["text_offset"][1:], len(text)]
    for token, begin, end in zip(logs["tokens"], logs["text_offset"], ends, strict=True):
        assert begin <= end
        if not token.startswith("bytes:") and "\ufffd" not in text[begin:end]:
            assert text[begin:end] == token or token.startswith("<|")
    assert any(token.startswith("bytes:") for token in logs["tokens"])
    assert logs["text_offset"][len(ids)] == len(TEXT)


def test_what_is_streamed_is_what_is_told_whole(server: str) -> None:
    body: dict[str, Any] = {"prompt": [TEXT, "fox"], "n": 2, "echo": True, "logprobs": 2, "max_tokens": 4}
    whole = complete(server, **body, seed=3, prompt_logprobs=1)["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
    assert [choice["text"][:3] for choice in whole] == ["The", "The", "fox", "fox"]
    pieces = streamed(server, **body, seed=3, prompt_logprobs=1)
    for index, choice in enumerate(whole):
        own = [piece for piece in pieces if piece["index"] == index]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        told = [piece["logprobs"] for piece in own if piece["logprobs"] is not None]
        for name, items in choice["logprobs"].items():
            assert [one for logs in told for one in logs[name]] == items
        assert own[0]["prompt_logprobs"] == choice["prompt_logprobs"]
        assert own[-1]["finish_reason"] == choice["finish_reason"] == "length"


def test_a_cached_prompt_is_scored_whole_and_long_ones_in_pieces(server: str, oracle: Any) -> None:
    ids = [5 + (7 * place) % 400 for place in range(600)]
    complete(server, prompt=ids, max_tokens=1)
    expected = logprobs_of(oracle, ids)[torch.arange(599), torch.tensor(ids[1:])].tolist()
    answer = complete(server, prompt=ids, max_tokens=0, prompt_logprobs=0)
    [choice] = answer["choices"]
    told = [
        one[str(token)]["logprob"] for token, one in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)
    ]
    assert told == pytest.approx(expected, abs=2e-3)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert choice["text"] == ""


def test_a_chat_tells_them_beside_its_choices(server: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "prompt_logprobs": 2}
    answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60).json()
    told = answer["prompt_logprobs"]
    assert len(told) == answer["usage"]["prompt_tokens"]
    assert told[0] is None
    assert all(2 <= len(one) <= 3 for one in told[1:])
    assert {1, 2} <= {entry["rank"] for entry in told[1].values()}
    text = httpx.post(f"{server}/v1/chat/completions", json=body | {"stream": True}, timeout=60).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [event["prompt_logprobs"] for event in events if "prompt_logprobs" in event] == [told]


def test_bytes_of_chat_log_probabilities_are_the_tokens_own(server: str) -> None:
    bias = {str(token): 100 for token in ids_of(server, "\U0001f680")}
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": bias,
    }
    [choice] = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60).json()["choices"]
    found = [byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"]]
    assert bytes(found).decode("utf-8", "replace") == choice["message"]["content"]
    assert set(found) <= set("\U0001f680".encode())
