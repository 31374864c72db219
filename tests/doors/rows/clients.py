"""Anthropic's Messages and Ollama's API: what their clients send, and what they can decide by."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.doors.client import Reply
from tests.doors.doors import KEYS
from tests.doors.rows.endpoints import JSON, STREAM
from tests.doors.table import MODEL, Row, Want, at, bad, chat, ok

MESSAGES, API_CHAT, GENERATE = "/v1/messages", "/api/chat", "/api/generate"
DECISIONS = "/v1/decisions"
COUNT = "/v1/messages/count_tokens"
HI = {"role": "user", "content": "What does it weigh?"}
NDJSON = {**STREAM, "content-type": "application/x-ndjson"}

Body = dict[str, Any]


def message(**fields: Any) -> Body:
    return {"model": MODEL, "messages": [HI], "max_tokens": 4, "temperature": 0, **fields}


def api_chat(**fields: Any) -> Body:
    return {"model": MODEL, "messages": [HI], "options": {"num_predict": 4, "temperature": 0}, **fields}


def decided(**fields: Any) -> Body:
    choices = [{"value": "a"}, {"value": "b"}]
    question = {"type": "choice", "name": "which", "instructions": "Which?", "choices": choices}
    return {"model": MODEL, "input": "What does it weigh?", "questions": [question], **fields}


def is_decided(reply: Reply) -> bool:
    [answer] = reply.json["answers"]
    shares = [one["probability"] for one in answer["probabilities"]]
    return bool(
        (answer["type"], answer["name"]) == ("choice", "which")
        and answer["choice"] == ("a" if shares[0] >= shares[1] else "b")
        and abs(sum(shares) - 1.0) < 1e-6
        and 0.0 < answer["label_mass"] <= 1.0
        and reply.json["usage"]["output_tokens"] == 0 < reply.json["usage"]["input_tokens"]
    )


def refused(status: int, kind: str, says: str = "") -> Want:
    """An error in Anthropic's shape."""

    def is_error(reply: Reply) -> bool:
        told = reply.json
        return bool(
            sorted(told) == ["error", "request_id", "type"]
            and told["type"] == "error"
            and told["error"]["type"] == kind
            and says in told["error"]["message"]
        )

    return Want(status, headers=JSON, body=is_error, left=False)


def sentence(status: int, says: str = "") -> Want:
    """An error in Ollama's shape."""

    def is_error(reply: Reply) -> bool:
        return list(reply.json) == ["error"] and says in reply.json["error"]

    return Want(status, headers=JSON, body=is_error, left=False)


def is_message(reply: Reply) -> bool:
    told, usage = reply.json, reply.json["usage"]
    read, created = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    return bool(
        (told["type"], told["role"], told["stop_reason"]) == ("message", "assistant", "max_tokens")
        and [block["type"] for block in told["content"]] == ["text"]
        and usage["output_tokens"] == 4
        and usage["input_tokens"] + read + created > 4
        and told["id"] == "msg_" + str(reply.header("x-weighbridge-ticket"))
    )


def is_stream_of_a_message(reply: Reply) -> bool:
    kinds = [event["type"] for event in reply.events]
    ending = reply.events[-2]
    return bool(
        kinds[:2] == ["message_start", "content_block_start"]
        and set(kinds[2:-3]) <= {"content_block_delta", "ping"}
        and kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        and ending["delta"]["stop_reason"] == "max_tokens"
        and ending["usage"]["output_tokens"] == 4
    )


def lines(check: Callable[[list[Body]], bool]) -> Callable[[Reply], bool]:
    return lambda reply: check([json.loads(line) for line in reply.body.splitlines()])


def ends_a_chat(found: list[Body]) -> bool:
    last = found[-1]
    return (
        all(one["message"]["role"] == "assistant" for one in found)
        and [one["done"] for one in found] == [False] * (len(found) - 1) + [True]
        and (last["done_reason"], last["eval_count"]) == ("length", 4)
        and last["total_duration"] > 0
        and last["prompt_eval_count"] > 4
    )


def is_whole(name: str) -> Callable[[Reply], bool]:
    return lambda reply: bool(
        name in reply.json and reply.json["done"] and reply.json["eval_count"] == 4 and reply.json["model"]
    )


def ends_with_success(found: list[Body]) -> bool:
    return found[-1] == {"status": "success"}


def is_loaded(reply: Reply) -> bool:
    return bool(reply.json["done"] and reply.json["done_reason"] == "load" and not reply.json["response"])


