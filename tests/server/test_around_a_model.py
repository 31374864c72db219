"""Defaults of sampling, templates of one's own, tools without a place, answers that go on: over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.running import serving
from tests.tiny import make_tiny

HELLO = {"role": "user", "content": "Hello"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weigh",
        "description": "Weighs a lorry.",
        "parameters": {
            "type": "object",
            "properties": {"kg": {"type": "integer", "maximum": 9}},
            "required": ["kg"],
        },
    },
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that recommends to be greedy, and a template of a file."""
    model = make_tiny("llama", tmp_path_factory.mktemp("tuned") / "tiny")
    (model / "generation_config.json").write_text(
        json.dumps({"top_k": 1, "eos_token_id": 2, "max_new_tokens": 7})
    )
    template = model / "own.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    with serving(model, "--chat-template", str(template)) as (url, _):
        yield url


def chat(url: str, *turns: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{url}/v1/chat/completions", json={"messages": [HELLO, *turns], "max_tokens": 8, **body}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_what_the_files_recommend_holds_unless_a_request_says_otherwise(tuned: str) -> None:
    [model] = httpx.get(f"{tuned}/v1/models").json()["data"]
    assert model["sampling_defaults"] == {"top_k": 1, "max_tokens": 7}
    greedy = said(chat(tuned, temperature=0))
    assert all(said(chat(tuned, seed=seed)) == greedy for seed in range(3))
    drawn = {said(chat(tuned, seed=seed, top_k=0, temperature=2)) for seed in range(6)}
    assert len(drawn) > 1
    body = {"messages": [HELLO], "ignore_eos": True}
    answer = httpx.post(f"{tuned}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 7


def test_a_model_without_recommendations_has_none(server: str) -> None:
    [model] = httpx.get(f"{server}/v1/models").json()["data"]
    assert model["sampling_defaults"] == {}


def test_a_template_of_a_file_is_used(tuned: str) -> None:
    count = httpx.post(f"{tuned}/tokenize", json={"messages": [HELLO]}).json()["tokens"]
    assert httpx.post(f"{tuned}/detokenize", json={"tokens": count}).json()["prompt"] == "[user] Hello\n"


def begun(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_an_answer_that_has_begun_goes_on_in_every_protocol(server: str) -> None:
    """What follows is what a completion of the rendered prompt gives."""
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nThe quick br"
    ids = httpx.post(f"{server}/tokenize", json={"prompt": prompt}).json()["tokens"]
    text = {"prompt": ids, "max_tokens": 8, "temperature": 0}
    expected = httpx.post(f"{server}/v1/completions", json=text, timeout=60).json()["choices"][0]["text"]
    told = begun("The quick br")
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    assert said(chat(server, told, temperature=0, **flags)) == expected
    assert said(chat(server, told | {"prefix": True}, temperature=0)) == expected
    assert said(chat(server, told, temperature=0)) != expected
    counted = httpx.post(f"{server}/tokenize", json={"messages": [HELLO, told], **flags}).json()["tokens"]
    assert counted == ids
    body = {"model": "tiny", "messages": [HELLO, told], "max_tokens": 8, "temperature": 0}
    anthropic = httpx.post(f"{server}/v1/messages", json=body, timeout=60).json()
    assert "".join(block["text"] for block in anthropic["content"]) == expected
    assert anthropic["usage"]["input_tokens"] + anthropic["usage"]["cache_read_input_tokens"] + anthropic[
        "usage"
    ]["cache_creation_input_tokens"] == len(ids)
    options = {"num_predict": 8, "temperature": 0}
    ollama = {"model": "tiny", "messages": [HELLO, told], "stream": False, "options": options}
    assert httpx.post(f"{server}/api/chat", json=ollama, timeout=60).json()["message"]["content"] == expected


def test_only_an_answer_can_go_on(server: str) -> None:
    for turns in (
        [HELLO],
        [HELLO, begun("x") | {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
    ):
        body = {"messages": turns, "max_tokens": 2, "continue_final_message": True}
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_a_round_trip_of_tools_works_on_a_template_without_a_place_for_them(server: str) -> None:
    """A random model calls or talks; what it calls is right, and a call may be demanded."""
    body: dict[str, Any] = {"tools": [TOOL], "max_tokens": 300}
    bias = {
        str(token): 100 for token in httpx.post(f"{server}/tokenize", json={"prompt": "{"}).json()["tokens"]
    }
    message = chat(server, logit_bias=bias, temperature=0, **body)["choices"][0]["message"]
    assert "tool_calls" in message, message
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "weigh"
    assert list(json.loads(call["function"]["arguments"])) == ["kg"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "3 kg"}
    after = chat(server, {"role": "assistant", "content": None, "tool_calls": [call]}, result, **body)
    assert after["usage"]["prompt_tokens"] > 100
    text = chat(server, seed=1, logit_bias=dict.fromkeys(bias, -100), **body)["choices"][0]["message"]
    assert "tool_calls" not in text
    assert text["content"]
    assert httpx.get(f"{server}/v1/load").json()["abilities"]["tools"] is True


def test_one_call_is_made_where_several_may_not(server: str) -> None:
    two = r"<tool_call>\{\"name\": \"weigh\", \"arguments\": \{\"kg\": 1\}\}</tool_call>"
    wanted = {
        "structured_outputs": {"regex": two.replace('\\"', '"') * 2},
        "tools": [TOOL],
        "max_tokens": 300,
    }
    several = chat(server, **wanted)["choices"][0]["message"]["tool_calls"]
    [call] = chat(server, parallel_tool_calls=False, **wanted)["choices"][0]["message"]["tool_calls"]
    assert len(several) == 2
    assert call["function"] == several[0]["function"]
    streamed = httpx.post(
        f"{server}/v1/chat/completions",
        json={"messages": [HELLO], "stream": True, "parallel_tool_calls": False, **wanted},
        timeout=60,
    ).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert {part["index"] for delta in deltas for part in delta.get("tool_calls", ())} == {0}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
