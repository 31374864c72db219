"""Every object and event of OpenAI's APIs, at every door, is by the letter what OpenAI's own types take.

Those of Responses that no model here writes are in `tests/wire/test_response_events.py`, batches in
`tests/doors/test_batches.py`; Anthropic's and Ollama's own types are asked by the lane of clients.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import Batch, Completion, CreateEmbeddingResponse, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.decision import Decision
from openai.types.responses import Response
from pydantic import BaseModel

from tests.doors.doors import DOORS, Door
from tests.wire.test_response_events import validated

Doors = dict[bool, dict[str, Door]]

#: What an answer has beyond the types: what others add too (stop_reason, thoughts, tokens that were cached), and ours.
BEYOND = {
    "reasoning_content",
    "stop_reason",
    "next_token",
    "label_mass",
    "prompt_tokens_details",
    "weighbridge",
    "max_model_len",
    "sampling_defaults",
    "abilities",
    "details",
}
HI = [{"role": "user", "content": "What does it weigh?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"size": {"type": "string", "enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weigh", "parameters": PARAMETERS}}


def read(door: Door, path: str, body: Any = None, method: str | None = None) -> bytes:
    data = None if body is None else json.dumps({"model": door.model, **body}).encode()
    asked = urllib.request.Request(door.url + path, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        found: bytes = answer.read()
    return found


def strictly(kind: type[BaseModel], text: bytes | str) -> Any:
    """The object, once its type takes it strictly and there is nothing in it, at any depth, that the type has not."""
    model = kind.model_validate_json(text, strict=True)
    extra = set(_beyond(model))
    assert extra <= BEYOND, extra
    return model


def _beyond(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from _beyond(getattr(value, name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _beyond(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _beyond(one)


def events(body: bytes) -> list[str]:
    lines = [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: ")]
    return [line for line in lines if line != "[DONE]"]


CHATS: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 4},
    "choices": {"max_tokens": 4, "n": 2, "logprobs": True, "top_logprobs": 2, "stop": ["zz"]},
    "call": {"max_tokens": 300, "tools": [TOOL], "tool_choice": "required"},
    "held": {
        "max_tokens": 300,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS}},
    },
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("chat", CHATS)
def test_chats(chat: str, door: str, doors: Doors) -> None:
    at, asked = doors[False][door], {"messages": HI, "seed": 1, **CHATS[chat]}
    whole = strictly(ChatCompletion, read(at, "/v1/chat/completions", asked))
    assert whole.usage is not None
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    chunks = [
        strictly(ChatCompletionChunk, one) for one in events(read(at, "/v1/chat/completions", streamed))
    ]
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("door", DOORS)
def test_responses(door: str, doors: Doors) -> None:
    at = doors[False][door]
    tool = {"type": "function", "name": "weigh", "parameters": PARAMETERS, "strict": True}
    plain = {"input": "What does it weigh?", "max_output_tokens": 16}
    for asked in (plain, {**plain, "tools": [tool], "tool_choice": "required", "max_output_tokens": 300}):
        Response.model_validate_json(read(at, "/v1/responses", asked), strict=True)
        for event in events(read(at, "/v1/responses", {**asked, "stream": True})):
            validated(json.loads(event))


@pytest.mark.parametrize("door", ["single", "gateway"])  # a route answers chats
def test_completions_embeddings_and_decisions(door: str, doors: Doors) -> None:
    at = doors[False][door]
    asked = {"prompt": ["It", "weighs"], "max_tokens": 4, "logprobs": 1}
    strictly(Completion, read(at, "/v1/completions", asked))
    for event in events(read(at, "/v1/completions", {**asked, "stream": True})):
        # The type is that of whole answers, too, which have a reason; OpenAI's own events have none before the last.
        strictly(Completion, event.replace('"finish_reason":null', '"finish_reason":"stop"'))
    for form in ("float", "base64"):
        made = json.loads(read(at, "/v1/embeddings", {"input": ["a", "b"], "encoding_format": form}))
        if form == "base64":  # its type has numbers alone, which the client decodes them to
            assert all(isinstance(one.pop("embedding"), str) for one in made["data"])
            made["data"] = [{**one, "embedding": [0.0]} for one in made["data"]]
        strictly(CreateEmbeddingResponse, json.dumps(made))
    questions = [
        {"type": "predicate", "name": "late", "instructions": "It is late."},
        {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": True}]},
        {"type": "score", "instructions": "How much?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    strictly(Decision, read(at, "/v1/decisions", {"input": "It is late.", "questions": questions}))


@pytest.mark.parametrize("door", DOORS)
def test_models(door: str, doors: Doors) -> None:
    at = doors[False][door]
    for one in json.loads(read(at, "/v1/models"))["data"]:
        strictly(Model, json.dumps(one))
    strictly(Model, read(at, f"/v1/models/{at.model}"))


@pytest.mark.parametrize("door", DOORS)
def test_files_and_batches(door: str, doors: Doors) -> None:
    at = doors[False][door]
    line = {"method": "POST", "url": "/v1/chat/completions"}
    body = {"model": at.model, "messages": HI, "max_tokens": 200, "ignore_eos": True}
    # As many as are not done before they are cancelled.
    text = "\n".join(json.dumps({**line, "custom_id": str(n), "body": body}) for n in range(200))
    parts = ['--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n']
    parts += [
        f'--x\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{text}\r\n--x--\r\n'
    ]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    asked = urllib.request.Request(at.url + "/v1/files", "".join(parts).encode(), headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        file = strictly(FileObject, answer.read())
    batch = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = strictly(Batch, _posted(at, "/v1/batches", batch))
    strictly(Batch, read(at, f"/v1/batches/{made.id}"))
    strictly(Batch, _posted(at, f"/v1/batches/{made.id}/cancel", {}))
    deadline = time.monotonic() + 30.0
    while strictly(Batch, read(at, f"/v1/batches/{made.id}")).status not in ("cancelled", "completed"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    strictly(FileDeleted, read(at, f"/v1/files/{file.id}", method="DELETE"))


def _posted(door: Door, path: str, body: Any) -> bytes:
    asked = urllib.request.Request(
        door.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        found: bytes = answer.read()
    return found