def is_counted(reply: Reply) -> bool:
    return list(reply.json) == ["input_tokens"] and reply.json["input_tokens"] > 20


def lists(*names: str) -> Callable[[Reply], bool]:
    """Whether a list of models has these fields of each."""
    return lambda reply: (
        bool(reply.json["models"]) and all(name in one for one in reply.json["models"] for name in names)
    )


def is_a_page_of_models(reply: Reply) -> bool:
    told = reply.json
    return bool(
        told["has_more"] is False
        and told["first_id"] == told["data"][0]["id"]
        and all(one["type"] == "model" and one["created_at"].endswith("Z") for one in told["data"])
    )


def is_shown(reply: Reply) -> bool:
    return {"details", "model_info", "capabilities", "modified_at"} <= set(reply.json)


VERSION = (("anthropic-version", "2023-06-01"),)
COUNTED = {"model": MODEL, "messages": [HI], "system": "be kind and brief", "tools": []}
NAME, NAMED = (("x-request-id", "one of mine"),), {"x-request-id": "one of mine"}
LOCAL, FOREIGN = ("Origin", "http://localhost:3000"), ("Origin", "https://chat.example")
SHOWN = {"access-control-allow-origin": "http://localhost:3000"}
ASKED_HEADERS = ("Access-Control-Request-Headers", "x-api-key, anthropic-version")
CHATS = at("route routes", "chats", sentence(400, "routes answer chats"))
NO_KEY, WRONG = refused(401, "authentication_error"), (("x-api-key", "wrong"),)
LONG = [{"role": "user", "content": "weigh it " * 2000}]
NEAR = {"placement": "only_edge"}

