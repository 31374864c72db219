"""What readers take as it comes and judge by themselves, said closely: messages, prompts, tools, schemas.

A client that writes what stands here is understood; readers are more generous than this.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "maxLength": 200_000}
_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_PARAMETERS: Schema = {
    "type": "object",
    "description": "A JSON schema of an object.",
    "properties": {
        "type": {"const": "object"},
        "properties": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"type": {"enum": ["string", "integer", "number", "boolean"]}},
                "required": ["type"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["type", "properties"],
    "additionalProperties": False,
}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 1}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _words(*words: str) -> Schema:
    return {"enum": list(words)}


_PART = _object({"type": _words("text"), "text": _TEXT})
_CONTENT: Schema = {"oneOf": [_TEXT, {"type": "array", "items": _PART, "minItems": 1}]}
_MESSAGE: Schema = {
    "oneOf": [
        _object({"role": _words("system", "user", "developer"), "content": _CONTENT}),
        _object({"role": _words("assistant"), "content": _TEXT}),
        _object({"role": _words("tool"), "content": _TEXT, "tool_call_id": _NAME}),
    ]
}
_MESSAGES: Schema = {"type": "array", "items": _MESSAGE, "minItems": 1}
_INPUT: Schema = {
    "oneOf": [
        {**_TEXT, "minLength": 1},
        {"type": "array", "items": {**_TEXT, "minLength": 1}, "minItems": 1, "maxItems": 64},
        _IDS,
    ]
}
_FUNCTION = _object({"name": _NAME}, description=_TEXT, parameters=_PARAMETERS)
_TOOL = _object({"type": _words("function"), "function": _FUNCTION})
_TURNS: Schema = {
    "type": "array",
    "minItems": 1,
    "items": _object({"role": _words("user", "assistant"), "content": {**_TEXT, "minLength": 1}}),
}
_ITEM = _object({"role": _words("system", "user", "developer", "assistant"), "content": _TEXT})

_PROVIDERS_OWN: dict[str, Schema | None] = {"mcp_servers": None, "container": None, "inference_geo": None}

#: Fields of which exactly one is given, by the type that reads a request.
ONE_OF: dict[str, tuple[str, ...]] = {
    "EmbeddingRequest": ("input", "messages"),
    "TokenizeRequest": ("prompt", "messages"),
}
#: Fields that a reader can do without in words that it knows from older clients, and nobody should leave out.
NEEDED: dict[str, tuple[str, ...]] = {
    "ResponsesRequest": ("input",),
    "OllamaEmbedRequest": ("input",),
    "OllamaChatRequest": ("messages",),
    "NamedModel": ("model",),
}
#: By the type that reads a request, and by its field; None: a field that is read to be refused.
NARROWED: dict[str, dict[str, Schema | None]] = {
    "ChatRequest": {
        "messages": _MESSAGES,
        "tools": {"type": "array", "items": _TOOL, "minItems": 1, "maxItems": 128},
        "chat_template_kwargs": {"type": "object", "additionalProperties": {"type": ["boolean", "string"]}},
    },
    "CompletionRequest": {"prompt": _INPUT},
    "EmbeddingRequest": {"input": _INPUT, "messages": _MESSAGES},
    "TokenizeRequest": {"messages": _MESSAGES, "prompt": _TEXT},
    "DetokenizeRequest": {"tokens": _IDS},
    "ResponsesRequest": {
        "input": {"oneOf": [{**_TEXT, "minLength": 1}, {"type": "array", "items": _ITEM, "minItems": 1}]},
        "tools": {
            "type": "array",
            "items": _object(
                {"type": _words("function"), "name": _NAME}, description=_TEXT, parameters=_PARAMETERS
            ),
        },
    },
    "MessagesRequest": {"messages": _TURNS, **_PROVIDERS_OWN},
    "CountRequest": {"messages": _TURNS, **_PROVIDERS_OWN},
    "OllamaEmbedRequest": {
        "input": {"oneOf": [{**_TEXT, "minLength": 1}, {"type": "array", "items": {**_TEXT, "minLength": 1}}]}
    },
    "DecisionRequest": {
        "input": {"oneOf": [{**_TEXT, "minLength": 1}, {"type": "array", "items": _ITEM, "minItems": 1}]}
    },
    **{
        name: {"instructions": {**_TEXT, "minLength": 1}}
        for name in ("Predicate", "ChoiceQuestion", "ScoreQuestion")
    },
    "StructuredOutputs": {"json": _PARAMETERS},
    "JsonSchema": {"schema": _PARAMETERS},
    "CreateBatch": {
        "endpoint": _words("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
        "completion_window": {"type": "string", "pattern": "^[1-9][0-9]?[hd]$"},
    },
}
