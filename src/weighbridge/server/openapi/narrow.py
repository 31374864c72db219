"""What readers take as it comes and judge by themselves, said closely: messages, prompts, tools, schemas.

A client that writes what stands here is understood; readers are more generous than this.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_SOME_TEXT: Schema = {"type": "string", "minLength": 1}
#: A part or an item of a kind that its `type` names.
_TYPED: Schema = {"type": "object", "required": ["type"]}
_PARAMETERS: Schema = {"type": "object", "description": "A JSON schema of an object."}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_NOTHING: Schema = {"type": "null"}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object of these fields. Others are passed over, as they are everywhere."""
    told = {name: _maybe(schema) for name, schema in optional.items()}
    return {"type": "object", "properties": {**required, **told}, "required": list(required)}


def _maybe(schema: Schema) -> Schema:
    """What may be null as well."""
    return {"anyOf": [schema, _NOTHING]}


def _list(items: Schema, most: int | None = None, fewest: int = 1) -> Schema:
    bounds = {"minItems": fewest} if most is None else {"minItems": fewest, "maxItems": most}
    return {"type": "array", "items": items, **bounds}


def _words(*words: str) -> Schema:
    return {"enum": list(words)}


_PART: Schema = {
    "anyOf": [
        _object({"type": _words("text"), "text": _TEXT}),
        _object({"type": _words("image_url"), "image_url": {"type": "object"}}),
        _TYPED,
    ]
}
_CONTENT: Schema = {"anyOf": [_TEXT, _list(_PART, fewest=0)]}
_CALLS = _list({"type": "object", "required": ["function"]}, fewest=0)
_MESSAGE: Schema = {
    "anyOf": [
        _object({"role": _words("system", "user", "developer"), "content": _CONTENT}, name=_TEXT),
        _object(
            {"role": _words("assistant")},
            content=_CONTENT,
            tool_calls=_CALLS,
            reasoning_content=_TEXT,
            refusal=_TEXT,
        ),
        _object({"role": _words("tool"), "content": _CONTENT}, tool_call_id=_TEXT),
        _object({"role": _SOME_TEXT, "content": _CONTENT}),
    ]
}
_MESSAGES = _list(_MESSAGE)
_TEXTS: Schema = {"anyOf": [_SOME_TEXT, _list(_SOME_TEXT)]}
_INPUT: Schema = {"anyOf": [*_TEXTS["anyOf"], _IDS, _list(_IDS)]}
_FUNCTION = _object(
    {"name": _SOME_TEXT}, description=_TEXT, parameters=_PARAMETERS, strict={"type": "boolean"}
)
_TOOL = _object({"type": _words("function"), "function": _FUNCTION})
_BLOCKS: Schema = {"anyOf": [_TEXT, _list(_TYPED, fewest=0)]}
_TURNS = _list(_object({"role": _words("user", "assistant", "system"), "content": _BLOCKS}))
_ITEM: Schema = {
    "anyOf": [
        _object(
            {
                "role": _words("system", "user", "developer", "assistant"),
                "content": {"anyOf": [_TEXT, _list(_TYPED, fewest=0)]},
            }
        ),
        _TYPED,
        _object({"id": _SOME_TEXT}),
    ]
}
_TURNS_OR_TEXT: Schema = {"anyOf": [_TEXT, _list(_ITEM)]}

