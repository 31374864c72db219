"""A hook of schemathesis: puts into calls what a client of this server knows and no schema can say.

Those are ids of what earlier calls made, tokens of the model's vocabulary, expressions, grammars and schemas that are
ones, names of tools that were offered, and what the model behind can do: it has no eyes, and it is here. Every fourth
call stays as it was drawn, and so does every one that is meant to be refused.
"""

import itertools
import json
import os
from collections import defaultdict, deque

import schemathesis

#: One call of so many is left as it was drawn.
UNFILLED = 4
#: Ids of each kind that are remembered, the newest.
REMEMBERED = 32
VOCABULARY = 512
SCHEMA = {"type": "object", "properties": {"heavy": {"type": "boolean"}}, "required": ["heavy"]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weigh", "arguments": "{}"}}
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
HI = {"role": "user", "content": "hello"}

known = defaultdict(lambda: deque(maxlen=REMEMBERED))
for kind, name in json.loads(os.environ.get("CALLS_MADE_BEFORE", "{}")).items():
    known[kind].append(name)
numbers = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    mode = getattr(getattr(getattr(case, "meta", None), "generation", None), "mode", None)
    if getattr(mode, "value", None) != "positive" or next(numbers) % UNFILLED == 0:
        return
    for hole in case.path_parameters or {}:
        if known[hole]:
            case.path_parameters[hole] = known[hole][-1]
    for name in ("after", "tenant", "model"):  # of a page, of others' figures, of a calibration for no model
        (case.query or {}).pop(name, None)
    case.body = filled(case.operation.path, case.body)


@schemathesis.hook("after_call")
def remember(context, case, response):
    """Names of what a call has made."""
    if not 200 <= response.status_code < 300:
        return
    for name, header in (("ticket", "x-weighbridge-ticket"), ("stream", "x-weighbridge-stream")):
        known[name] += response.headers.get(header, ())
    if case.operation.method.upper() == "DELETE":
        for hole, value in (case.path_parameters or {}).items():
            while value in known[hole]:
                known[hole].remove(value)
    try:
        told = json.loads(response.content)
    except ValueError:
        return
    kind = told.get("object") if isinstance(told, dict) else None
    for name, of in (
        ("file", "file"),
        ("batch", "batch"),
        ("response", "response"),
        ("name", "decision.calibration"),
    ):
        if kind == of and not told.get("deleted") and told["id"] not in known[name]:
            known[name].append(told["id"])


def filled(path, body):
    if path == "/v1/files" and isinstance(body, dict):
        line = LINE | {"body": {"model": "tiny", "messages": [HI], "max_tokens": 4}}
        return body | {"purpose": "batch", "file": json.dumps(line).encode()}
    if not isinstance(body, dict):
        return body
    body = mended(body)
    if path == "/v1/batches" and known["file"]:
        body |= {"input_file_id": known["file"][-1], "endpoint": LINE["url"]}
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice is not None and path.startswith(("/v1/messages", "/v1/responses", "/v1/chat", "/tokenize")):
        body["tool_choice"] = chosen(path, tools, choice)
    if path == "/v1/messages" and isinstance(body.get("max_tokens"), int):
        body["max_tokens"] = min(body["max_tokens"], 64)
    if body.get("background"):
        body.pop("store", None)
    if body.get("response_format") or body.get("structured_outputs") or body.get("tools"):
        body.pop("allowed_token_ids", None)  # nothing that a schema takes is made of any tokens
    if isinstance(body.get("min_tokens"), int):
        body["min_tokens"] = min(body["min_tokens"], body.get("max_tokens") or 1)
    if path == "/console/api/simulate":
        body |= {"model": "", "more": 1}
    messages = body.get("messages")
    if body.get("continue_final_message") and messages:
        messages.append({"role": "assistant", "content": "It is"})
    return body


def chosen(path, tools, choice):
    """A choice among the tools that are offered."""
    if not tools:
        return {"type": "auto"} if path.startswith("/v1/messages") else "auto"
    if not isinstance(choice, dict):
        return choice
    function = tools[0].get("function", tools[0])
    if path.startswith("/v1/messages"):
        return choice | ({"name": function["name"]} if choice.get("type") == "tool" else {})
    if path.startswith("/v1/responses"):
        return {"type": "function", "name": function["name"]}
    return {"type": "function", "function": {"name": function["name"]}}


#: What stands for a value that was drawn under a name.
INSTEAD = {
    "parameters": SCHEMA,
    "schema": SCHEMA,
    "input_schema": SCHEMA,
    "json": SCHEMA,
    "regex": "[0-9]+",
    "grammar": 'root ::= "yes" | "no"',
    "tool_calls": [CALL],
    "format": "json",
    "keep_alive": "5m",
    "completion_window": "24h",
    "placement": "auto",
    "deadline_ms": 60_000.0,
    "disable_any_whitespace": False,
    "previous_response_id": None,
    "conversation": None,
    "images": [],
}
#: At most so many log-probabilities are told.
LOGPROBS = ("prompt_logprobs", "top_logprobs", "logprobs")
TOKENS = ("stop_token_ids", "allowed_token_ids", "tokens", "prompt", "input")


def mended(value, name=""):
    """A value with what no schema can say of it; null stays null."""
    if value is None:
        return None
    if name in INSTEAD and not (name == "format" and isinstance(value, dict) and "type" in value):
        return INSTEAD[name]
    if name in LOGPROBS and type(value) is int:
        return min(value, 5)
    if isinstance(value, list):
        if name == "instructions":
            return "Is it so?"
        if name in ("choices", "levels"):
            word = "value" if name == "choices" else "label"
            return [{**one, word: f"{number} {one.get(word)}"} for number, one in enumerate(value)]
        if name in TOKENS and value and all(type(one) is int for one in value):
            return [one % VOCABULARY for one in value]
        return [mended(one, "part of " + name) for one in value]
    if not isinstance(value, dict):
        return value
    if name == "logit_bias":
        return {str(int(key) % VOCABULARY): bias for key, bias in value.items()}
    if name == "format":
        return {**value, "name": "answer", "schema": SCHEMA} if "schema" in value else {"type": "text"}
    if name == "part of tools" and "function" not in value and "input_schema" not in value:
        return {"type": "function", "name": value.get("name") or "weigh", "parameters": SCHEMA}
    if name in ("part of content", "part of system") or value.get("type") == "image_url":
        return {"type": "text", "text": str(value.get("text", "x")) or "x"}
    if name == "part of input" and "role" not in value:
        return HI
    return {key: mended(one, key) for key, one in value.items()}
