"""What readers take as it comes and judge by themselves, said closely: messages, prompts, tools, schemas.

A client that writes what stands here is understood; readers are more generous than this.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "maxLength": 200_000}
_SOME_TEXT: Schema = {**_TEXT, "minLength": 1}
#: A part or an item of a kind that its `type` names.
_TYPED: Schema = {"type": "object", "required": ["type"]}
_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
_PARAMETERS: Schema = {"type": "object", "description": "A JSON schema of an object."}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _words(*words: str) -> Schema:
    return {"enum": list(words)}


_NOTHING: Schema = {"type": "null"}
_PART: Schema = {
    "oneOf": [
        _object({"type": _words("text"), "text": _TEXT}),
        _object({"type": _words("image_url"), "image_url": {"type": "object"}}),
    ]
}
_CONTENT: Schema = {"oneOf": [_TEXT, {"type": "array", "items": _PART, "minItems": 1}]}
_CALLS: Schema = {"type": "array", "items": {"type": "object", "required": ["function"]}, "minItems": 1}
_MESSAGE: Schema = {
    "oneOf": [
        _object({"role": _words("system", "user", "developer"), "content": _CONTENT}),
        _object({"role": _words("assistant"), "content": _CONTENT}, reasoning_content=_TEXT),
        _object(
            {"role": _words("assistant"), "tool_calls": _CALLS},
            content={"anyOf": [_CONTENT, _NOTHING]},
            reasoning_content=_TEXT,
        ),
        _object({"role": _words("tool"), "content": _CONTENT, "tool_call_id": _TEXT}),
    ]
}
_MESSAGES: Schema = {"type": "array", "items": _MESSAGE, "minItems": 1}
_TEXTS: Schema = {
    "oneOf": [_SOME_TEXT, {"type": "array", "items": _SOME_TEXT, "minItems": 1, "maxItems": 64}]
}
_INPUT: Schema = {"oneOf": [*_TEXTS["oneOf"], _IDS]}
_FUNCTION = _object({"name": _NAME}, description=_TEXT, parameters=_PARAMETERS)
_TOOL = _object({"type": _words("function"), "function": _FUNCTION})
_BLOCKS: Schema = {
    "oneOf": [
        _SOME_TEXT,
        {"type": "array", "items": _TYPED, "minItems": 1},
    ]
}
_TURNS: Schema = {
    "type": "array",
    "minItems": 1,
    "items": _object({"role": _words("user", "assistant"), "content": _BLOCKS}),
}
_ITEM: Schema = {
    "oneOf": [
        _object({"role": _words("system", "user", "developer", "assistant"), "content": _TEXT}),
        _TYPED,
    ]
}
_TURNS_OR_TEXT: Schema = {"oneOf": [_SOME_TEXT, {"type": "array", "items": _ITEM, "minItems": 1}]}

_WORD: Schema = {"type": "string", "minLength": 1}
_STOP: Schema = {
    "anyOf": [_WORD, {"type": "array", "items": _WORD, "maxItems": 16}, _NOTHING],
}
_TOKENS: Schema = {"anyOf": [_IDS, _NOTHING]}
_EXTENSION: Schema = {"anyOf": [{"$ref": "#/components/schemas/Extension"}, _NOTHING]}
_FORMAT: Schema = {
    "anyOf": [
        _object({"type": _words("text", "json_object")}),
        _object(
            {"type": _words("json_schema"), "json_schema": _object({"name": _NAME, "schema": _PARAMETERS})}
        ),
        _NOTHING,
    ]
}
#: Of several words for one thing, the document has one.
_OLDER: dict[str, Schema | None] = dict.fromkeys(
    (
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "json_schema",
        "regex",
        "grammar",
        "ebnf",
    )
)
_DRAWN: dict[str, Schema | None] = {
    **_OLDER,
    "stop": _STOP,
    "bad_words": {"anyOf": [{"type": "array", "items": _WORD, "maxItems": 16}, _NOTHING]},
    "logit_bias": {
        "anyOf": [
            {
                "type": "object",
                "propertyNames": {"pattern": "^(0|[1-9][0-9]*)$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            },
            _NOTHING,
        ]
    },
    "stop_token_ids": _TOKENS,
    "allowed_token_ids": _TOKENS,
    "n": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 16}, _NOTHING]},
    "response_format": _FORMAT,
}
_FALSE: Schema = {"enum": [False, None]}
_OLLAMA_TURN = _object({"role": _words("system", "user", "assistant"), "content": _TEXT})

_PROVIDERS_OWN: dict[str, Schema | None] = {"mcp_servers": None, "container": None, "inference_geo": None}

_ANTHROPIC: dict[str, Schema | None] = {
    **_PROVIDERS_OWN,
    "messages": _TURNS,
    "system": {"anyOf": [_TEXT, {"type": "array", "items": _TYPED}, _NOTHING]},
    "tools": {
        "anyOf": [
            {
                "type": "array",
                "items": _object({"name": _NAME, "input_schema": _PARAMETERS}, description=_TEXT),
                "maxItems": 128,
            },
            _NOTHING,
        ]
    },
}

#: Fields of which exactly one is given, by the type that reads a request.
ONE_OF: dict[str, tuple[str, ...]] = {
    "EmbeddingRequest": ("input", "messages"),
    "TokenizeRequest": ("prompt", "messages"),
    "StructuredOutputs": ("json", "choice", "regex", "grammar", "json_object"),
}
#: Fields of which no two are given.
NOT_BOTH: dict[str, tuple[str, str]] = {
    "ChatRequest": ("response_format", "structured_outputs"),
    "CompletionRequest": ("response_format", "structured_outputs"),
}
#: Fields that a reader can do without in words that it knows from older clients, and nobody should leave out.
NEEDED: dict[str, tuple[str, ...]] = {
    "ResponsesRequest": ("input",),
    "OllamaEmbedRequest": ("input",),
    "OllamaChatRequest": ("messages",),
    "OllamaEmbeddingsRequest": ("prompt",),
    "NamedModel": ("model",),
}
#: By the type that reads a request, and by its field; None: a field that is read to be refused.
NARROWED: dict[str, dict[str, Schema | None]] = {
    "ChatRequest": {
        **_DRAWN,
        "messages": _MESSAGES,
        "tools": {"type": "array", "items": _TOOL, "minItems": 1, "maxItems": 128},
        "chat_template_kwargs": {"type": "object", "additionalProperties": {"type": ["boolean", "string"]}},
    },
    "CompletionRequest": {**_DRAWN, "prompt": _INPUT, "suffix": None, "best_of": None},
    "EmbeddingRequest": {
        "input": _INPUT,
        "messages": _MESSAGES,
        **dict.fromkeys(("dimensions", "tools", "tool_choice", "chat_template_kwargs")),
    },
    "TokenizeRequest": {"messages": _MESSAGES, "prompt": _TEXT},
    "DetokenizeRequest": {"tokens": _IDS},
    "ResponsesRequest": {
        "conversation": None,
        "prompt": None,
        "include": {"anyOf": [{"type": "array", "items": _words("reasoning.encrypted_content")}, _NOTHING]},
        "input": _TURNS_OR_TEXT,
        "tools": {
            "type": "array",
            "items": _object(
                {"type": _words("function"), "name": _NAME}, description=_TEXT, parameters=_PARAMETERS
            ),
        },
    },
    "MessagesRequest": {**_ANTHROPIC, "weighbridge": _EXTENSION},
    "CountRequest": _ANTHROPIC,
    "AnthropicOutputFormat": {"schema": _PARAMETERS},
    "OllamaChatRequest": {
        "messages": {"type": "array", "items": _OLLAMA_TURN, "minItems": 1},
        "tools": {"type": "array", "items": _TOOL, "maxItems": 128},
        "logprobs": _FALSE,
        "weighbridge": _EXTENSION,
    },
    "OllamaGenerateRequest": {
        "weighbridge": _EXTENSION,
        "logprobs": _FALSE,
        "images": None,
        "context": None,
        "suffix": None,
        "template": None,
    },
    "OllamaEmbedRequest": {
        "input": _TEXTS,
        "dimensions": None,
        "weighbridge": _EXTENSION,
    },
    "OllamaEmbeddingsRequest": {"prompt": _SOME_TEXT, "weighbridge": _EXTENSION},
    "NamedModel": {"name": None},
    "DecisionRequest": {"input": _TURNS_OR_TEXT},
    **{name: {"instructions": _SOME_TEXT} for name in ("Predicate", "ChoiceQuestion", "ScoreQuestion")},
    "StructuredOutputs": {
        "json": _PARAMETERS,
        "choice": {"type": "array", "items": _WORD, "minItems": 1, "maxItems": 16},
    },
    "OllamaOptions": {
        "stop": _STOP,
        "repeat_penalty": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 10}, _NOTHING]},
        "typical_p": None,
        "mirostat": None,
    },
    "JsonSchema": {"schema": _PARAMETERS},
    "CreateBatch": {
        "endpoint": _words("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
        "completion_window": {"type": "string", "pattern": "^[1-9][0-9]?[hd]$"},
    },
}
