"""Good requests, and every way to miss an endpoint: methods, slashes, names, lists."""

from __future__ import annotations

from typing import Any

from tests.doors.client import Reply
from tests.doors.table import COMPLETIONS, EMBEDDINGS, GONE, MODEL, Row, Want, at, bad, chat, ok

STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
JSON = {"content-type": "application/json"}
NOT_HERE = Want(404, "not_found", "invalid_request_error", error=True, headers=JSON)
NO_MODEL = Want(404, "model_not_found", "invalid_request_error", "model", error=True, left=False)
CHATS_ONLY = at("route routes", "chats", bad("model", "routes answer chats"))
SEVERAL = at("gateway route", "several models", bad("model"))


def not_allowed(*methods: str) -> Want:
    return Want(405, kind="invalid_request_error", error=True, headers={"allow": ", ".join(methods), **JSON})


def ends_well(reply: Reply) -> bool:
    """A stream of chunks of one id, a finish, and `[DONE]`."""
    *chunks, last = reply.events
    finishes = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    return (
        last == "[DONE]"
        and len({chunk["id"] for chunk in chunks}) == 1
        and finishes[-1] in ("stop", "length")
    )


def tells_usage(reply: Reply) -> bool:
    *_, usage, last = reply.events
    told = usage.get("usage") or {}
    return last == "[DONE]" and usage["choices"] == [] and told.get("completion_tokens") == 4


def tells_no_usage(reply: Reply) -> bool:
    return ends_well(reply) and not any(chunk.get("usage") for chunk in reply.events[:-1])


def is_model(value: Any) -> bool:
    return bool(
        isinstance(value, dict)
        and value.get("object") == "model"
        and isinstance(value.get("created"), int)
        and value.get("owned_by") == "weighbridge"
    )


def is_one_model(reply: Reply) -> bool:
    return is_model(reply.json)


def lists_models(reply: Reply) -> bool:
    value = reply.json
    return (
        value["object"] == "list" and bool(value["data"]) and all(is_model(model) for model in value["data"])
    )


def is_a_chat(reply: Reply) -> bool:
    value = reply.json
    usage, [choice] = value["usage"], value["choices"]
    return bool(
        value["object"] == "chat.completion"
        and choice["message"]["role"] == "assistant"
        and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        and usage["completion_tokens"] == 4
    )


def has(*names: str) -> Any:
    return lambda reply: all(name in reply.json for name in names)


HEALTH = ok(headers=JSON, body=has("status", "version"))
LOAD = ok(headers=JSON, body=has("queued_tokens", "draining"))
MORE = at("gateway route routes", "says more", HEALTH)

PROMPT = {"model": MODEL, "prompt": "It weighs", "max_tokens": 3, "temperature": 0}
INPUT = {"model": MODEL, "input": "It weighs"}

