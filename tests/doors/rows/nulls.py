"""Null wherever a client may write it: programs that dump their objects whole write it for all that was not said."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.doors.rows.clients import (
    API_CHAT,
    CHATS,
    COUNT,
    COUNTED,
    DECISIONS,
    GENERATE,
    HI,
    MESSAGES,
    NEAR,
    api_chat,
    decided,
    is_decided,
    message,
)
from tests.doors.rows.endpoints import CHATS_ONLY, INPUT, PROMPT
from tests.doors.rows.responses import CALL, FUNCTION, OUTPUT, body, user
from tests.doors.table import COMPLETIONS, EMBEDDINGS, MODEL, RESPONSES, Row, chat, ok
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.completions import CompletionRequest
from weighbridge.wire.protocols.decisions import DecisionRequest
from weighbridge.wire.protocols.embeddings import EmbeddingRequest
from weighbridge.wire.protocols.messages import CountRequest, MessagesRequest
from weighbridge.wire.protocols.ollama import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
)
from weighbridge.wire.protocols.responses import ResponsesRequest
from weighbridge.wire.protocols.token_requests import TokenizeRequest

Body = dict[str, Any]

#: What OpenAI's clients know beyond our own types.
_OPENAIS = (
    *("store", "metadata", "modalities", "audio", "prediction", "service_tier", "reasoning_effort"),
    *(
        "verbosity",
        "web_search_options",
        "safety_identifier",
        "prompt_cache_key",
        "functions",
        "function_call",
    ),
)


def empty(kind: type[msgspec.Struct], said: Body, *more: str) -> Body:
    """What is said, and null for every other field that a type of requests has."""
    return {**dict.fromkeys((*(one.name for one in msgspec.structs.fields(kind)), *more)), **said}


def near(**fields: Any) -> Body:
    """A chat that is answered at the edge, as the tools and texts in it are read there."""
    return chat(weighbridge=NEAR, **fields)


#: A message as OpenAI's client dumps one that it was answered with.
DUMPED = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": '{"of": "it"}'}}
    ],
}
BARE_TOOL = {
    "type": "function",
    "function": {"name": "weigh", "description": None, "parameters": None, "strict": None},
}
SHAPE = {"type": "object", "properties": {"a": {"type": "boolean"}}}

NULLS = [
    Row("a chat of nulls", ok(tokens=4), empty(ChatRequest, chat(), *_OPENAIS)),
    Row(
        "a stream of nulls",
        ok(tokens=4),
        empty(ChatRequest, chat(stream=True, stream_options={"include_usage": None})),
    ),
    Row(
        "a completion of nulls",
        ok(tokens=3),
        empty(CompletionRequest, PROMPT),
        path=COMPLETIONS,
        differs=CHATS_ONLY,
    ),
    Row("an embedding of nulls", ok(), empty(EmbeddingRequest, INPUT), path=EMBEDDINGS, differs=CHATS_ONLY),
    Row("a response of nulls", ok(tokens=4), empty(ResponsesRequest, body(), "service_tier"), path=RESPONSES),
    Row("a message of nulls", ok(tokens=4), empty(MessagesRequest, message()), path=MESSAGES),
    Row("a count of nulls", ok(), empty(CountRequest, COUNTED), path=COUNT),
    Row("an Ollama chat of nulls", ok(tokens=4), empty(OllamaChatRequest, api_chat()), path=API_CHAT),
    Row(
        "an Ollama prompt of nulls",
        ok(tokens=4),
        empty(
            OllamaGenerateRequest,
            {
                "model": MODEL,
                "prompt": "weigh",
                "options": {"num_predict": 4, "temperature": 0, "stop": None},
            },
        ),
        path=GENERATE,
    ),
    Row(
        "vectors of nulls for Ollama",
        ok(),
        empty(OllamaEmbedRequest, {"model": MODEL, "input": "weigh"}),
        path="/api/embed",
        differs=CHATS,
    ),
    Row("questions of nulls", ok(body=is_decided), empty(DecisionRequest, decided()), path=DECISIONS),
    Row(
        "tokens of nulls", ok(), empty(TokenizeRequest, {"model": MODEL, "prompt": "weigh"}), path="/tokenize"
    ),
    # -- inside of what is said
    Row(
        "a conversation as OpenAI's client dumps it",
        ok(tokens=4),
        near(
            messages=[
                {**HI, "name": None},
                DUMPED,
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "nine"}]},
            ],
            tools=[BARE_TOOL],
            tool_choice="none",
        ),
    ),
    Row("a tool of nulls", ok(), near(tools=[BARE_TOOL], max_tokens=4)),
    Row(
        "a format whose other fields are null",
        ok(body=lambda reply: reply.json["choices"][0]["message"]["content"].startswith("{")),
        near(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SHAPE, "description": None, "strict": None},
            },
            max_tokens=40,
        ),
    ),
    Row(
        "items as OpenAI's client dumps them",
        ok(tokens=4),
        body(
            input=[
                *user({"type": "input_text", "text": "weigh it"}),
                {**CALL, "id": None, "status": None, "namespace": None},
                {**OUTPUT, "id": None, "status": None},
            ],
            tools=[{**FUNCTION, "description": None, "strict": None}],
            tool_choice="none",
            text={"format": {"type": "text"}, "verbosity": None},
            reasoning={"effort": None, "summary": None},
            weighbridge=NEAR,
        ),
        path=RESPONSES,
    ),
    Row(
        "blocks as Anthropic's client dumps them",
        ok(tokens=4),
        message(
            messages=[
                HI,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "I look", "citations": None},
                        {"type": "tool_use", "id": "t1", "name": "weigh", "input": None, "caller": None},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": None, "is_error": None}
                    ],
                },
            ],
            tools=[{"name": "weigh", "description": None, "input_schema": SHAPE, "type": None}],
            tool_choice={"type": "none", "name": None, "disable_parallel_tool_use": None},
            weighbridge=NEAR,
        ),
        path=MESSAGES,
    ),
    Row(
        "an Ollama chat as Go writes what is empty",
        ok(tokens=4),
        api_chat(
            messages=[
                {**HI, "images": None, "tool_calls": None},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "weigh", "arguments": None}}],
                },
                {"role": "tool", "content": "nine", "tool_name": "weigh"},
            ],
            tools=None,
            weighbridge=NEAR,
        ),
        path=API_CHAT,
    ),
]