CLIENTS = [
    Row("a message", ok(tokens=4, headers=JSON, body=is_message), message(), path=MESSAGES),
    Row(
        "a message whose bound has a fraction of nothing",
        ok(tokens=4, headers=JSON, body=is_message),
        message(max_tokens=4.0),
        path=MESSAGES,
    ),
    Row(
        "a message whose bound has a fraction",
        refused(400, "invalid_request_error", "max_tokens"),
        message(max_tokens=4.5),
        path=MESSAGES,
    ),
    Row(
        "a message of Claude Code's: a query, versions, blocks",
        ok(tokens=4, headers=JSON, body=is_message),
        message(
            system=[{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "weigh"}, {"type": "text", "text": "it"}],
                }
            ],
            metadata={"user_id": "u"},
            thinking={"type": "adaptive"},
            context_management={"edits": []},
        ),
        path=MESSAGES + "?beta=true",
        headers=(("anthropic-version", "2023-06-01"), ("anthropic-beta", "a,b")),
    ),
    Row(
        "a message as a stream",
        ok(tokens=4, headers=STREAM, body=is_stream_of_a_message),
        message(stream=True),
        path=MESSAGES,
    ),
    Row("a message of nobody", refused(404, "not_found_error"), message(model="nobody"), path=MESSAGES),
    Row(
        "a message with a document",
        refused(400, "invalid_request_error", "document"),
        message(messages=[{"role": "user", "content": [{"type": "document"}]}]),
        path=MESSAGES,
    ),
    Row(
        "a message without a bound",
        refused(400, "invalid_request_error", "max_tokens"),
        {"model": MODEL, "messages": [HI]},
        path=MESSAGES,
    ),
    Row(
        "a message longer than the context",
        refused(400, "invalid_request_error"),
        message(messages=LONG, weighbridge=NEAR, stream=True),
        path=MESSAGES,
    ),
    Row(
        "a message that must leave",
        ok(left=True, placement="cloud"),
        message(weighbridge={"placement": "only_cloud"}),
        path=MESSAGES,
        differs=at("single gateway", "one place", refused(400, "invalid_request_error", "placement")),
    ),
    Row(
        "a message with a misspelt restriction",
        refused(400, "invalid_request_error", "label"),
        message(weighbridge={"label": ["patient"]}),
        path=MESSAGES,
    ),
    Row(
        "a message with a key in x-api-key",
        ok(tenant="alice", body=is_message),
        message(),
        path=MESSAGES,
        headers=(("x-api-key", KEYS["alice"]),),
        keyed=True,
    ),
    Row("a message with a wrong key", NO_KEY, message(), path=MESSAGES, headers=WRONG, keyed=True),
    Row("tokens of a message", ok(headers=JSON, body=is_counted, left=False), COUNTED, path=COUNT),
    Row(
        "tokens of a message of nobody",
        refused(404, "not_found_error"),
        {**COUNTED, "model": "nobody"},
        path=COUNT,
    ),
    Row(
        "tokens of a message with a document",
        refused(400, "invalid_request_error", "document"),
        {**COUNTED, "messages": [{"role": "user", "content": [{"type": "document"}]}]},
        path=COUNT,
    ),
    Row("tokens of a message, with a wrong key", NO_KEY, COUNTED, path=COUNT, headers=WRONG, keyed=True),
    Row(
        "models for Anthropic's clients",
        ok(headers=JSON, body=is_a_page_of_models),
        method="GET",
        path="/v1/models",
        headers=VERSION,
    ),
    Row(
        "one model for Anthropic's clients",
        ok(headers=JSON, body=lambda reply: reply.json["type"] == "model"),
        method="GET",
        path=f"/v1/models/{MODEL}",
        headers=VERSION,
    ),
    Row("a message larger than all", refused(413, "request_too_large"), b" " * (9 << 20), path=MESSAGES),
    Row(
        "an Ollama chat",
        ok(tokens=4, headers=NDJSON, body=lines(ends_a_chat)),
        api_chat(keep_alive="5m"),
        path=API_CHAT,
    ),
    Row(
        "an Ollama chat whose bound has a fraction of nothing",
        ok(tokens=4, headers=NDJSON, body=lines(ends_a_chat)),
        api_chat(options={"num_predict": 4.0, "temperature": 0}),
        path=API_CHAT,
    ),
    Row(
        "an Ollama chat in one piece",
        ok(tokens=4, headers=JSON, body=is_whole("message")),
        api_chat(stream=False),
        path=API_CHAT,
    ),
    Row(
        "an Ollama prompt",
        ok(tokens=4, headers=JSON, body=is_whole("response")),
        {
            "model": MODEL + ":latest",
            "prompt": "weigh",
            "stream": False,
            "options": {"num_predict": 4, "temperature": 0},
        },
        path=GENERATE,
    ),
    Row(
        "a raw prompt",
        ok(tokens=4, headers=JSON, body=is_whole("response")),
        {
            "model": MODEL,
            "prompt": "weigh",
            "raw": True,
            "stream": False,
            "options": {"num_predict": 4, "temperature": 0},
        },
        path=GENERATE,
        differs=CHATS,
    ),
    Row("a model to load", ok(headers=JSON, body=is_loaded), {"model": MODEL}, path=GENERATE),
    Row("a model to load that is not there", sentence(404, "nobody"), {"model": "nobody"}, path=GENERATE),
    Row("an Ollama chat of nobody", sentence(404, "nobody"), api_chat(model="nobody"), path=API_CHAT),
    Row(
        "a prompt with a suffix",
        sentence(400, "suffix"),
        {"model": MODEL, "prompt": "a", "suffix": "b"},
        path=GENERATE,
    ),
    Row(
        "an Ollama chat that stops at too many texts",
        sentence(400, "options.stop: "),
        api_chat(options={"stop": ["x"] * 17}),
        path=API_CHAT,
    ),
    Row(
        "an Ollama chat of less than nothing",
        sentence(400, "options.top_p: "),
        api_chat(options={"top_p": -1.0}),
        path=API_CHAT,
    ),
    Row(
        "a message that stops at too many texts",
        refused(400, "invalid_request_error", "stop_sequences: "),
        message(stop_sequences=["x"] * 17),
        path=MESSAGES,
    ),
    Row("an Ollama chat too hot", sentence(400), api_chat(options={"temperature": 9}), path=API_CHAT),
    Row(
        "an Ollama chat with a wrong key",
        sentence(401, "key"),
        api_chat(),
        path=API_CHAT,
        headers=(("Authorization", "Bearer wrong"),),
        keyed=True,
    ),
    Row(
        "texts to embed for Ollama",
        ok(headers=JSON, body=lambda reply: [len(one) for one in reply.json["embeddings"]] == [64, 64]),
        {"model": MODEL, "input": ["weigh", "it"]},
        path="/api/embed",
        differs=CHATS,
    ),
    Row(
        "a text to embed for Ollama, as it was",
        ok(headers=JSON, body=lambda reply: len(reply.json["embedding"]) == 64),
        {"model": MODEL, "prompt": "weigh"},
        path="/api/embeddings",
        differs=CHATS,
    ),
    Row(
        "questions to decide",
        ok(headers=JSON, body=is_decided, left=False, placement="edge"),
        decided(),
        path=DECISIONS,
        key="alice",
    ),
    Row(
        "questions to decide for nobody",
        bad("model", "nobody", 404, "model_not_found"),
        decided(model="nobody"),
        path=DECISIONS,
    ),
    Row(
        "questions about what is kept elsewhere",
        bad("input", "item itself"),
        decided(input=[{"type": "item_reference", "id": "msg_1"}]),
        path=DECISIONS,
    ),
    Row("no questions to decide", bad("questions", "length >= 1"), decided(questions=[]), path=DECISIONS),
    Row(
        "questions to decide beyond the boundary",
        bad("weighbridge", "placement"),
        decided(weighbridge={"placement": "only_cloud"}),
        path=DECISIONS,
        differs=at("route routes", "one place", Want(403, "residency_forbids", error=True, left=False)),
    ),
    Row(
        "models for Ollama's clients",
        ok(headers=JSON, body=lists("name", "model", "modified_at", "digest", "size", "details")),
        method="GET",
        path="/api/tags",
    ),
    Row(
        "models that are loaded",
        ok(headers=JSON, body=lists("expires_at", "context_length")),
        method="GET",
        path="/api/ps",
    ),
    Row("what a model is", ok(headers=JSON, body=is_shown), {"model": MODEL}, path="/api/show"),
    Row("what a model is that is not there", sentence(404, "nobody"), {"model": "nobody"}, path="/api/show"),
    Row("what no model is", sentence(400, "model"), {}, path="/api/show"),
    Row(
        "the version of Ollama's API",
        ok(headers=JSON, body=lambda reply: reply.json["version"] >= "0.1"),
        method="GET",
        path="/api/version",
    ),
    Row(
        "a model to pull that is here", ok(body=lines(ends_with_success)), {"model": MODEL}, path="/api/pull"
    ),
    Row(
        "a model to pull that nobody knows", sentence(404, "catalogue"), {"model": "nobody"}, path="/api/pull"
    ),
    Row("a model to delete", sentence(400, "weighbridge serve"), {"model": MODEL}, "DELETE", "/api/delete"),
    # -- what all clients can decide by
    Row(
        "the version",
        ok(headers=JSON, body=lambda reply: list(reply.json) == ["version"]),
        method="GET",
        path="/version",
    ),
    Row("the head of a list of models", ok(headers=JSON), method="HEAD", path="/v1/models"),
    Row("whether anybody is there, as Ollama asks", ok(), method="HEAD", path="/"),
    Row(
        "a message with a wrong method",
        Want(405, headers={"allow": "POST", **JSON}, body=lambda reply: reply.json["type"] == "error"),
        method="GET",
        path=MESSAGES,
    ),
    Row(
        "an Ollama chat with a wrong method and a slash",
        Want(405, headers={"allow": "POST", **JSON}, body=lambda reply: list(reply.json) == ["error"]),
        method="GET",
        path=API_CHAT + "/",
    ),
    Row("a chat that has a name", ok(headers=NAMED), chat(), headers=NAME),
    Row("a stream that has a name", ok(headers=NAMED), chat(stream=True), headers=NAME),
    Row("a refusal that has a name", bad("temperature", headers=NAMED), chat(temperature=9), headers=NAME),
    Row("a chat that cannot be read and has a name", bad(headers=NAMED), b"{", headers=NAME),
    Row("a list that has a name", ok(headers=NAMED), method="GET", path="/v1/models", headers=NAME),
    Row("nothing that has a name", Want(404, headers=NAMED), method="GET", path="/nothing", headers=NAME),
    Row(
        "a message that has a name",
        ok(headers={**NAMED, "request-id": "one of mine"}),
        message(),
        path=MESSAGES,
        headers=NAME,
    ),
    # -- scripts of other sites
    Row("a chat from a page of this machine", ok(headers=SHOWN), chat(), headers=(LOCAL,)),
    Row(
        "a message from a page of this machine", ok(headers=SHOWN), message(), path=MESSAGES, headers=(LOCAL,)
    ),
    Row(
        "a page of this machine asks whether it may",
        ok(headers={**SHOWN, "access-control-allow-headers": "x-api-key, anthropic-version"}),
        method="OPTIONS",
        path=MESSAGES,
        headers=(LOCAL, ("Access-Control-Request-Method", "POST"), ASKED_HEADERS),
    ),
    Row(
        "a page of another site with a key",
        ok(headers={"access-control-allow-origin": None}),
        chat(),
        headers=(FOREIGN,),
        key="alice",
    ),
]