ENDPOINTS = [
    Row(
        "a chat", ok(tokens=4, tenant="default", priority=0, left=False, headers=JSON, body=is_a_chat), chat()
    ),
    Row("a streamed chat", ok(tokens=4, headers=STREAM, left=False, body=tells_no_usage), chat(stream=True)),
    Row(
        "a streamed chat that asks for usage",
        ok(tokens=4, headers=STREAM, body=tells_usage),
        chat(stream=True, stream_options={"include_usage": True}),
    ),
    Row(
        "a streamed chat that asks for no usage",
        ok(tokens=4, body=tells_no_usage),
        chat(stream=True, stream_options={"include_usage": False}),
    ),
    Row(
        "two choices",
        ok(tokens=8, body=lambda reply: len(reply.json["choices"]) == 2),
        chat(n=2, temperature=1, seed=1),
    ),
    Row("a completion", ok(tokens=3, headers=JSON), PROMPT, path=COMPLETIONS, differs=CHATS_ONLY),
    Row(
        "a streamed completion",
        ok(tokens=3, headers=STREAM, body=ends_well),
        {**PROMPT, "stream": True},
        path=COMPLETIONS,
        differs=CHATS_ONLY,
    ),
    Row(
        "a completion of two prompts",
        ok(tokens=6, choices=2, body=lambda reply: len(reply.json["choices"]) == 2),
        {**PROMPT, "prompt": ["It weighs", "It"]},
        path=COMPLETIONS,
        differs=CHATS_ONLY | at("single", "a ticket each", ok(tokens=3)),
    ),
    Row(
        "a completion of too many prompts",
        bad("prompt", says="at most 2048"),
        {**PROMPT, "prompt": ["x"] * 2049},
        path=COMPLETIONS,
    ),
    Row("an embedding", ok(headers=JSON), INPUT, path=EMBEDDINGS, differs=CHATS_ONLY),
    Row("an embedding of nothing", bad("input"), {"model": MODEL}, path=EMBEDDINGS),
    Row("an embedding of a text and a chat", bad("input"), {**chat(), **INPUT}, path=EMBEDDINGS),
    Row("a query behind the path", ok(tokens=4), chat(), path="/v1/chat/completions?api-version=1"),
    # -- models
    Row("no model", ok(tokens=4), chat(model=GONE), differs=SEVERAL),
    Row("null as the model", ok(tokens=4), chat(model=None), differs=SEVERAL),
    Row("an empty name as the model", ok(tokens=4), chat(model=""), differs=SEVERAL),
    Row("an unknown model", NO_MODEL, chat(model="nobody")),
    Row("an unknown model of a completion", NO_MODEL, {**PROMPT, "model": "nobody"}, path=COMPLETIONS),
    Row("an unknown model of an embedding", NO_MODEL, {**INPUT, "model": "nobody"}, path=EMBEDDINGS),
    Row("a model's name in another case", NO_MODEL, chat(model="Tiny-Auto")),
    Row("a model's name with a space behind", NO_MODEL, chat(model=f"{MODEL} ")),
    Row("a number as the model", bad("model"), chat(model=7)),
    Row("a list as the model", bad("model"), chat(model=[MODEL])),
    Row("the list of models", ok(headers=JSON, body=lists_models), method="GET", path="/v1/models"),
    Row(
        "one model",
        ok(body=is_one_model),
        method="GET",
        path=f"/v1/models/{MODEL}",
        differs=at("gateway route routes", "says more", ok(body=is_one_model)),
    ),
    Row("one model that is not there", NO_MODEL, method="GET", path="/v1/models/nobody"),
    Row("one model with slashes in its name", NO_MODEL, method="GET", path="/v1/models/nobody/at/all"),
    # -- beside the completions
    Row("the page", ok(headers={"content-type": "text/html; charset=utf-8"}), method="GET", path="/"),
    Row("health", HEALTH, method="GET", path="/health", differs=MORE),
    Row("the interface", ok(headers=JSON, body=has("openapi", "paths")), method="GET", path="/openapi.json"),
    Row(
        "the interface as a page",
        ok(headers={"content-type": "text/html; charset=utf-8"}),
        method="GET",
        path="/docs",
    ),
    Row("readiness", HEALTH, method="GET", path="/health/ready", differs=MORE),
    Row("liveness", HEALTH, method="GET", path="/health/live"),
    Row("started", HEALTH, method="GET", path="/health/startup"),
    Row(
        "metrics", ok(body=lambda reply: b"# TYPE weighbridge_" in reply.body), method="GET", path="/metrics"
    ),
    Row("load", LOAD, method="GET", path="/v1/load", differs=at("gateway route routes", "says more", LOAD)),
    Row(
        "tokens of a text",
        ok(body=has("tokens", "count")),
        {"prompt": "It weighs", "model": MODEL},
        path="/tokenize",
    ),
    Row(
        "tokens of calls that are no list",
        bad("messages"),
        {"messages": [{"role": "user", "content": "x", "tool_calls": 7}], "model": MODEL},
        path="/tokenize",
    ),
    Row("the list of tickets", ok(body=has("object", "data")), method="GET", path="/v1/tickets"),
    Row("usage", ok(body=has("object", "data", "zone", "kept_days")), method="GET", path="/v1/usage"),
    Row("usage by month", ok(body=has("data")), method="GET", path="/v1/usage?by=month&month=2026-11"),
    Row("usage by week", bad("by"), method="GET", path="/v1/usage?by=week"),
    Row("usage of a day that is none", bad("day"), method="GET", path="/v1/usage?day=today"),
    Row("usage with an unknown filter", bad("colour"), method="GET", path="/v1/usage?colour=red"),
    Row(
        "one ticket",
        ok(body=lambda reply: len(reply.json["data"]) == 1),
        method="GET",
        path="/v1/tickets?limit=1",
    ),
    *(
        Row(
            f"tickets with the limit {limit!r}", bad("limit"), method="GET", path=f"/v1/tickets?limit={limit}"
        )
        for limit in ("0", "-1", "1001", "ten", "", "1.5", "1e2", "99999999999999999999")
    ),
    Row(
        "a ticket that is not there",
        Want(404, "ticket_not_found", "invalid_request_error", error=True),
        method="GET",
        path="/v1/tickets/" + "0" * 32,
    ),
    Row(
        "a ticket's name that is none",
        Want(404, "ticket_not_found", "invalid_request_error", error=True),
        method="GET",
        path="/v1/tickets/%00%0a",
    ),
    # -- methods
    Row("GET of a chat", not_allowed("POST"), method="GET"),
    Row("PUT of a chat", not_allowed("POST"), chat(), method="PUT"),
    Row("DELETE of a chat", not_allowed("POST"), method="DELETE"),
    Row("HEAD of a chat", Want(405, headers={"allow": "POST"}), method="HEAD"),
    Row("OPTIONS of a chat", not_allowed("POST"), method="OPTIONS"),
    Row("PATCH of a chat", not_allowed("POST"), chat(), method="PATCH"),
    Row("GET of a completion", not_allowed("POST"), method="GET", path=COMPLETIONS),
    Row("GET of an embedding", not_allowed("POST"), method="GET", path=EMBEDDINGS),
    Row(
        "PUT of a file: all that may be done with one",
        not_allowed("DELETE", "GET", "HEAD"),
        method="PUT",
        path="/v1/files/x",
    ),
    Row(
        "PUT of files: all that may be done with them",
        not_allowed("GET", "HEAD", "POST"),
        method="PUT",
        path="/v1/files",
    ),
    Row("a page behind nothing", ok(headers=JSON), method="GET", path="/v1/files?after="),
    Row("POST to the models", not_allowed("GET", "HEAD"), chat(), path="/v1/models"),
    Row("POST to health", not_allowed("GET", "HEAD"), chat(), path="/health"),
    Row("POST to the page", not_allowed("GET", "HEAD"), chat(), path="/"),
    Row("DELETE of a ticket", not_allowed("GET", "HEAD"), method="DELETE", path="/v1/tickets/" + "0" * 32),
    Row("HEAD of health", ok(headers=JSON), method="HEAD", path="/health"),
    Row("HEAD of the models", ok(headers=JSON), method="HEAD", path="/v1/models"),
    Row("HEAD of the page", ok(), method="HEAD", path="/"),
    # -- paths
    Row("an unknown path", NOT_HERE, method="GET", path="/v1/nothing"),
    Row("POST to an unknown path", NOT_HERE, chat(), path="/v1/chat"),
    Row("HEAD of an unknown path", Want(404), method="HEAD", path="/v1/nothing"),
    Row("a path without its version", NOT_HERE, chat(), path="/chat/completions"),
    Row("a path in capitals", NOT_HERE, chat(), path="/V1/CHAT/COMPLETIONS"),
    Row("a doubled slash", NOT_HERE, chat(), path="/v1//chat/completions"),
    Row("a path that climbs", NOT_HERE, method="GET", path="/v1/../../etc/passwd"),
    Row("a chat with a slash behind", ok(tokens=4), chat(), path="/v1/chat/completions/"),
    Row("the models with a slash behind", ok(body=lists_models), method="GET", path="/v1/models/"),
    Row("health with a slash behind", HEALTH, method="GET", path="/health/", differs=MORE),
    Row("an unknown path with a slash behind", NOT_HERE, method="GET", path="/v1/nothing/"),
    Row("a path of bytes that are no text", NOT_HERE, method="GET", path="/v1/%ff%fe"),
    Row("a path of 4,000 characters", NOT_HERE, method="GET", path="/v1/" + "x" * 4000),
    Row("a path that is a whole script", NOT_HERE, method="GET", path="/v1/<script>alert(1)</script>"),
    Row("a model's name that climbs", NO_MODEL, method="GET", path="/v1/models/..%2f..%2fetc%2fpasswd"),
    Row("a model's name that is code", NO_MODEL, chat(model="{{7*7}}${7*7}__proto__")),
    Row("a model's name of 100,000 characters", NO_MODEL, chat(model="x" * 100_000)),
    Row("two limits for tickets", bad("limit"), method="GET", path="/v1/tickets?limit=5&limit=0"),
    Row("OPTIONS of everything", Want(404), method="OPTIONS", path="*"),
]