_WORD: Schema = {"type": "string", "minLength": 1, "maxLength": 1024}
_STOP: Schema = {"anyOf": [_WORD, _list(_WORD, 16, fewest=0), _NOTHING]}
_TOKENS: Schema = {"anyOf": [_IDS, _NOTHING]}
_EXTENSION: Schema = {"anyOf": [{"$ref": "#/components/schemas/Extension"}, _NOTHING]}
_FORMAT: Schema = {
    "anyOf": [
        _object({"type": _words("text", "json_object")}, schema=_PARAMETERS),
        _object(
            {
                "type": _words("json_schema"),
                "json_schema": _object(
                    {"schema": _PARAMETERS}, name=_TEXT, description=_TEXT, strict={"type": "boolean"}
                ),
            }
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
    "bad_words": _maybe(_list({"type": "string", "pattern": "\\S"}, fewest=0)),
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
_NAMED_TOOL: Schema = {"$ref": "#/components/schemas/NamedTool"}
_ALLOWED = _object({"mode": _words("auto", "required"), "tools": _list(_NAMED_TOOL, fewest=0)})
_TOOL_CHOICE: Schema = {
    "anyOf": [
        _words("auto", "none", "required"),
        _NAMED_TOOL,
        _object({"type": _words("allowed_tools"), "allowed_tools": _ALLOWED}),
        _NOTHING,
    ]
}
_FALSE: Schema = {"enum": [False, None]}
_OLLAMA_TURN = _object(
    {"role": _words("system", "user", "assistant", "tool")},
    content=_TEXT,
    thinking=_TEXT,
    images=_list(_TEXT, fewest=0),
    tool_calls=_CALLS,
    tool_name=_TEXT,
)

_PROVIDERS_OWN: dict[str, Schema | None] = {"mcp_servers": None, "container": None, "inference_geo": None}

_ANTHROPIC: dict[str, Schema | None] = {
    **_PROVIDERS_OWN,
    "messages": _TURNS,
    "system": _maybe({"anyOf": [_TEXT, _list(_TYPED, fewest=0)]}),
    "tools": _maybe(
        _list(_object({"name": _SOME_TEXT, "input_schema": _PARAMETERS}, description=_TEXT), fewest=0)
    ),
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
_KEPT: dict[str, Schema | None] = {"keep_alive": {"type": ["string", "number", "null"]}}
#: By the type that reads a request, and by its field; None: a field that is read to be refused.
NARROWED: dict[str, dict[str, Schema | None]] = {
    "ChatRequest": {
        **_DRAWN,
        "messages": _MESSAGES,
        "tools": _maybe(_list(_TOOL, fewest=0)),
        "tool_choice": _TOOL_CHOICE,
    },
    "CompletionRequest": {**_DRAWN, "prompt": _INPUT, "suffix": None, "best_of": None},
    "EmbeddingRequest": {
        "input": _maybe(_INPUT),
        "messages": _maybe(_MESSAGES),
        **dict.fromkeys(("dimensions", "tools", "tool_choice", "chat_template_kwargs")),
    },
    "TokenizeRequest": {"messages": _maybe(_MESSAGES), "prompt": _maybe(_TEXT)},
    "DetokenizeRequest": {"tokens": {**_IDS, "minItems": 0}},
    "ResponsesRequest": {
        "conversation": None,
        "prompt": None,
        "input": _TURNS_OR_TEXT,
        "tools": _maybe(
            _list(
                {
                    "anyOf": [
                        _object(
                            {"type": _words("function"), "name": _SOME_TEXT},
                            description=_TEXT,
                            parameters=_PARAMETERS,
                        ),
                        _TYPED,
                    ]
                },
                fewest=0,
            )
        ),
    },
    "MessagesRequest": {**_ANTHROPIC, "weighbridge": _EXTENSION},
    "CountRequest": _ANTHROPIC,
    "AnthropicOutputFormat": {"schema": _PARAMETERS},
    "OllamaChatRequest": {
        **_KEPT,
        "messages": _maybe(_list(_OLLAMA_TURN, fewest=0)),
        "tools": _maybe(_list(_TOOL, fewest=0)),
        "logprobs": _FALSE,
        "weighbridge": _EXTENSION,
    },
    "OllamaGenerateRequest": {
        **_KEPT,
        "weighbridge": _EXTENSION,
        "logprobs": _FALSE,
        "context": None,
        "suffix": None,
        "template": None,
    },
    "OllamaEmbedRequest": {
        **_KEPT,
        "input": _TEXTS,
        "dimensions": None,
        "weighbridge": _EXTENSION,
    },
    "OllamaEmbeddingsRequest": {**_KEPT, "prompt": _SOME_TEXT, "weighbridge": _EXTENSION},
    "NamedModel": {"name": None},
    "DecisionRequest": {"input": _TURNS_OR_TEXT},
    **{
        name: {"instructions": {"anyOf": [_SOME_TEXT, _list(_TYPED)]}}
        for name in ("Predicate", "ChoiceQuestion", "ScoreQuestion")
    },
    "StructuredOutputs": {
        "json": _maybe(_PARAMETERS),
        "choice": _maybe(_list(_TEXT)),
    },
    "OllamaOptions": {
        "temperature": _maybe({"type": "number", "minimum": 0, "maximum": 2}),
        "top_p": _maybe({"type": "number", "minimum": 0}),
        "top_k": _maybe({"type": "integer", "minimum": -1}),
        "min_p": _maybe({"type": "number", "minimum": 0, "maximum": 1}),
        **dict.fromkeys(
            ("presence_penalty", "frequency_penalty"),
            _maybe({"type": "number", "minimum": -2, "maximum": 2}),
        ),
        "stop": _STOP,
        "repeat_penalty": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 10}, _NOTHING]},
        "typical_p": None,
        "mirostat": None,
    },
    "JsonSchema": {"schema": _PARAMETERS},
    "CreateBatch": {
        "endpoint": _words(
            *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
        ),
        "completion_window": {"type": "string", "pattern": "^([1-9][0-9]{0,5}[smh]|[1-7]d)$"},
    },
}
